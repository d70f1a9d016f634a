"""Evaluators: what a global model is worth beside its accuracy, and what a defense has left of it."""

"""Phases: several runs one after the other, each from the global model of the one before."""

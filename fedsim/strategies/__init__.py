"""Flower's strategies by name: which there are, what they accept, and how they are built."""

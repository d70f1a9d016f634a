"""Strategies by name, Flower's and fedsim's own: which there are, what they accept, and how they are built."""

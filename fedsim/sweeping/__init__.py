"""Sweeps: many runs of one scenario over a grid of settings and seeds, each in a process of its own."""

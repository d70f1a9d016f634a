"""A small Vision Transformer in a federation whose clients look at their updates before they send them."""

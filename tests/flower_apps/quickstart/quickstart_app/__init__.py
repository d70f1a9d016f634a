"""A small CNN in a federation: the shape of Flower's PyTorch quickstart, with local images."""

"""The head of a frozen Vision Transformer in a federation: the shape of Flower's flowertune-vit, with local images."""

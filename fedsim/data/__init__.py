"""Where the images come from, how they are dealt to clients, and which of them a client uses in a round."""

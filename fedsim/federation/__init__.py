"""The scenario as a Flower app: client, server, the wrappers around Flower's Grid, and the engines."""

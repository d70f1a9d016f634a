"""The run folder: its files, their typed lines and headers, and whether they belong together."""

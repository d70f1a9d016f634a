"""A scenario made ready to run: plug-ins found, values checked, the data that a run was made from; what can be chosen from."""

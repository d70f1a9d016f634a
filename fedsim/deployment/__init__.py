"""Flower's processes: command lines, environment, certificates, and what keeps them from outliving `fedsim run`."""

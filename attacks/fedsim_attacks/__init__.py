"""First-party attacks; fedsim finds them through entry points, like anybody else's."""

"""First-party defenses; fedsim finds them through entry points, like anybody else's."""

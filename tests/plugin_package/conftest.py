import importlib.util

# The tests of this distribution run where it is installed; the tests of fedsim install it and run them.
collect_ignore_glob = [] if importlib.util.find_spec("fedsim_example_plugins") else ["tests/*"]

"""An attack and a defense that fedsim finds through entry points."""

"""An attack, a defense, a prior and a distance that are found through entry points."""

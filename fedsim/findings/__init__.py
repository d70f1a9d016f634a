"""What an attack can find: one table of kinds, what a claim of each must hold, and what a blind guesser would claim."""

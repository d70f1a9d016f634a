"""How close a finding comes to the truth: plain functions, one assignment a batch, controls beside every score."""

"""The audit: what an attacker sees, attempts in processes of their own, scores beside controls, calibrations, evaluations."""

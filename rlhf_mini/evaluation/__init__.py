"""Compares the stages: judges, win rates, ratings, probes, over-optimisation, the token microscope."""

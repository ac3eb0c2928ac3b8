"""Builds an HTML report of a run, in one file that opens without a network."""

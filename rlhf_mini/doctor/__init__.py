"""What is wrong with a run, stage by stage, and what to try."""

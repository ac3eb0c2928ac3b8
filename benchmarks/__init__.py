"""Measurements beside another implementation: TRL 1.12.0, the last release with a PPOTrainer."""

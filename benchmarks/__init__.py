"""Compares PPO's speed, memory and tensors with those of TRL 1.12.0, the last release with a PPOTrainer."""

"""Compares PPO's speed, memory and tensors with those of TRL 1.12.0, the last release with a PPOTrainer.

Beside that: ablations of the reward model, and mutants, which test the tests.
"""

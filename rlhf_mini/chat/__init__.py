"""A chat in the terminal with base, SFT or PPO, one at a time or side by side."""

"""A chat in the terminal with base, SFT and PPO, one of them or side by side."""

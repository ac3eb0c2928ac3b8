"""The training loop that SFT and the reward model share."""

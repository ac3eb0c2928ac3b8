"""Over-optimisation: reward and gold score of a policy, the further it moves from the SFT model."""

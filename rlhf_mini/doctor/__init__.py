"""Checks what SFT, RM and PPO logged against known bounds, and says what to try where a check fails."""

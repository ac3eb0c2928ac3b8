"""Step 3: PPO against the reward model, with a per-token KL penalty that keeps the policy close to SFT.

Read train.py. The maths is in losses.py, the options are in options.py, and run.py does everything around the
algorithm: loading, resuming, logging, saving.
"""

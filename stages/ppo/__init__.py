"""Stage 3: proximal policy optimisation against the reward model, with a per-token KL penalty to the SFT model.

`losses.py` holds the maths, `train.py` the algorithm, `options.py` its settings.
"""

"""Step 2: a reward model trained on rankings of the SFT model's responses. Read train.py."""

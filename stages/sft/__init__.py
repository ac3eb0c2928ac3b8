"""Step 1: supervised fine-tuning of the base model on demonstrations. Read train.py."""

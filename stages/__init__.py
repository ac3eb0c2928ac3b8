"""The three stages of the recipe, one package each. They meet only through the checkpoints on disk."""

import rlhf_mini  # noqa: F401  first of all: it takes the Hugging Face libraries offline before a stage imports them

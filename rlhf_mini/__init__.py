"""rlhf_mini: the InstructGPT recipe at a size a laptop can run. This package is what the stages share.

Importing it tells the Hugging Face libraries to stay offline and quiet, and torch's oneDNN to keep little, so import it
before them. A variable that is already set in the environment wins.
"""

import os

__version__ = "0.1.0"

for _name, _value in {
    "HF_HUB_OFFLINE": "1",  # everything the stages read is in the repository
    "HF_HUB_DISABLE_TELEMETRY": "1",  # no usage reports
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # a bar for each load of a 4 MB model says nothing
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",  # set explicitly, or the tokenizers warn after every fork
    # oneDNN (the GELU) keeps machine code for 1024 shapes, and here each batch has a shape of its own: a gigabyte.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
}.items():
    os.environ.setdefault(_name, _value)

"""`python -m stages.sft [--config file.yaml] [--option value]`"""

from rlhf_mini.core.console import run
from rlhf_mini.core.options import parse_options
from stages.sft.options import SFTOptions


def main() -> None:
    options = parse_options(SFTOptions, prog="python -m stages.sft", description="Step 1: fine-tune on demonstrations.")
    from stages.sft.train import train_sft  # imports torch, for which --help should not wait

    train_sft(options)


if __name__ == "__main__":
    run(main)

"""`python -m stages.rm [--config file.yaml] [--option value]`"""

from rlhf_mini.core.console import run
from rlhf_mini.core.options import parse_options
from stages.rm.options import RMOptions


def main() -> None:
    options = parse_options(
        RMOptions, prog="python -m stages.rm", description="Step 2: train a reward model on rankings."
    )
    from stages.rm.train import train_rm  # imports torch, for which --help should not wait

    train_rm(options)


if __name__ == "__main__":
    run(main)

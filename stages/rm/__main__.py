"""`python -m stages.rm [--config file.yaml] [--option value]`"""

from rlhf_mini.core.console import run
from rlhf_mini.core.options import parse_options
from stages.rm.options import RMOptions


def main() -> None:
    options = parse_options(
        RMOptions, prog="python -m stages.rm", description="Step 2: train a reward model on rankings."
    )
    from stages.rm.train import train_rm  # imports torch and TRL's trainer; --help should not wait for them

    train_rm(options)


if __name__ == "__main__":
    run(main)

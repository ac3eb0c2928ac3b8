"""`python -m stages.ppo [--config file.yaml] [--option value]`"""

from rlhf_mini.core.console import run
from rlhf_mini.core.options import parse_options
from stages.ppo.options import PPOOptions


def main() -> None:
    options = parse_options(
        PPOOptions, prog="python -m stages.ppo", description="Step 3: PPO against the reward model."
    )
    from stages.ppo.train import train_ppo  # imports torch and the models; --help should not wait for them

    train_ppo(options)


if __name__ == "__main__":
    run(main)

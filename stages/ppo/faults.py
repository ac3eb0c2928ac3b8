"""What can go wrong while PPO runs, and what is kept then."""

from typing import Any

from rlhf_mini.core.checkpoints import save_last_good
from rlhf_mini.core.console import console
from rlhf_mini.training.schedule import copy_weights
from stages.ppo.options import PPOOptions

LOWER_RATE = "try a lower --learning_rate or --value_learning_rate"


class Fault(Exception):
    """PPO cannot, or shall not, go on from here. `advice` says what to try."""

    def __init__(self, what: str, advice: str = LOWER_RATE) -> None:
        super().__init__(what)
        self.advice = advice


def collapse(metrics: dict[str, float], options: PPOOptions) -> Fault | None:
    """What says that the policy of this rollout is lost, though its numbers are finite."""
    if options.max_kl > 0 and metrics["objective/kl"] > options.max_kl:
        return Fault(
            f"the KL to the SFT model, {metrics['objective/kl']:.1f} nats, is above --max_kl",
            "try a higher --kl_coef or a lower --learning_rate, or read samples and raise --max_kl",
        )
    entropy = metrics["objective/entropy"] / metrics["response/length"]
    if options.min_entropy > 0 and entropy < options.min_entropy:
        return Fault(
            f"the entropy, {entropy:.4f} nats per token, is below --min_entropy",
            "try a higher --kl_coef or fewer --updates, or read samples and lower --min_entropy",
        )
    return None


class Guard:
    """Knows the last policy whose responses were sound, and saves it when a later one is lost."""

    def __init__(self, policy: Any, options: PPOOptions, last_good: Any, what: dict[str, Any]) -> None:
        """`last_good` are weights that a killed run had kept, or None; `what` is for `save_last_good`."""
        self.policy, self.options, self.what = policy, options, what
        self.last_good = last_good or copy_weights(policy)
        self.warned = False

    def check(self, metrics: dict[str, float], update: int) -> None:
        """Keeps a copy of the policy that these responses are from. If it is lost: Fault, or a warning, once."""
        if (fault := collapse(metrics, self.options)) is None:
            self.last_good = copy_weights(self.policy)
        elif self.options.on_collapse == "stop":
            raise fault
        elif not self.warned:
            self.warned = True
            console.print(f"ppo: warning: {self.save(fault, update)}", soft_wrap=True)

    def save(self, fault: Fault, update: int) -> str:
        """Writes runs/<run>/ppo.last_good. Returns what to tell the user."""
        now, reason = copy_weights(self.policy), f"{fault} in update {update}"
        self.policy.load_state_dict(self.last_good)
        kept = save_last_good(self.options.run_dir, "ppo", reason=reason, model=self.policy, **self.what)
        self.policy.load_state_dict(now)
        return f"{reason}: {fault.advice}; the policy from before is in {kept}"

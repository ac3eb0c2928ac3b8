"""Model cards: README.md in each checkpoint, which says what it is, what it was made from, and what it cannot do."""

from collections.abc import Mapping
from typing import Any

from rlhf_mini.core.files import is_number

WHAT = {
    "base": "A language model, pretrained on plain texts.",
    "judge": "A model with a scalar head that was pretrained on votes; a reward model starts from it.",
    "sft": "A language model, fine-tuned on demonstrations: step 1 of InstructGPT's recipe.",
    "rm": "A reward model, trained on ranked responses: step 2 of InstructGPT's recipe.",
    "ppo": "A language model, trained by PPO against a reward model: step 3 of InstructGPT's recipe.",
}
LIMITS = {
    "sft": "It imitates its demonstrations, their mistakes too, and states what it does not know.",
    "rm": "Its score says what the labelers of its rankings preferred, on prompts like theirs. It is no measure of "
    "truth, and a policy that is trained against it for too long gets high scores for bad responses.",
    "ppo": "It learned what its reward model scores high, which is not the same as what is right or harmless.",
}
# Metrics of PPO's last optimizer steps, which metrics.jsonl has, and which say nothing of the policy.
OF_THE_UPDATE = ("loss/", "policy/", "value/", "learning_rate", "value_learning_rate", "episodes_per_second")
DATA = ("base", "demonstrations", "ptx_texts", "rankings", "prompts", "init", "labelers", "reward")


def card(info: Mapping[str, Any], adapter: bool) -> str:
    """The card of the checkpoint with this stage.json."""
    from huggingface_hub import ModelCardData  # takes a while, for which --help should not wait

    stage, options = info["stage"], info["options"]
    head = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification" if stage in ("rm", "judge") else "text-generation",
        tags=["rlhf", "rlhf_mini", stage],
    )
    parents = [f"the {parent['stage']} in `{parent['path']}` ({parent['sha256'][:12]})" for parent in info["parents"]]
    data = [f"`--{name} {options[name]}`" for name in DATA if options.get(name) and name not in unread(options)]
    lines = ["---", head.to_yaml().strip(), "---", "", f"# {stage}: {options.get('run', 'rlhf_mini')}", ""]
    lines += [WHAT.get(stage, "A checkpoint."), ""]
    if adapter:
        lines += ["It is a LoRA adapter to what it was made from; `python -m rlhf_mini.models.export` merges it.", ""]
    if info.get("stopped"):
        lines += [f"Training stopped before its end: {info['stopped']}.", ""]
    lines += ["## Made from", ""]
    lines += [f"- {what}" for what in (*parents, *data)] + [
        f"- seed {info['seed']}, in {info['seconds']:,.0f} s, with "
        + ", ".join(f"{name} {number}" for name, number in info["versions"].items()),
        "",
    ]
    if figures := [row for name, value in info["metrics"].items() for row in rows(name, value)]:
        lines += ["## Metrics", "", "| metric | value |", "|---|---|", *figures, ""]
    lines += ["## Limits", "", LIMITS.get(stage, "It continues texts and follows no instructions."), ""]
    lines += ["Made to study RLHF: do not let it decide or advise. stage.json has all options and checksums.", ""]
    return "\n".join(lines)


def unread(options: Mapping[str, Any]) -> set[str]:
    """The options that say where other data would have come from."""
    sampling = {"base", "prompts", "labelers"} if options.get("rankings") else set()
    return sampling | ({"ptx_texts"} if options.get("ptx_coef") == 0 else set())


def rows(name: str, value: Any) -> list[str]:
    """A table row of a number, or of a share with its 95 % interval; none of OF_THE_UPDATE."""
    if name.startswith(OF_THE_UPDATE):
        return []
    if is_number(value):
        return [f"| {name} | {value:,} |" if isinstance(value, int) else f"| {name} | {value:.4g} |"]
    if isinstance(value, Mapping) and all(is_number(value.get(key)) for key in ("share", "low", "high")):
        return [f"| {name} | {value['share']:.3f} ({value['low']:.3f} to {value['high']:.3f}) |"]
    return []

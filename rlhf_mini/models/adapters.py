"""LoRA (Hu et al. 2021, arXiv 2106.09685): a low-rank change of each matrix is trained instead of the matrix.

    add_adapter(policy, options.lora_rank, sft.path, options.seed)   # from here on, only it is trained and saved
    policy = load_model(AutoModelForCausalLM, run_dir / "ppo")           # any checkpoint; an adapter is merged

A checkpoint that is an adapter keeps its own few weights and the path of what it was trained on. peft does the rest; it
is an optional dependency.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_mini.core.checkpoints import ADAPTER, known_by, read_stage_json
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import damaged, read_json
from rlhf_mini.models.base import folder_of, load_equipped

CONFIG = "adapter_config.json"
ALPHA = 2  # times the rank: the scale of the change


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("LoRA needs peft, which is not installed: run `pip install 'rlhf-mini[lora]'`") from None
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft reads it
    return peft


def add_adapter(model: PreTrainedModel, rank: int, base: Path, seed: int, new_tokens: Sequence[int] = ()) -> None:
    """Freezes the model and gives each of its linear layers an adapter of this rank; 0 leaves it as it is.

    Args:
        base: where the model was loaded from; saved with the adapter.
        seed: of the first of each pair of matrices, which is random; the second is zero.
        new_tokens: tokens whose embeddings are trained, too. A scalar head is trained as a whole.
    """
    if rank == 0:
        return
    peft = _peft()
    scalar = hasattr(model, "score")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=ALPHA * rank,
        target_modules="all-linear",
        exclude_modules=["score"] if scalar else None,
        modules_to_save=["score"] if scalar else None,
        trainable_token_indices=list(new_tokens) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng():  # of several processes, all draw the same
        torch.manual_seed(seed)
        adapter = peft.get_peft_model(model, config)
    config.base_model_name_or_path = str(base)
    vars(model)["adapter"] = adapter  # past Module's own __setattr__: it holds the model, not the other way round


def trained(model: PreTrainedModel) -> list[Parameter]:
    """The parameters that are trained: all of them, or with LoRA the adapter's."""
    return [each for each in model.parameters() if each.requires_grad]


def load_model(auto: Any, path: str | Path, **changes: Any) -> Any:
    """auto.from_pretrained(path), a model of transformers, with its adapter merged if the checkpoint is one.

    Raises:
        UserError: what the adapter was trained on is not there, or has changed.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        return auto.from_pretrained(path, **changes)
    base, config = base_of(path), AutoConfig.from_pretrained(path)
    if not (path / ADAPTER).is_file():
        raise damaged(path / ADAPTER)
    if (
        has_scalar_head(config)
        and (base / "config.json").is_file()
        and has_scalar_head(AutoConfig.from_pretrained(base))
    ):
        model = load_model(AutoModelForSequenceClassification, base, config=config)
    else:
        if (base / "stage.json").is_file():
            model = load_model(AutoModelForCausalLM, base)
        else:  # SFT has checked it, and said what it gets
            model = load_equipped(str(base), folder_of(str(base)))[0]
        model = with_scalar(model, config) if has_scalar_head(config) else model
    merged = _peft().PeftModel.from_pretrained(model, path).merge_and_unload()
    merged.config.update(config.to_dict())
    return merged


def has_scalar_head(config: Any) -> bool:
    return any("SequenceClassification" in name for name in config.architectures or ())


def with_scalar(model: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A language model with a random scalar head in place of its vocabulary head."""
    scalar: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    scalar.base_model.load_state_dict(model.base_model.state_dict())
    return scalar


def base_of(path: Path) -> Path:
    """What the adapter in `path` was trained on. It may have moved with its run."""
    recorded = read_json(path / CONFIG).get("base_model_name_or_path")
    if not isinstance(recorded, str):
        raise damaged(path / CONFIG)
    beside = [folder / Path(recorded).name for folder in path.parents[:3]]
    base = next((one for one in beside if (one / "stage.json").is_file()), Path(recorded))
    parents = read_stage_json(path).get("parents", [])
    now = known_by(read_stage_json(base)) if (base / "stage.json").is_file() else []
    if now and parents and not any(parent.get("files_sha256", parent["sha256"]) in now for parent in parents):
        raise UserError(f"{path} is an adapter to {base}, which has changed since: train it again")
    return base

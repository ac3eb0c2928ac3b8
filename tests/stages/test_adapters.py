"""LoRA: only the adapter is trained and saved, and whoever loads the checkpoint gets it merged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import hh, make_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.checkpoints import ADAPTER, WEIGHTS, load_checkpoint
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.models.adapters import add_adapter, load_model
from rlhf_mini.models.base import load_base
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Rows
from rlhf_mini.models.scoring import load_reward_model
from stages.ppo.options import PPOOptions
from stages.ppo.train import train_ppo
from stages.rm.options import RMOptions
from stages.rm.train import train_rm
from stages.sft.options import SFTOptions
from stages.sft.train import train_sft


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad(), forward_pass(model.eval()) as forward:
        found: torch.Tensor = forward(torch.tensor([5, 6, 7, 9, 8]), Rows([3, 2]))
    return found


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages are all adapters, from a Llama without pad token and chat template."""
    folder = tmp_path_factory.mktemp("lora")
    base, data = make_model(folder / "model", "llama"), hh(folder)
    shared: dict[str, Any] = {"run": "x", "runs_dir": str(folder / "runs"), "save_steps": 0, "lora_rank": 4}
    train_sft(SFTOptions(**shared, base=str(base), demonstrations=data, ptx_coef=0.0, batch_size=8, num_train_epochs=1,
                         show_every=0, learning_rate=1e-2))  # fmt: skip
    train_rm(RMOptions(**shared, rankings=data, demonstrations=data, init="sft", validation="", content="",
                       batch_size=8, num_train_epochs=1))  # fmt: skip
    train_ppo(PPOOptions(**shared, prompts=data, validation_prompts=data, ptx_coef=0.0, updates=2, episodes=8,
                         num_minibatches=2, warmup_updates=1, max_new_tokens=6, evaluation_prompts=4,
                         snapshot_steps=1))  # fmt: skip
    return folder / "runs" / "x"


def test_only_the_adapter_is_saved(chain: Path) -> None:
    for folder in (
        chain / "sft",
        chain / "rm",
        chain / "ppo",
        chain / "ppo" / "value_model",
        chain / "ppo" / "snapshots" / "0001",
    ):
        assert (folder / ADAPTER).is_file() and not (folder / WEIGHTS).exists(), folder
    for stage in ("sft", "rm", "ppo"):
        assert (
            load_checkpoint(chain / stage, stage).sha256
            == json.loads((chain / stage / "stage.json").read_text())["sha256"][ADAPTER]
        )


def test_the_adapters_learned_and_the_base_did_not(chain: Path) -> None:
    _, base, tokenizer = load_base(str(chain.parents[1] / "model"))
    sft, ppo = load_model(AutoModelForCausalLM, chain / "sft"), load_model(AutoModelForCausalLM, chain / "ppo")
    known = len(AutoTokenizer.from_pretrained(chain.parents[1] / "model"))
    old, new = base.get_input_embeddings().weight, sft.get_input_embeddings().weight
    assert torch.equal(old[:known], new[:known])  # frozen; the rest are the new tokens, which are trained
    assert len(tokenizer) - known == 3
    assert not torch.allclose(logits(sft), logits(base), atol=1e-3)
    assert not torch.allclose(logits(ppo), logits(sft), atol=1e-6)
    metrics = json.loads((chain / "sft" / "stage.json").read_text())["metrics"]
    assert metrics["validation_loss"] < metrics["validation_loss_before"] - 0.3


def test_a_reward_model_keeps_its_head_and_its_zero(chain: Path) -> None:
    model = load_reward_model(chain / "rm")
    info = json.loads((chain / "rm" / "stage.json").read_text())["metrics"]
    assert model.config.reward_mean == pytest.approx(info["reward_mean"]) and model.config.num_labels == 1
    again = load_reward_model(chain / "rm")
    assert torch.equal(model.score.weight, again.score.weight) and torch.equal(logits(model), logits(again))


def test_an_adapter_begins_as_no_change_and_is_merged_as_it_was(nano_base: Path, tmp_path: Path) -> None:
    for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        torch.manual_seed(0)
        model = auto.from_pretrained(nano_base, num_labels=1)
        before = logits(model)
        frozen = {id(each) for each in model.parameters()}
        add_adapter(model, 4, nano_base, seed=0)
        torch.testing.assert_close(logits(model), before)
        trained = [each for each in model.parameters() if each.requires_grad]
        assert 0 < sum(each.numel() for each in trained) < 20_000 and not any(id(each) in frozen for each in trained)


def test_a_base_that_has_changed_or_gone_is_one_sentence(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain, tmp_path / "x")  # a copied run finds its own SFT
    moved = load_model(AutoModelForCausalLM, tmp_path / "x" / "ppo")
    assert torch.equal(logits(moved), logits(load_model(AutoModelForCausalLM, chain / "ppo")))
    info = json.loads((tmp_path / "x" / "sft" / "stage.json").read_text())
    info["sha256"][ADAPTER] = "0"
    (tmp_path / "x" / "sft" / "stage.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="has changed since: train it again"):
        load_model(AutoModelForCausalLM, tmp_path / "x" / "ppo")
    shutil.copytree(chain / "sft", tmp_path / "alone")
    write_jsonl(tmp_path / "nothing.jsonl", [])
    config = json.loads((tmp_path / "alone" / "adapter_config.json").read_text()) | {
        "base_model_name_or_path": "no/where"
    }
    (tmp_path / "alone" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="neither a folder nor in the local cache"):
        load_model(AutoModelForCausalLM, tmp_path / "alone")

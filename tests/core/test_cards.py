"""Model cards, and checkpoints for other programs."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.cards import card
from rlhf_mini.core.checkpoints import load_checkpoint, read_stage_json
from rlhf_mini.core.console import UserError
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.models.export import export, push

INFO: dict[str, Any] = {
    "stage": "rm", "options": {"run": "mine", "rankings": "people.jsonl", "prompts": "p.jsonl"}, "seed": 3,
    "seconds": 1234.5,
    "versions": {"torch": "2.13"}, "parents": [{"stage": "sft", "path": "runs/mine/sft", "sha256": "0123456789abcdef"}],
    "metrics": {"pairs": 33499, "loss/policy": 0.1, "names": "x",
                "accuracy": {"share": 0.6579, "low": 0.6375, "high": 0.6791, "pairs": 9}},
    "stopped": "the loss was not a finite number at step 7",
}  # fmt: skip


def test_a_card_says_what_from_what_and_what_not() -> None:
    text = card(INFO, adapter=True)
    read = ModelCard(text).data.to_dict()
    assert read["library_name"] == "peft" and read["pipeline_tag"] == "text-classification" and "rm" in read["tags"]
    for part in ("# rm: mine", "LoRA adapter", "Training stopped before its end: the loss was not", "in 1,234 s",
                 "the sft in `runs/mine/sft` (0123456789ab)", "`--rankings people.jsonl`", "| pairs | 33,499 |",
                 "| accuracy | 0.658 (0.637 to 0.679) |", "no measure of truth"):  # fmt: skip
        assert part in text, part
    assert "names" not in text and "loss/policy" not in text and "--prompts" not in text  # given rankings, none is read
    texts = {ptx_coef: card(INFO | {"options": {"ptx_coef": ptx_coef, "ptx_texts": "t"}}, False) for ptx_coef in (0, 1)}
    assert "--ptx_texts t" in texts[1] and "--ptx_texts" not in texts[0]


def test_every_checkpoint_has_one_that_may_be_edited(nano_run: CompareOptions) -> None:
    for stage in ("sft", "rm", "ppo"):
        folder = nano_run.run_dir / stage
        assert ModelCard.load(folder / "README.md").data.library_name == "transformers"
        (folder / "README.md").write_text("mine")
        load_checkpoint(folder, stage)


def test_an_exported_model_is_the_same(nano_run: CompareOptions, tmp_path: Path) -> None:
    for stage, auto in (("ppo", AutoModelForCausalLM), ("rm", AutoModelForSequenceClassification)):
        export(nano_run.run_dir / stage, tmp_path / f"{stage}-out")
        before, after = (auto.from_pretrained(path) for path in (nano_run.run_dir / stage, tmp_path / f"{stage}-out"))
        assert all(
            torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
        )
        assert AutoTokenizer.from_pretrained(tmp_path / f"{stage}-out").chat_template
        assert not read_stage_json(tmp_path / f"{stage}-out") and not list(tmp_path.glob("*.partial"))
    with pytest.raises(UserError, match="is there already"):
        export(nano_run.run_dir / "ppo", tmp_path / "ppo-out")
    with pytest.raises(UserError, match="no finished checkpoint"):
        export(tmp_path / "nothing", tmp_path / "new")


def test_nothing_is_uploaded_unless_the_network_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda _, name, **how: asked.append((name, how)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda _, **how: asked.append(how))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=0"):
        push(tmp_path, "me/mine")
    assert not asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    push(tmp_path, "me/mine")
    assert asked == [("me/mine", {"private": True, "exist_ok": True}), {"repo_id": "me/mine", "folder_path": tmp_path}]

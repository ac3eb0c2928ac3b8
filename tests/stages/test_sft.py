"""SFT end to end on a tiny random base, and the loss that it writes out."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.options import parse_options
from rlhf_mini.models.sampling import encode_response
from rlhf_mini.training.trainer import bucketed_order, trainer_settings
from stages.sft.options import SFTOptions
from stages.sft.train import CompletionTrainer, set_residual_dropout, to_dataset, train_sft


def demonstration(question: str, answer: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
        "check": {"further": "keys travel along"},
    }


def options_for(base: Path, folder: Path, demonstrations: list[dict], **changes) -> SFTOptions:
    write_jsonl(folder / "demonstrations.jsonl", demonstrations)
    defaults = dict(
        base=str(base),
        demonstrations=str(folder / "demonstrations.jsonl"),
        runs_dir=str(folder / "runs"),
        run="t",
        batch_size=8,
        learning_rate=1e-2,
        show_every=5,
        max_new_tokens=8,
    )
    return SFTOptions(**{**defaults, **changes})


def test_learns_from_demonstrations_and_leaves_a_checkpoint(nano_base, tmp_path, capsys):
    demonstrations = [demonstration(f"Say {n}", "It is so." if n % 2 else "It is green.") for n in range(80)]
    options = options_for(nano_base, tmp_path, demonstrations, dropout=0.1, num_train_epochs=3)
    train_sft(options)

    folder = tmp_path / "runs" / "t" / "sft"
    info = json.loads((folder / "stage.json").read_text())
    base = json.loads((nano_base / "stage.json").read_text())
    assert info["stage"] == "sft" and info["parents"][0]["sha256"] == base["sha256"]["model.safetensors"]
    assert info["metrics"]["validation_loss"] < 0.5 * info["metrics"]["validation_loss_before"]
    assert (info["metrics"]["demonstrations"], info["metrics"]["validation_demonstrations"]) == (76, 4)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.resid_pdrop == 0  # the option is for training only
    assert AutoTokenizer.from_pretrained(folder).chat_template

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 30 and losses[-1] < losses[0]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates[0] == pytest.approx(1e-2) and rates[-1] < 0.15 * rates[0]  # cosine to 10 %
    assert "model: " in capsys.readouterr().out


def trainer_on(base: Path, folder: Path, cls: type[SFTTrainer]) -> SFTTrainer:
    data: Dataset = to_dataset([demonstration("Say it", "It is green."), demonstration("Name the capital", "Paris.")])
    settings = trainer_settings(SFTOptions(batch_size=2), folder)
    return cls(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=SFTConfig(**settings, completion_only_loss=True),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(base),
    )


def test_the_loss_is_trls_own_and_counts_completions_only(nano_base, tmp_path):
    results = []
    for cls in (CompletionTrainer, SFTTrainer):
        trainer = trainer_on(nano_base, tmp_path, cls)
        batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
        tokens = int((batch["labels"] != -100).sum())
        losses = [
            trainer.compute_loss(trainer.model, dict(batch)),
            trainer.compute_loss(trainer.model, dict(batch), False, 7),
        ]
        losses[0].backward()
        gradient = trainer.model.transformer.h[0].attn.c_attn.weight.grad
        results.append((losses, gradient, tokens))
    torch.testing.assert_close(results[0][0][0], results[1][0][0])
    torch.testing.assert_close(results[0][0][1], results[1][0][1])
    torch.testing.assert_close(results[0][1], results[1][1])
    # the completions' tokens with their end of text, nothing of the prompts
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    assert results[0][2] == sum(len(encode_response(tokenizer, text)) for text in ("It is green.", "Paris."))


def test_nan_stops_keeps_the_last_good_weights_and_says_what_to_try(nano_base, tmp_path, monkeypatch):
    real, calls = CompletionTrainer.compute_loss, []

    def breaks(self, model, inputs, *args, **kwargs):
        loss = real(self, model, inputs, *args, **kwargs)
        if not model.training:
            return loss
        calls.append(1)
        return loss * float("nan") if len(calls) > 3 else loss

    monkeypatch.setattr(CompletionTrainer, "compute_loss", breaks)
    many = [demonstration(f"Say {n}", "It is so.") for n in range(80)]
    options = options_for(nano_base, tmp_path, many, save_steps=2)  # the same command would not fare better
    with pytest.raises(UserError, match="step 4: try a lower --learning_rate"):
        train_sft(options)
    run = tmp_path / "runs" / "t"
    assert sorted(path.name for path in run.iterdir()) == ["sft.last_good"]
    model = AutoModelForCausalLM.from_pretrained(run / "sft.last_good")
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert "step 4" in json.loads((run / "sft.last_good" / "stage.json").read_text())["stopped"]


def test_ctrl_c_leaves_nothing_half_written(nano_base, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(CompletionTrainer, "compute_loss", interrupted)
    options = options_for(nano_base, tmp_path, [demonstration(f"Say {n}", "It is so.") for n in range(20)])
    with pytest.raises(KeyboardInterrupt):
        train_sft(options)
    assert not (tmp_path / "runs" / "t").exists()


def test_a_demonstration_longer_than_the_context_is_named(nano_base, tmp_path):
    many = [demonstration(f"Say {n}", "It is so.") for n in range(20)]
    options = options_for(nano_base, tmp_path, [*many, demonstration("Count for long", "zx " * 200)])
    with pytest.raises(UserError, match=r"'Count for long' has .* tokens, but the model's context has 192"):
        train_sft(options)


def test_what_cannot_be_trained_is_told(nano_base, tmp_path):
    options = options_for(nano_base, tmp_path, [demonstration("Say it", "It is so.")])
    with pytest.raises(UserError, match="too few"):
        train_sft(options)
    with pytest.raises(UserError, match="no base checkpoint"):
        train_sft(options_for(tmp_path / "nowhere", tmp_path, [demonstration("Say it", "It is so.")] * 2))
    with pytest.raises(UserError, match="no residual dropout"):
        set_residual_dropout(torch.nn.Linear(2, 2), 0.2)


def test_options(capsys):
    options = parse_options(SFTOptions, ["--config", "stages/sft/nano.yaml", "--seed", "3"])
    assert (options.run, options.seed, options.run_dir) == ("nano", 3, Path("runs/nano"))
    for wrong, message in ((["--validation_share", "1.5"], "between 0 and 1"), (["--save_steps", "-1"], "negative")):
        with pytest.raises(SystemExit) as stopped:
            parse_options(SFTOptions, wrong)
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_buckets_hold_everything_once_with_little_padding_and_in_random_order():
    rng = random.Random(0)
    lengths = [rng.randint(5, 120) for _ in range(1001)]
    generator = torch.Generator().manual_seed(0)
    order = bucketed_order(lengths, 16, generator)
    assert sorted(order) == list(range(1001))
    batches = [order[at : at + 16] for at in range(0, 1001, 16)]
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    means = [sum(lengths[index] for index in batch) / len(batch) for batch in batches]
    rising = sum(one < other for one, other in pairwise(means))
    assert 0.3 < rising / len(means) < 0.7
    assert bucketed_order(lengths, 16, generator) != order  # another epoch, another order
    assert sorted(bucketed_order([3, 1, 2], 16, generator)) == [0, 1, 2]

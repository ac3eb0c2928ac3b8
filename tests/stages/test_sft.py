"""SFT end to end on a tiny random base, and the loss that it writes out."""

import json
import random
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer
from trl_oracle import assert_trains_like_trl, trl_settings

from rlhf_mini.core import processes
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Demonstration
from rlhf_mini.core.files import read_jsonl, write_jsonl
from rlhf_mini.core.options import parse_options
from rlhf_mini.models.scoring import text_loss
from rlhf_mini.models.text import encode_demonstrations, encode_response, encode_texts
from rlhf_mini.training.batches import length_bucketed_batches
from rlhf_mini.training.loop import Objective
from stages.sft import train as sft
from stages.sft.options import SFTOptions
from stages.sft.train import Example, completion_loss, set_residual_dropout, train_sft


def demonstration(question: str, answer: str) -> Demonstration:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
        "check": {"further": "keys travel along"},
    }


def options_for(base: Path, folder: Path, demonstrations: list[Demonstration], **changes) -> SFTOptions:
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
        ptx_coef=0.0,
    )
    return SFTOptions(**{**defaults, **changes})


def text_loss_after(base: Path, folder: Path, **changes: Any) -> tuple[float, list[dict[str, Any]]]:
    """The LM loss on the texts that were mixed in, or left out, and the lines of metrics.jsonl."""
    texts = [f"The moon is {colour}." for colour in ("red", "blue", "green", "grey") * 10]
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in texts])
    demonstrations = [demonstration(f"Say {n}", "It is so.") for n in range(40)]
    options = options_for(base, folder, demonstrations, ptx_texts=str(folder / "texts.jsonl"), **changes)
    train_sft(options)
    out = options.run_dir / "sft"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        loss = text_loss(model, encode_texts(model, tokenizer, texts)).item()
    return loss, read_jsonl(out / "metrics.jsonl")


def test_pretraining_texts_can_be_mixed_in(nano_base, tmp_path):
    without, lines = text_loss_after(nano_base, tmp_path / "without")
    assert not any("loss/ptx" in line for line in lines)
    mixed, lines = text_loss_after(nano_base, tmp_path / "mixed", ptx_coef=1.0)
    logged = [line["loss/ptx"] for line in lines if "loss/ptx" in line]
    assert mixed < 0.8 * without and logged[-1] < 0.8 * logged[0]
    again, _ = text_loss_after(nano_base, tmp_path / "again", ptx_coef=1.0)
    assert again == mixed


def test_one_text_is_too_few_to_mix_in(nano_base, tmp_path):
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "The moon is red."}])
    options = options_for(nano_base, tmp_path, [demonstration(f"Say {n}", "So.") for n in range(4)], ptx_coef=1.0)
    options.ptx_texts = str(tmp_path / "texts.jsonl")
    with pytest.raises(UserError, match="has one text, which is held out: --ptx_coef needs more"):
        train_sft(options)


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


def encode(model: PreTrainedModel, tokenizer: Any, demonstrations: list[Demonstration]) -> list[Example]:
    return [Example(*ids) for ids in encode_demonstrations(model, tokenizer, demonstrations)]


def trl_trainer(tokenizer: Any, model: PreTrainedModel, settings: dict[str, Any], dataset: Dataset) -> SFTTrainer:
    config = SFTConfig(**settings, completion_only_loss=True)
    return SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)


def trl_rows(demonstrations: list[Demonstration]) -> list[dict[str, Any]]:
    """TRL's conversational prompt-completion format, without further keys."""
    return [{"prompt": each["prompt"], "completion": each["completion"]} for each in demonstrations]


def test_the_loss_is_trls_own_and_counts_completions_only(nano_base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    demonstrations = [demonstration("Say it", "It is green."), demonstration("Name the capital", "Paris.")]
    ours, theirs = [AutoModelForCausalLM.from_pretrained(nano_base) for _ in range(2)]
    settings = trl_settings(SFTOptions(batch_size=2), tmp_path)
    trainer = trl_trainer(tokenizer, theirs, settings, Dataset.from_list(trl_rows(demonstrations)))
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    examples = encode(ours, tokenizer, demonstrations)

    losses = [completion_loss(ours, examples), trainer.compute_loss(theirs, dict(batch))]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    gradients = [model.transformer.h[0].attn.c_attn.weight.grad for model in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    # the completions' tokens with their end of text, nothing of the prompts
    number = sum(len(encode_response(tokenizer, text)) for text in ("It is green.", "Paris."))
    assert sum(len(example.completion_ids) for example in examples) == number == (batch["labels"] != -100).sum()


def test_with_bf16_the_loss_is_computed_in_float32(nano_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(nano_base), AutoTokenizer.from_pretrained(nano_base)
    examples = encode(model, tokenizer, [demonstration("Say it", "It is green.")])
    exact = completion_loss(model, examples)
    monkeypatch.setattr(processes, "_precision", "bf16")
    rough = completion_loss(model, examples)
    assert rough.dtype == torch.float32
    assert rough.item() != exact.item() and rough.item() == pytest.approx(exact.item(), abs=5e-3)


def test_trains_as_trl_does(nano_base, tmp_path):
    """An epoch and a half, in batches of several lengths, with everything that an option can change."""
    rng = random.Random(0)
    answers = [" ".join(rng.choices(["It", "is", "green", "Paris"], k=rng.randint(1, 12))) for _ in range(24)]
    demonstrations = [demonstration("Say " * rng.randint(1, 9) + str(n), answer) for n, answer in enumerate(answers)]
    options = SFTOptions(
        batch_size=4, num_train_epochs=1.5, learning_rate=3e-3, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.9,
        save_steps=0, seed=5,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    model = AutoModelForCausalLM.from_pretrained(nano_base, dtype=torch.float64)
    assert_trains_like_trl(
        lambda *arguments: trl_trainer(tokenizer, *arguments),
        model,
        trl_rows(demonstrations),
        encode(model, tokenizer, demonstrations),
        lambda model, batch: Objective(completion_loss(model, batch)),
        options,
        tmp_path,
    )


def test_nan_stops_keeps_the_last_good_weights_and_says_what_to_try(nano_base, tmp_path, monkeypatch):
    steps = count(1)

    def breaks(model, batch):
        loss = completion_loss(model, batch)
        return loss * float("nan") if model.training and next(steps) > 3 else loss

    monkeypatch.setattr(sft, "completion_loss", breaks)
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

    monkeypatch.setattr(sft, "completion_loss", interrupted)
    options = options_for(nano_base, tmp_path, [demonstration(f"Say {n}", "It is so.") for n in range(20)])
    with pytest.raises(KeyboardInterrupt):
        train_sft(options)
    assert not (tmp_path / "runs" / "t").exists()


def test_what_is_longer_than_the_context_is_dropped_or_cut_and_counted(nano_base, tmp_path, capsys):
    many = [demonstration(f"Say {n}", "It is so.") for n in range(20)]
    long = [demonstration("zx " * 200 + "Say it", "It is so."), demonstration("Count for long", "zx " * 200)]
    train_sft(options_for(nano_base, tmp_path, [*many, *long]))
    assert "sft: 2 demonstrations are longer than the model's context of 192 tokens" in capsys.readouterr().out
    train_sft(options_for(nano_base, tmp_path, [*many, *long], too_long="cut"))
    said = capsys.readouterr().out
    assert "sft: 1 demonstrations are longer" in said and "the prompts of 1 demonstrations begin later" in said
    with pytest.raises(UserError, match="too few demonstrations fit the model's context of 192 tokens"):
        train_sft(options_for(nano_base, tmp_path, 5 * long))


def test_what_cannot_be_trained_is_told(nano_base, tmp_path):
    options = options_for(nano_base, tmp_path, [demonstration("Say it", "It is so.")])
    with pytest.raises(UserError, match="all of one prompt"):
        train_sft(options)
    with pytest.raises(UserError, match="no base checkpoint"):
        train_sft(options_for(tmp_path / "nowhere", tmp_path, [demonstration("Say it", "It is so.")] * 2))
    with pytest.raises(UserError, match="no residual dropout"):
        set_residual_dropout(torch.nn.Linear(2, 2), 0.2)


def test_options(capsys):
    options = parse_options(SFTOptions, ["--config", "stages/sft/nano.yaml", "--seed", "3"])
    assert (options.run, options.seed, options.run_dir) == ("nano", 3, Path("runs/nano"))
    for wrong, message in (
        (["--validation_share", "1.5"], "--validation_share must be less than 1, not 1.5"),
        (["--save_steps", "-1"], "--save_steps must be at least 0, not -1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            parse_options(SFTOptions, wrong)
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_batches_hold_everything_once_with_little_padding_and_in_random_order():
    rng = random.Random(0)
    lengths = [rng.randint(5, 120) for _ in range(1001)]
    batches = length_bucketed_batches(lengths, 16, 2 * 63, seed=0)
    first, second = batches[:63], batches[63:]
    for epoch in (first, second):
        assert sorted(chain(*epoch)) == list(range(1001))
        assert [len(batch) for batch in epoch] == [16] * 62 + [9]
    assert first != second  # another epoch, another order
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in first)
    assert padded < 1.1 * sum(lengths)
    means = [sum(lengths[index] for index in batch) / len(batch) for batch in first]
    rising = sum(one < other for one, other in pairwise(means))
    assert 0.3 < rising / len(means) < 0.7
    assert [sorted(batch) for batch in length_bucketed_batches([3, 1, 2], 16, 2, seed=0)] == [[0, 1, 2]] * 2


def test_the_seed_alone_decides_the_batches():
    lengths = [7 * n % 31 for n in range(100)]
    batches = length_bucketed_batches(lengths, 4, 75, seed=0)
    assert length_bucketed_batches(lengths, 4, 30, seed=0) == batches[:30]  # whatever the length of the training
    assert batches[:25] != batches[25:50] != batches[50:] != batches[:25]
    assert length_bucketed_batches(lengths, 4, 25, seed=1) != batches[:25]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.96])
@pytest.mark.parametrize("number", [2, 10])
def test_some_are_held_out_and_some_are_left_to_train_on(number: int, share: float) -> None:
    all_of_them = [demonstration(str(n), "a") for n in range(number)]
    training, held_out = sft.split(all_of_them, share, seed=0)
    assert training and held_out and len(training) + len(held_out) == number


def test_all_demonstrations_of_a_prompt_are_on_one_side() -> None:
    repeated = [demonstration(f"Say {n}", f"answer {m}") for n in range(20) for m in range(10)]
    training, held_out = sft.split(repeated, 0.1, seed=0)
    prompts = [{each["prompt"][0]["content"] for each in part} for part in (training, held_out)]
    assert not prompts[0] & prompts[1] and len(held_out) == 20 and len(training) == 180
    with pytest.raises(UserError, match="all of one prompt: add some of another"):
        sft.split(repeated[:10], 0.1, seed=0)


def test_a_shown_sample_fits_into_the_context(nano_base, tmp_path, capsys):
    """Prompts that leave room for their short answers, but not for max_new_tokens."""
    demonstrations = [demonstration(f"Say {n} " + "zx " * 58, "So.") for n in range(100, 112)]
    options = options_for(nano_base, tmp_path, demonstrations, max_new_tokens=150, show_every=1)
    train_sft(options)
    assert (options.run_dir / "sft" / "stage.json").is_file() and "model: " in capsys.readouterr().out


def test_an_error_that_is_not_about_the_save_keeps_it(nano_base, tmp_path, monkeypatch):
    def breaks(*_: Any) -> str:
        raise UserError("the display is broken")

    demonstrations = [demonstration(f"Say {n}", "It is so.") for n in range(40)]
    options = options_for(nano_base, tmp_path, demonstrations, save_steps=2, show_every=5)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="display"):
        patch.setattr(sft, "excerpt", breaks)
        train_sft(options)
    assert (options.run_dir / "sft.resume.safetensors").is_file()

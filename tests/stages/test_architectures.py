"""All three stages from other people's models: random ones of each architecture, with a tokenizer made on the spot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import SHAPES, hh, make_model, make_tokenizer
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from rlhf_mini.chat.answers import Chat
from rlhf_mini.chat.options import ChatOptions
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.inputs import ROOT
from rlhf_mini.core.options import parse_options
from rlhf_mini.data.__main__ import inspect
from rlhf_mini.doctor.__main__ import diagnose
from rlhf_mini.evaluation.runs import find_checkpoints
from rlhf_mini.models.base import load_base, new_tokens
from rlhf_mini.models.text import encode_plain
from stages.ppo.options import PPOOptions
from stages.ppo.train import train_ppo
from stages.rm.options import RMOptions
from stages.rm.train import train_rm
from stages.sft.options import SFTOptions
from stages.sft.train import train_sft


def chain(folder: Path, base: Path, data: str, **more: Any) -> Path:
    """SFT, RM and PPO in a few steps."""
    shared: dict[str, Any] = {"run": "x", "runs_dir": str(folder / "runs"), "save_steps": 0, **more}
    train_sft(SFTOptions(**shared, base=str(base), demonstrations=data, ptx_coef=0.0, batch_size=8, num_train_epochs=1,
                         show_every=0))  # fmt: skip
    train_rm(RMOptions(**shared, rankings=data, demonstrations=data, init="sft", validation="", content="",
                       batch_size=8, num_train_epochs=1))  # fmt: skip
    train_ppo(PPOOptions(**shared, prompts=data, validation_prompts=data, ptx_coef=0.0, ptx_texts="", updates=2,
                         episodes=8, num_minibatches=2, warmup_updates=1, max_new_tokens=6,
                         evaluation_prompts=4))  # fmt: skip
    return folder / "runs" / "x"


@pytest.mark.parametrize("name", SHAPES)
def test_the_chain_of_an_architecture(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_model(tmp_path / "model", name)
    run = chain(tmp_path, base, hh(tmp_path))
    said = capsys.readouterr().out
    assert "gets a pad token and a chat template" in said
    assert "is in the format hh-rlhf: 201 demonstrations; 1 of 202 records are left out, the first is line 202" in said
    assert "1 demonstrations are longer than the model's context of 128 tokens" in said
    for stage in ("sft", "ppo"):
        tokenizer, model = AutoTokenizer.from_pretrained(run / stage), AutoModelForCausalLM.from_pretrained(run / stage)
        assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id) and model.config.model_type == name
        batch = tokenizer(["What is a kiwi?", "Say"], padding=True, return_tensors="pt", return_token_type_ids=False)
        assert batch["attention_mask"][1, 0] == 0  # padded on the left
        one = tokenizer("Say", return_tensors="pt", return_token_type_ids=False)
        alone, together = (model.generate(**each, max_new_tokens=5, do_sample=False) for each in (one, batch))
        alone, together = alone[0, one["input_ids"].shape[1] :], together[1, batch["input_ids"].shape[1] :]
        assert together[: len(alone)].tolist() == alone.tolist()
    generate = pipeline("text-generation", model=str(run / "ppo"))
    assert generate("Say", max_new_tokens=3)[0]["generated_text"].startswith("Say")
    assert AutoModelForSequenceClassification.from_pretrained(run / "rm").config.num_labels == 1
    of_rm, of_ppo = (json.loads((run / stage / "stage.json").read_text())["metrics"] for stage in ("rm", "ppo"))
    assert of_rm["accuracy/rankings"]["pairs"] > 0 and of_rm["score_std"] > 0  # of the held-out rankings
    assert "sampling for validation" not in said
    assert "validation/kl" in of_ppo and "validation/ppo_text_loss" not in of_ppo and "LM loss" not in said
    # What asks about the mini world says that it does not apply.
    with pytest.raises(UserError, match=f"x began with {base}, a model from elsewhere: this command asks"):
        find_checkpoints(run, "data/base")
    with pytest.raises(UserError, match="not with the base in data/base: chat with sft and ppo"):
        Chat(ChatOptions(run="x", runs_dir=str(run.parent))).load("base")
    diagnose(run)
    assert "evaluation.compare" not in capsys.readouterr().out


@pytest.mark.lessons  # a minute where the processor has no bfloat16 instructions
@pytest.mark.parametrize("name", ["gpt2", "llama"])  # the written-out forward pass, and the general one
def test_bf16_computes_the_same_roughly_and_keeps_weights_in_float32(tmp_path: Path, name: str) -> None:
    base, data = make_model(tmp_path / "model", name), hh(tmp_path)
    runs = [chain(tmp_path / precision, base, data, precision=precision) for precision in ("no", "bf16")]
    for stage, key in (("sft", "validation_loss"), ("rm", "reward_mean"), ("ppo", "policy/entropy")):
        exact, rough = (json.loads((run / stage / "stage.json").read_text())["metrics"][key] for run in runs)
        assert exact != rough and exact == pytest.approx(rough, abs=0.05)
        weights = load_file(runs[1] / stage / "model.safetensors")
        assert all(weight.dtype == torch.float32 for weight in weights.values())


def tree(n: int) -> dict[str, Any]:
    """A prompt with three ranked replies, the best of which was asked something more."""
    replies = [
        {"message_id": f"{n}.{place}", "role": "assistant", "text": text, "rank": place, "replies": []}
        for place, text in enumerate(["It is a bird.", "A bird", "Look it up!"])
    ]
    replies[0]["replies"] = [{"message_id": f"{n}.3", "role": "prompter", "text": "Where?", "replies": [
        {"message_id": f"{n}.4", "role": "assistant", "text": "There.", "replies": []}]}]  # fmt: skip
    return {"message_tree_id": f"{n}", "prompt": {"message_id": f"{n}", "role": "prompter", "replies": replies,
                                                  "text": f"What is kiwi {n}?"}}  # fmt: skip


def test_the_chain_from_a_tree_of_messages_and_from_an_array_in_korean(tmp_path: Path) -> None:
    base = make_model(tmp_path / "model", "llama")
    write_jsonl(tmp_path / "trees.jsonl", [tree(n) for n in range(200)])
    run = chain(tmp_path, base, str(tmp_path / "trees.jsonl"))
    counts = [json.loads((run / stage / "stage.json").read_text())["metrics"] for stage in ("sft", "rm")]
    assert counts[0]["demonstrations"] + counts[0]["validation_demonstrations"] == 400
    assert counts[1]["rankings"] + counts[1]["rankings_held_out"] == 200 and counts[1]["pairs"] == 3 * 180

    answers = {"completion_0": "새입니다.", "completion_1": "찾아보세요!", "completion_2": "새", "ranking": [0, 2, 1]}
    array = [{"prompt": f"키위 {n}은 무엇입니까?", **answers} for n in range(200)]
    (tmp_path / "ko.jsonl").write_text(json.dumps(array, ensure_ascii=False, indent=1), encoding="utf-8")
    run = chain(tmp_path / "ko", base, str(tmp_path / "ko.jsonl"))
    ranking = json.loads((run / "rm" / "rankings.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert ranking["responses"][0] == "새입니다." and ranking["ranks"] == [1, 3, 2]


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_options(preset: Path) -> None:
    for options in (SFTOptions, RMOptions, PPOOptions):
        changed = parse_options(options, ["--config", str(preset)])
        assert changed != options()


def test_a_model_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    make_model(tmp_path / "sliding", "mistral", sliding_window=2)
    with pytest.raises(UserError, match="sliding window"):
        load_base(str(tmp_path / "sliding"))
    pickled = make_model(tmp_path / "pickled", "gpt2")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="its weights are pickles, which can run code"):
        load_base(str(pickled))
    with pytest.raises(UserError, match="neither a folder nor in the local cache"):
        load_base("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no safetensors file"):
        load_base(str(tmp_path / "empty"))
    broken = make_model(tmp_path / "broken", "gpt2")
    (broken / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match="no causal language model"):
        load_base(str(broken))


def test_a_template_that_ends_no_response_is_exchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model(tmp_path / "model", "llama", attention_dropout=0.5)
    tokenizer = make_tokenizer(folder, pad_token="<|endoftext|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    _, model, equipped = load_base(str(folder))
    assert "another chat template (its own fails" in capsys.readouterr().out
    assert equipped.pad_token_id != equipped.eos_token_id and model.config.attention_dropout == 0
    assert model.get_input_embeddings().weight.shape[0] == len(equipped)
    assert equipped.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "<|user|> Hi\n"


def test_a_gpt2_may_have_another_tokenizer_than_gpt2s(tmp_path: Path) -> None:
    """KoGPT2 has a tokenizer.json and nothing that says which class reads it; GPT-2's would lose the Korean."""
    folder = make_model(tmp_path / "model", "gpt2")
    saying = "오늘 날씨가 좋습니다."
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.train_from_iterator([saying], trainers.BpeTrainer(special_tokens=["</s>", "<unk>"], show_progress=False))
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    assert AutoTokenizer.from_pretrained(folder).tokenize(saying) == ["."]
    base, _, tokenizer = load_base(str(folder))
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        (ids,) = encode_plain(each, [saying])
        assert each.decode(ids) == saying and each.eos_token == "</s>"
    assert tokenizer.convert_ids_to_tokens(new_tokens(base, tokenizer)[0]) == "<|pad|>"


def test_inspect_measures_in_the_tokens_of_any_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_model(tmp_path / "model", "gpt2")
    inspect(hh(tmp_path), str(base), examples=0, strict=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "tokens" in said and "context of" in said
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it has no config"):
        inspect(hh(tmp_path), str(tmp_path / "empty"), examples=0, strict=False)


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_held_out_rankings_may_be_longer_than_the_context(tmp_path: Path, too_long: Any) -> None:
    base, data = make_model(tmp_path / "model", "gpt2"), str(tmp_path / "rankings.jsonl")
    records = [{"prompt": f"{n} " * (200 if n % 2 else 1), "responses": ["Yes.", "No."], "ranks": [1, 2]}
               for n in range(100, 140)]  # fmt: skip
    write_jsonl(Path(data), records)
    shared: dict[str, Any] = {"runs_dir": str(tmp_path / "runs"), "save_steps": 0, "too_long": too_long}
    train_sft(SFTOptions(**shared, base=str(base), demonstrations=data, ptx_coef=0.0, num_train_epochs=1, show_every=0))
    train_rm(RMOptions(**shared, rankings=data, demonstrations=data, init="sft", validation="", content="",
                       heldout_share=0.5))  # fmt: skip
    found = json.loads((tmp_path / "runs" / "default" / "rm" / "stage.json").read_text())["metrics"]
    assert found["rankings"] + found["rankings_held_out"] == (20 if too_long == "drop" else 40)
    assert found["rankings"] == found["pairs"] and found["accuracy/rankings"]["pairs"] == found["rankings_held_out"] > 0

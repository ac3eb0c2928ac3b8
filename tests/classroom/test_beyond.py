"""TRL's trainers see the tokens and the log-probabilities that this project means, and stop at the KL."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_mini.classroom import beyond
from rlhf_mini.classroom.beyond import BeyondOptions, Point, StopAtKL, make_trainer
from rlhf_mini.core.examples import Ranking, Response
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.models.scoring import response_logprobs
from rlhf_mini.models.text import encode_prompts, encode_response, load_tokenizer

OPTIONS = BeyondOptions(steps=2, every=1, prompts=4, pairs=3, samples=16, max_new_tokens=6)
PROMPT = [{"role": "user", "content": "What colour is a kiwi inside?"}]
CHAT = [*PROMPT, {"role": "assistant", "content": "It is green."}, {"role": "user", "content": "Name\nParis."}]
RANKINGS: list[Ranking] = [
    # SFT's own responses first, then one of the base and one to another prompt
    {"prompt": PROMPT, "responses": ["It is green.", "It is", "Base!", "Paris."], "ranks": [1, 2, 4, 3],
     "ended": [True, False, True, True]},
    {"prompt": CHAT, "responses": ["Green", "It is Paris.", "Base!", "Green."], "ranks": [3, 1, 4, 2],
     "ended": [True, True, True, True]},
    {"prompt": PROMPT, "responses": [" It is green. ", "", "Base!", "Paris."], "ranks": [1, 2, 3, 3],
     "ended": [True, True, False, True]},
]  # fmt: skip
PAIRS = [  # (prompt, chosen, ended, rejected, ended)
    (PROMPT, "It is green.", True, "It is", False),
    (CHAT, "It is Paris.", True, "Green", True),
    (PROMPT, " It is green. ", True, "", True),
]


@pytest.fixture
def run_dir(nano_run: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose reward model was trained on RANKINGS. RL samples responses to four prompts of different lengths."""
    rm = nano_run.run_dir / "rm"
    info = json.loads((rm / "stage.json").read_text())
    info["options"] |= {"rankings": "", "base": "data/base", "exchange": True}
    (rm / "stage.json").write_text(json.dumps(info))
    write_jsonl(rm / "rankings.jsonl", RANKINGS)
    monkeypatch.setattr(beyond, "PROMPTS", nano_run.split)
    monkeypatch.setattr(beyond, "VALIDATION", nano_run.split)
    return Path(nano_run.run_dir)


def trainer_of(method: Any, run_dir: Path, tmp_path: Path, options: BeyondOptions = OPTIONS) -> Any:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run_dir / "sft"), load_tokenizer(run_dir / "sft")
    return make_trainer(method, run_dir, model, tokenizer, options, str(tmp_path / "scratch"), [])


def rows(batch: dict[str, torch.Tensor], prefix: str = "") -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) of each row, without padding."""
    names = (f"{prefix}input_ids", f"{prefix}attention_mask", f"{prefix}completion_mask")
    found = []
    for ids, real, completion in zip(*(batch[name].tolist() for name in names), strict=True):
        kept = [(token, of) for token, is_real, of in zip(ids, real, completion, strict=True) if is_real]
        found.append(([token for token, of in kept if not of], [token for token, of in kept if of]))
    return found


def test_dpo_trains_on_our_tokens(run_dir: Path, tmp_path: Path) -> None:
    """Of the pairs of SFT's own responses, and without an end of text where there was none."""
    tokenizer = load_tokenizer(run_dir / "sft")
    (batch,) = trainer_of("dpo", run_dir, tmp_path).get_train_dataloader()
    found = rows(batch)
    expected = []
    for prompt, chosen, chosen_ended, rejected, rejected_ended in PAIRS:
        (encoded,) = encode_prompts(tokenizer, [prompt])
        both = (encode_response(tokenizer, chosen, chosen_ended), encode_response(tokenizer, rejected, rejected_ended))
        expected.append((encoded.ids, *both))
    assert sorted((p, c, r) for (p, c), (_, r) in zip(found[:3], found[3:], strict=True)) == sorted(expected)
    assert [prompt for prompt, _ in found[:3]] == [prompt for prompt, _ in found[3:]]


def test_kto_trains_on_the_same_responses(run_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(run_dir / "sft")
    of_six = replace(OPTIONS, pairs=6)  # single responses in a step
    (batch,) = trainer_of("kto", run_dir, tmp_path, of_six).get_train_dataloader()
    found, mismatched = rows(batch), rows(batch, "KL_")
    expected = []
    for prompt, chosen, chosen_ended, rejected, rejected_ended in PAIRS:
        (encoded,) = encode_prompts(tokenizer, [prompt])
        expected.append((True, encoded.ids, encode_response(tokenizer, chosen, chosen_ended)))
        expected.append((False, encoded.ids, encode_response(tokenizer, rejected, rejected_ended)))
    labels = [bool(label) for label in batch["label"]]
    assert sorted((label, *row) for label, row in zip(labels, found, strict=True)) == sorted(expected)
    assert mismatched == [(prompt, found[i - 1][1]) for i, (prompt, _) in enumerate(found)]


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_rl_has_our_log_probabilities(method: str, run_dir: Path, tmp_path: Path) -> None:
    """Of the prompts padded on the left, at the temperature of sampling; and the rewards are of what was sampled."""
    trainer, tokenizer = trainer_of(method, run_dir, tmp_path), load_tokenizer(run_dir / "sft")
    batch = next(iter(trainer.get_train_dataloader()))
    seen: list[Any] = []
    score = trainer.reward_funcs[0]

    def spy(**received: Any) -> list[float]:
        seen.append((received["index"], received["completion_ids"], scores := score(**received)))
        return scores

    trainer.reward_funcs = [spy]
    made = trainer._generate_and_score_completions(batch)
    ((index, completions, scores),) = seen
    encoded = encode_prompts(tokenizer, [prompt["prompt"] for prompt in beyond.read_prompts(beyond.PROMPTS)])
    prompts = [encoded[at].ids for at in index]
    assert len({len(prompt) for prompt in prompts}) > 1  # some are padded
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        assert made["prompt_ids"][row][made["prompt_mask"][row].bool()].tolist() == prompt
        assert made["completion_ids"][row][made["completion_mask"][row].bool()].tolist() == completion
    sft = AutoModelForCausalLM.from_pretrained(run_dir / "sft").eval()
    with torch.no_grad():
        ours = response_logprobs(sft, prompts, completions, OPTIONS.temperature).logprobs
        ids, mask = (torch.cat([made[f"prompt_{x}"], made[f"completion_{x}"]], 1) for x in ("ids", "mask"))
        theirs, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, made["completion_ids"].shape[1]
        )
    torch.testing.assert_close(theirs[made["completion_mask"].bool()], ours, atol=1e-4, rtol=1e-4)

    reward_model = beyond.load_reward_model(run_dir / "rm")
    responses = beyond.to_responses(tokenizer, completions)
    plain = beyond.score_texts(reward_model, tokenizer, [encoded[at] for at in index], responses)
    assert scores == pytest.approx([s - (not r.ended) for s, r in zip(plain, responses, strict=True)])


def test_without_positions_padding_changes_what_gpt2_says(run_dir: Path) -> None:
    tokenizer, sft = load_tokenizer(run_dir / "sft"), AutoModelForCausalLM.from_pretrained(run_dir / "sft").eval()
    (prompt,) = encode_prompts(tokenizer, [PROMPT])
    alone, same = beyond.left_padded(sft, tokenizer, prompt.ids, 0)
    without, counted = beyond.left_padded(sft, tokenizer, prompt.ids, 40)
    assert alone == same == pytest.approx(counted, abs=1e-5)
    assert abs(without - alone) > 1e-3
    assert not sft.transformer._forward_pre_hooks


def test_gold_is_the_reward(run_dir: Path) -> None:
    tokenizer, examples = load_tokenizer(run_dir / "sft"), beyond.read_prompts(beyond.PROMPTS)
    reward = beyond.reward_of("grpo_gold", run_dir, tokenizer, examples, OPTIONS)
    said = ["frog frog.", "cup cup.", "frog frog."]
    ids = [encode_response(tokenizer, text) for text in said]
    right, also, other = reward(prompts=[], index=[0, 1, 1], completion_ids=ids)
    assert right == also > 0.9 > other


def test_it_stops_at_the_kl_and_keeps_the_nearest_weights() -> None:
    """KL 0.4, 0.9, 1.6 with a target of 1.0, every second step: the weights of step 4 are kept, step 6 stops."""
    curve = iter([Point(2, 0.4, 0.5), Point(4, 0.9, 0.6), Point(6, 1.6, 0.7)])
    sft = torch.nn.Linear(1, 1)
    meter: Any = SimpleNamespace(sft=sft, options=BeyondOptions(every=2), measure=lambda policy, step: next(curve))
    stop, model, control = StopAtKL(meter, 1.0), torch.nn.Linear(1, 1), SimpleNamespace(should_training_stop=False)
    for step in range(1, 7):
        assert not control.should_training_stop
        torch.nn.init.constant_(model.weight, step)
        stop.on_step_end(None, SimpleNamespace(global_step=step, max_steps=100), control, model=model)
    assert control.should_training_stop and stop.at == Point(4, 0.9, 0.6)
    assert stop.weights["weight"].item() == 4 and [point.step for point in stop.curve] == [2, 4, 6]


def test_a_repeated_training_loads(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = beyond.train("grpo", run_dir, tmp_path / "l", 1e9, OPTIONS)
    assert [point.step for point in first.curve] == [1, 2] and first.at in first.curve
    moved = AutoModelForCausalLM.from_pretrained(run_dir / "sft").state_dict()
    assert any((weight != moved[name]).any() for name, weight in first.model.state_dict().items())
    assert beyond.Meter(run_dir, OPTIONS).measure(first.model, first.at.step) == first.at
    monkeypatch.setattr(beyond, "make_trainer", None)
    again = beyond.train("grpo", run_dir, tmp_path / "l", 1e9, OPTIONS)
    assert again.curve == first.curve
    with pytest.raises(TypeError):  # another target is another training
        beyond.train("grpo", run_dir, tmp_path / "l", 1.0, OPTIONS)
    assert (tmp_path / "l" / "grpo" / "stage.json").is_file()


def test_wins() -> None:
    """Two labelers: one likes the longer response, the other the one that begins with a."""

    class Toy:
        def __init__(self, name: str, key: Any) -> None:
            self.name, self.key = name, key

        def rank(self, example: Any, responses: list[Response]) -> list[int]:
            return [1 + sum(self.key(other.text) > self.key(one.text) for other in responses) for one in responses]

    labelers = [Toy("long", len), Toy("a", lambda text: text.startswith("a"))]
    examples: Any = [{"prompt": PROMPT}] * 3
    ours, theirs = ([Response(text, True) for text in texts] for texts in (["aaa", "a", "b"], ["b", "bbb", "b"]))
    assert beyond.wins(examples, ours, theirs, labelers).mean == pytest.approx((1.0 + 0.5 + 0.5) / 3)


def test_rankings_of_people_have_no_other_sources(run_dir: Path) -> None:
    info = json.loads((run_dir / "rm" / "stage.json").read_text())
    info["options"]["rankings"] = "my_rankings.jsonl"
    (run_dir / "rm" / "stage.json").write_text(json.dumps(info))
    assert [ranking["responses"] for ranking in beyond.on_policy(run_dir)] == [one["responses"] for one in RANKINGS]

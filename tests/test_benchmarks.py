"""What of the benchmarks runs without TRL 1.12: the count of operations, the cases, the command itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from benchmarks import bench, cases, floor, gold, memory, mutants, scale, settings
from benchmarks.cases import never_ending
from benchmarks.processes import Worker
from benchmarks.worker import Case
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Messages, read_prompts
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.evaluation.responses import Sampling, gold_of, load_stage
from rlhf_mini.models import sampling, scoring
from rlhf_mini.models.text import encode_prompts
from rlhf_mini.world.references import score

ROOT = Path(__file__).parent.parent
TINY = GPT2Config(n_embd=4, n_layer=1, n_head=1, vocab_size=10, n_positions=16)


def test_operations_by_hand() -> None:
    # weights 4 * 4 * 4 + 2 * 4 * 16 = 192 a token; keys 1 + 2 + 3, each read twice by a width of 4; 10 words of width 4
    assert floor.forward_flops(TINY, 3, 2) == 2 * (192 * 3 + 2 * 4 * 6 + 4 * 10 * 2) == 1408
    # two tokens of prompt and two of response: values without words, reward with the last token
    values, reward = 1408 - 2 * 4 * 10 * 2, 2 * (192 * 4 + 2 * 4 * 10)
    assert floor.update_flops(TINY, [2], [2]) == 2 * 1408 + values + reward + 3 * (1408 + values)
    assert floor.update_flops(TINY, [2, 2], [2, 2]) == 2 * floor.update_flops(TINY, [2], [2])
    more = floor.update_flops(TINY, [2], [2], epochs=2) - floor.update_flops(TINY, [2], [2])
    assert more == 3 * (1408 + values)


def test_operations_against_torch() -> None:
    """Torch counts what is multiplied, which includes the keys that the causal mask hides."""
    config = GPT2Config(n_embd=8, n_layer=3, n_head=2, vocab_size=30, n_positions=16, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        GPT2LMHeadModel(config)(torch.arange(7)[None], use_cache=False, logits_to_keep=5)
    hidden = 3 * 2 * 8 * (7 * 7 - 7 * 8 // 2)
    assert floor.forward_flops(config, 7, 5) == counter.get_total_flops() - 2 * hidden


def test_the_rate_is_a_rate() -> None:
    assert 1e6 < floor.matmul_rate(64, 64, 64, seconds=0.05) < 1e15


def test_batches_go_round_and_round() -> None:
    one, two, three = ([{"role": "user", "content": text}] for text in ("one", "two", "three"))
    batches = Case("", "", [], episodes=2).batches([one, two, three])
    assert [next(batches) for _ in range(3)] == [[one, two], [three, one], [two, three]]


def test_the_random_model_never_ends(nano_base: Path, tmp_path: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(nano_base).config
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    parents = Checkpoint(nano_base, "sft", "", {}), Checkpoint(tmp_path / "rm", "rm", "", {})
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(nano_base), AutoTokenizer.from_pretrained(nano_base)
    asked: list[Messages] = [[{"role": "user", "content": "1" * count}] for count in range(1, 40)]
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in asked])
    case = never_ending(
        *parents, tmp_path / "case", prompts_file=str(tmp_path / "prompts.jsonl"), max_new_tokens=20, episodes=32
    )
    prompts = [prompt.ids for prompt in next(case.batches(encode_prompts(tokenizer, case.prompts)))]
    assert [len(ids) for ids in prompts] == [cases.PROMPT_TOKENS] * 32
    policy = AutoModelForCausalLM.from_pretrained(case.sft).eval()
    assert policy.generation_config.use_cache
    rollout = sampling.sample(
        policy,
        prompts,
        max_new_tokens=case.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
    )
    assert [len(ids) for ids in rollout.response_ids] == [20] * 32
    said = {token for ids in rollout.response_ids for token in ids}
    assert tokenizer.pad_token_id not in said and tokenizer.eos_token_id not in said
    assert len(said) > 100  # and anything else it does say


def test_spread() -> None:
    spread = bench.spread([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert spread["median"] == 2.0 and (spread["min"], spread["max"]) == (2.0, 3.0)
    assert 2.0 <= spread["low"] <= 15 / 6 <= spread["high"] <= 3.0


def test_a_missing_run_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--runs_dir", str(tmp_path)])
    with pytest.raises(UserError, match="there is no sft checkpoint"):
        bench.main()


def test_help() -> None:
    command = [sys.executable, "-m", "benchmarks.bench", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--rounds" in done.stdout


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_compared_run_by_run(nano_run: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [prompt | {"references": ["frog frog"]} for prompt in read_prompts(nano_run.split)]
    write_jsonl(nano_run.split, examples)
    tiny = dict(updates=2, episodes=8, max_new_tokens=6, prompts=nano_run.split, ptx_coef=0.0, evaluation_prompts=2)
    tiny |= dict(save_steps=0, validation_prompts=nano_run.split, warmup_updates=0)
    variants = {"default": tiny, "again": tiny, "learning_rate 1": tiny | dict(learning_rate=0.1)}
    monkeypatch.setattr(settings, "VARIANTS", variants)
    out = Path(nano_run.runs_dir) / "settings.json"
    arguments = ["--runs", "r", "--runs_dir", nano_run.runs_dir, "--prompts", nano_run.split, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["settings", *arguments])
    settings.main()
    found = json.loads(out.read_text())["variants"]
    assert found["again"] == found["default"] != found["learning_rate 1"]
    assert found["SFT"]["kl"] == [0.0] and abs(found["learning_rate 1"]["kl"][0]) > abs(found["default"]["kl"][0])
    sft = load_stage(nano_run.run_dir / "sft", "sft")
    said = sft.respond(sft.encode([example["prompt"] for example in examples]), Sampling(48, 0.7, 0), 0)
    by_gold = [one.score for one in map(gold_of, examples, said) if one]
    assert found["SFT"]["gold"] == [pytest.approx(sum(by_gold) / 4)]
    by_references = [score(example, response.text) for example, response in zip(examples, said, strict=True)]
    assert found["SFT"]["references"] == [pytest.approx(sum(by_references) / 4)]

    trained = Path(nano_run.runs_dir) / "r-ppo-again" / "ppo" / "stage.json"
    before = trained.stat().st_mtime_ns
    settings.train("r", "again", tiny, nano_run.runs_dir)
    assert trained.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="r-ppo-again is of other options or another r: delete it"):
        settings.train("r", "again", tiny | dict(kl_coef=0.5), nano_run.runs_dir)


# --- scale -----------------------------------------------------------------------------------------------------------


def test_parameters_of_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for size in scale.SHAPES:
        config = scale.Case("ppo", size).config
        with torch.device("meta"):
            number = sum(each.numel() for each in GPT2LMHeadModel(config).parameters())
        assert memory.parameters(config) == number == pytest.approx(float(size.split()[0]) * 1e6, rel=0.08)
    assert memory.parameters(GPT2Config()) == 124_439_808  # GPT-2 small


def test_memory_by_hand() -> None:
    size = 4 * ((10 + 16 + 2) * 4 + 12 * 4 * 4 + 13 * 4)
    parts = memory.ppo_memory(TINY, prompt=2, response=3, episodes=8, minibatch=2)
    assert (parts["weights"], parts["optimizer"]) == (6 * size, 6 * size)
    assert parts["rollout"] == 2 * (2 * 4 * 8 * 5 * 4)  # two copies of keys and values of width 4, of 8 rows of 5
    # of 10 tokens 9 x 4 floats, of the 6 predicted ones 23 x 4 (gelu_new) and 2 x 4 at the end
    assert parts["value_model"] == 4 * (10 * 36 + 6 * 92 + 6 * 8)
    assert parts["policy"] == parts["value_model"] + 4 * (6 * 10) + 3 * 4 * (6 * 10)  # and the words
    both = 12 * size + parts["policy"] + parts["value_model"]
    assert memory.ppo_peak(parts) == both == memory.ppo_peak(parts, at_once=False) + parts["value_model"]
    assert memory.ppo_peak(parts | {"rollout": 1e6}) == 12 * size + 1e6
    assert memory.rm_peak(TINY, tokens=5, rows=2) == 6 * size + 4 * (10 * 36 + 2 * 92 + 2 * 8)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("bf16", [False, True])
def test_activations_against_torch(activation: str, bf16: bool) -> None:
    config = GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=500, n_positions=64, activation_function=activation)
    model = GPT2LMHeadModel(config).eval()
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.shape[0] > 64:  # not weights, nor their copies in bfloat16
            kept[storage.data_ptr()] = storage
        return tensor

    prompts, responses = [[5] * 20] * 80, [[6] * 12] * 80
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        scoring.response_logprobs(model, prompts, responses, bucket_size=80)
    counted = memory.activations(config, 80 * 32, 80 * 12, 500, bf16)
    assert sum(storage.nbytes() for storage in kept.values()) == pytest.approx(counted, rel=0.03)


def test_a_small_case_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(scale, "REPETITIONS", 1)
    for case in (scale.Case("ppo", "0.1 M", 16, 4), scale.Case("sft", "0.1 M"), scale.Case("rm", "0.1 M")):
        found = scale.measure(case, torch.get_num_threads())
        assert found["seconds"] > 0 and found["times_the_floor"] > 1 and found["parameters"] == 98_400


def test_the_slope_is_a_power() -> None:
    measured = [{"parameters": number, "seconds": 3 * number**0.9} for number in (1e5, 1e6, 3e7)]
    assert scale.slope(measured) == pytest.approx(0.9)


def test_what_the_presets_say_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their comments name a GPU's memory for the preset as it is, and for small batches."""
    monkeypatch.chdir(ROOT)
    found = scale.presets(1e-11)
    for name in scale.PRESETS:
        comment = (ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8")
        sizes = [int(size) for size in re.findall(r"(\d+) GB", comment)]
        needed = [max(each["gb"]["ppo"][0], each["gb"]["rm"][0]) for each in found if each["preset"] == name]
        assert len(sizes) == len(needed) == 2 and all(a < b for a, b in zip(needed, sizes, strict=True)), name
        assert sizes[1] < needed[0]  # small batches are needed there


# --- mutants ---------------------------------------------------------------------------------------------------------

MODULE = '''"""1 + 1 in a docstring."""
LIMIT: "int | None" = -1
def f(é, x: int | None = 2) -> float | None:
    é += "ü" if not x else f"{x + 1}"
    if 0 < x <= 3 and é != "a":
        return (x -
                1)
    return None
'''


def test_mutants_by_hand() -> None:
    """One change each, and none in annotations, docstrings, texts and f-strings."""
    found = mutants.mutants_of(MODULE.encode())
    assert [(each.line, each.before, each.after) for each in found if each.line < 5] == [
        (2, "-1", "1"), (2, "1", "2"), (3, "2", "3"), (4, "é += 'ü' if not x else f'{x + 1}'",
        "é -= 'ü' if not x else f'{x + 1}'"), (4, "not x", "x"),
    ]  # fmt: skip
    assert [(each.line, each.before, each.after) for each in found if each.line >= 5] == [
        (5, "0 < x <= 3 and é != 'a'", "0 < x <= 3 or é != 'a'"), (5, "0 < x <= 3", "0 <= x <= 3"),
        (5, "0 < x <= 3", "0 >= x <= 3"), (5, "0 < x <= 3", "0 < x < 3"), (5, "0 < x <= 3", "0 < x > 3"), (5, "0", "1"),
        (5, "3", "4"), (5, "é != 'a'", "é == 'a'"), (6, "return x - 1", "return None"), (6, "x - 1", "x + 1"),
        (7, "1", "2"),
    ]  # fmt: skip
    sources = [each.source.decode() for each in found]
    assert len(set(sources)) == len(sources)
    assert MODULE.replace("-1", "(1)") in sources and MODULE.replace('é != "a"', "(é == 'a')") in sources


def test_every_mutant_is_python_and_the_tests_exist() -> None:
    for file, tests in mutants.TESTS.items():
        assert (ROOT / file).is_file() and tests and all((ROOT / test).is_file() for test in tests), file
    for each in mutants.mutants_of((ROOT / "rlhf_mini/core/rankings.py").read_bytes()):
        compile(each.source, "mutant", "exec")


@pytest.mark.skipif(sys.platform != "linux", reason="forks after importing torch")
def test_a_mutant_is_killed_in_a_copy(tmp_path: Path) -> None:
    file, out = "rlhf_mini/core/rankings.py", tmp_path / "mutants.json"
    before = (ROOT / file).read_bytes()
    command = [sys.executable, "-m", "benchmarks.mutants", "--files", file, "--number", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    assert re.search(rf"  killed +{file}:\d+: .+  ->  .+\n", done.stdout) and "100%" in done.stdout
    (score,) = json.loads(out.read_text(encoding="utf-8"))["files"].values()
    assert (score["tested"], score["killed"], score["survivors"]) == (1, 1, [])
    assert (ROOT / file).read_bytes() == before


def test_a_file_without_tests_is_refused() -> None:
    with pytest.raises(UserError, match=r"stages/ppo/train\.py has no tests in TESTS"):
        mutants.MutantsOptions(files="stages/ppo/train.py")


def test_a_gold_is_reached_by_two_measurements_together() -> None:
    points = [gold.Point(256 * n, 10.0 * n, value) for n, value in enumerate((0.6, 0.75, 0.6, 0.71, 0.73, 0.5))]
    assert gold.reached(points, 0.72) == points[4] and gold.reached(points, 0.67) == points[1]
    assert gold.reached(points, 0.8) is None and gold.reached(points[:1], 0.1) is None
    found = [{"side": side, "points": [point._replace(seconds=factor * point.seconds) for point in points]}
             for side, factor in (("ours", 1), ("trl", 3))]  # fmt: skip
    assert gold.table(found, [0.72]).columns[3].header == "times as long"
    cells = [list(column.cells) for column in gold.table(found, [0.72, 0.9]).columns]
    assert cells == [["0.72", "0.90"], ["40, 1,024 (1 of 1 seeds)", "never (best 0.750)"],
                     ["120, 1,024 (1 of 1 seeds)", "never (best 0.750)"], ["3.0", ""]]  # fmt: skip


def test_the_worker_trains_with_its_settings_and_saves(nano_run: CompareOptions, tmp_path: Path) -> None:
    case = gold.case_of(
        nano_run.run_dir,
        dict(episodes=8, minibatch_size=8, max_new_tokens=4, learning_rate=1e-2, value_learning_rate=1e-2, updates=2),
        nano_run.split,
        seed=1,
    )
    case.write(tmp_path / "case.json")
    worker = Worker("benchmarks.ours", tmp_path / "case.json", threads=1)
    try:
        worker.read()
        assert worker.ask("update")["seconds"] > 0
        worker.ask(f"save {tmp_path}/policy")
    finally:
        worker.stop()
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (case.sft, tmp_path / "policy"))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    examples = read_prompts(nano_run.split)
    assert 0 <= gold.gold(str(tmp_path / "policy"), case.sft, examples) <= 1

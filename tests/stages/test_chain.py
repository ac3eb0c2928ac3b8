"""The chain as a user runs it: the stages on the shipped base and data, with the nano presets, then the comparison."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.files import sha256

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    offline = os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # nobody listens
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=offline, capture_output=True, text=True, timeout=240
    )


def stage(name: str, runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command(
        f"stages.{name}", "--config", f"stages/{name}/nano.yaml", "--runs_dir", str(runs), "--run", "r", *arguments
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with a finished chain "r"."""
    folder = tmp_path_factory.mktemp("runs")
    shorter = {"sft": ["--num_train_epochs", "0.1"], "rm": ["--num_prompts", "80"], "ppo": []}
    for name, options in shorter.items():
        done = stage(name, folder, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    return folder


def info(runs: Path, name: str) -> dict:
    return json.loads((runs / "r" / name / "stage.json").read_text())


def test_each_stage_names_the_one_before_it_as_its_parent(runs: Path) -> None:
    sums = {name: info(runs, name)["sha256"]["model.safetensors"] for name in ("sft", "rm", "ppo")}
    assert len(set(sums.values())) == 3
    parents = {name: {p["stage"]: p["sha256"] for p in info(runs, name)["parents"]} for name in sums}
    assert list(parents["sft"]) == ["base"]
    assert set(parents["rm"]) == {"sft", "judge", "base"} and parents["rm"]["sft"] == sums["sft"]
    assert parents["ppo"] == {"sft": sums["sft"], "rm": sums["rm"]}


def test_plain_transformers_load_the_checkpoints(runs: Path) -> None:
    for name in ("sft", "ppo"):
        model = AutoModelForCausalLM.from_pretrained(runs / "r" / name)
        tokenizer = AutoTokenizer.from_pretrained(runs / "r" / name)
        question = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
        assert model.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
        # In a batch, the shorter prompt is continued as it is alone.
        batch = tokenizer.apply_chat_template(
            [question, [{"role": "user", "content": "Hi"}]],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
        )
        single = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
        )
        said, alone = (model.generate(**ids, max_new_tokens=12, do_sample=False) for ids in (batch, single))
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (said[1], alone[0])]
        assert texts[0] == texts[1]
    assert AutoModelForSequenceClassification.from_pretrained(runs / "r" / "rm").config.num_labels == 1


def test_every_stage_tells_its_figures_as_it_goes(runs: Path) -> None:
    for name in ("sft", "rm", "ppo"):
        lines = (runs / "r" / name / "metrics.jsonl").read_text().splitlines()
        assert len(lines) >= 3 and all("step" in json.loads(line) for line in lines)
        assert info(runs, name)["seconds"] > 0 and info(runs, name)["peak_memory_mb"] > 100


def test_the_comparison_writes_one_line_a_prompt_and_a_summary(runs: Path) -> None:
    done = command(
        "rlhf_mini.evaluation.compare",
        "--runs_dir",
        str(runs),
        "--run",
        "r",
        "--num_prompts",
        "24",
        "--num_rm_prompts",
        "12",
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (runs / "r" / "compare.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and all(set(row["stages"]) == {"base", "sft", "ppo"} for row in rows)
    gold = json.loads((runs / "r" / "compare.json").read_text())["headline"]["gold/ppo"]["mean"]
    by_hand = sum(row["stages"]["ppo"]["gold"] for row in rows) / 24
    assert gold == pytest.approx(by_hand, abs=1e-9)


def test_another_sft_under_a_finished_chain_is_told_in_one_sentence(runs: Path) -> None:
    config, stage_json = runs / "r" / "sft" / "generation_config.json", runs / "r" / "sft" / "stage.json"
    config.write_text(config.read_text() + " ")
    another = info(runs, "sft")
    another["sha256"][config.name] = sha256(config)
    stage_json.write_text(json.dumps(another))
    done = stage("ppo", runs)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "was not made from the sft" in done.stderr


@pytest.mark.parametrize("name", ["sft", "rm", "ppo"])
def test_a_wrong_option_exits_with_2_and_one_sentence(name: str, tmp_path: Path) -> None:
    done = command(f"stages.{name}", "--runs_dir", str(tmp_path), "--learning-rat", "1")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_missing_parent_says_what_to_run(tmp_path: Path) -> None:
    done = command("stages.rm", "--runs_dir", str(tmp_path))
    assert done.returncode == 1 and "there is no sft checkpoint" in done.stderr and "stages.sft" in done.stderr

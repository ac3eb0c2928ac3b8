"""Checkpoints: complete or absent, and never used when something is wrong with them."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core import checkpoints
from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint, save_last_good, writing
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import MetricsLog, sha256


@dataclass
class Options:
    run: str = "x"
    runs_dir: Path = Path("runs")
    learning_rate: float = 1e-3


def contents(base: Path, change: float = 0.0, **more: Any) -> dict[str, Any]:
    """What `save_checkpoint` takes. `change` is added to the nano model's weights, so that sha256 sums differ."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.transformer.wte.weight += change
    tokenizer = AutoTokenizer.from_pretrained(base)
    defaults = {"options": Options(), "seed": 3, "metrics": {"loss": 2.5}, "started": time.time()}
    return {"model": model, "tokenizer": tokenizer, **defaults, **more}


def make(run_dir: Path, stage: str, base: Path, change: float = 0.0, parents: list[Checkpoint] | None = None) -> Path:
    with writing(run_dir, stage) as folder:
        save_checkpoint(folder, stage=stage, parents=parents or [], **contents(base, change))
    return run_dir / stage


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/x as the Makefile has it: relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path("runs/x")


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_checkpoint_says_where_it_comes_from_and_loads_plainly(nano_base: Path, run_dir: Path) -> None:
    base = load_checkpoint(nano_base, "base")
    with writing(run_dir, "sft") as folder:
        assert folder == Path("runs/x/sft.partial")
        MetricsLog(folder / "metrics.jsonl").log(step=1, loss=3.0)
        what = contents(nano_base, 0.5, metrics={"loss": torch.tensor(2.5), "worst": float("nan")})
        save_checkpoint(folder, stage="sft", parents=[base], **what)
    assert sorted(path.name for path in run_dir.iterdir()) == ["sft"]

    info = json.loads((run_dir / "sft" / "stage.json").read_text())
    assert info["format"] == 1 and info["stage"] == "sft" and info["seed"] == 3 and "stopped" not in info
    assert info["options"] == {"run": "x", "runs_dir": "runs", "learning_rate": 1e-3}
    assert info["metrics"] == {"loss": 2.5, "worst": None}
    assert 0 <= info["seconds"] < 60 and 50 < info["peak_memory_mb"] < 100_000
    assert (
        set(info["versions"]) == {"python", "rlhf_mini", *checkpoints.LIBRARIES} >= {"torch", "transformers", "numpy"}
    )
    assert info["parents"] == [
        {"stage": "base", "path": str(nano_base), "sha256": base.sha256, "files_sha256": base.files_sha256}
    ]
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(info["sha256"])
    assert "metrics.jsonl" not in info["sha256"] and (run_dir / "sft" / "metrics.jsonl").exists()
    # make's rule for SEED= looks for this very line
    assert '\n  "seed": 3,\n' in (run_dir / "sft" / "stage.json").read_text()

    sft = load_checkpoint(run_dir / "sft", "sft", of=base)
    assert sft == Checkpoint(run_dir / "sft", "sft", info["sha256"]["model.safetensors"], info)
    loaded = AutoModelForCausalLM.from_pretrained(sft.path)
    assert torch.equal(loaded.state_dict()["transformer.wte.weight"], what["model"].transformer.wte.weight)
    assert AutoTokenizer.from_pretrained(sft.path).chat_template


QUESTIONS = ["What colour is a kiwi inside?", "Hi", "Name the capital of France and of Japan, please."]


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_plain_transformers_generate_in_batches(nano_base: Path, run_dir: Path) -> None:
    """Greedily, the same for each prompt of a batch as for the prompt alone."""
    what = contents(nano_base)
    torch.manual_seed(0)
    with torch.no_grad():  # a model that does not repeat one token
        what["model"].transformer.wpe.weight.normal_(std=3.0)
        what["model"].transformer.wte.weight.normal_()
        what["model"].transformer.wte.weight[what["tokenizer"].all_special_ids] = 0
    with writing(run_dir, "sft") as partial:
        save_checkpoint(partial, stage="sft", **what)
    folder = run_dir / "sft"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def said(questions: list[str]) -> list[list[int]]:
        batch = tokenizer.apply_chat_template(
            [chat(question) for question in questions], add_generation_prompt=True, padding=True, return_tensors="pt"
        )
        output = model.generate(**batch, max_new_tokens=12, do_sample=False)
        return output[:, batch["input_ids"].shape[1] :].tolist()

    alone = [ids for question in QUESTIONS for ids in said([question])]
    assert said(QUESTIONS) == alone
    assert all(len(ids) == 12 and len(set(ids)) > 5 for ids in alone)


def test_plain_transformers_score_in_batches(nano_base: Path, run_dir: Path) -> None:
    """A scalar head scores a text in a batch as alone, though the tokenizer comes from a language model."""
    sft, model = make(run_dir, "sft", nano_base), AutoModelForSequenceClassification.from_pretrained(nano_base)
    with writing(run_dir, "rm") as partial:
        save_checkpoint(partial, stage="rm", **contents(sft) | {"model": model})
    folder = run_dir / "rm"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        alone = [model(**tokenizer([question], return_tensors="pt")).logits[0] for question in QUESTIONS]
        torch.testing.assert_close(model(**batch).logits, torch.stack(alone), rtol=0, atol=1e-5)


def test_the_tokenizer_is_written_in_names_that_transformers_4_knows(nano_base: Path, run_dir: Path) -> None:
    """4.57 loads no tokenizer of class TokenizersBackend and none with a list of extra_special_tokens."""
    what = contents(nano_base)
    with writing(run_dir, "sft") as partial:
        save_checkpoint(partial, stage="sft", **what)
    shipped = Path(__file__).parents[2] / "data"
    for folder, side in ((run_dir / "sft", "left"), (shipped / "base", "left"), (shipped / "judge", "right")):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in config
        assert config["additional_special_tokens"] == ["<|user|>", "<|assistant|>"] and config["padding_side"] == side
        assert config["model_input_names"] == ["input_ids", "attention_mask"]  # for 4.57, token_type_ids belong to them

    before, loaded = what["tokenizer"], AutoTokenizer.from_pretrained(run_dir / "sft")
    assert loaded.get_vocab() == before.get_vocab() and loaded.special_tokens_map == before.special_tokens_map
    assert loaded.all_special_tokens == before.all_special_tokens and len(before.all_special_tokens) == 4
    texts = [*QUESTIONS, "<|user|> é\n<|assistant|><|pad|>"]
    assert loaded(texts)["input_ids"] == before(texts)["input_ids"]
    assert loaded.apply_chat_template(chat("é")) == before.apply_chat_template(chat("é"))


def test_the_sha256_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == expected


def test_a_new_checkpoint_replaces_the_old(nano_base: Path, run_dir: Path) -> None:
    make(run_dir, "sft", nano_base)
    (run_dir / "sft" / "left-over.txt").write_text("of the old one")
    make(run_dir, "sft", nano_base, change=1.0)
    load_checkpoint(run_dir / "sft", "sft")
    assert not (run_dir / "sft" / "left-over.txt").exists()
    assert sorted(path.name for path in run_dir.iterdir()) == ["sft"]


def test_people_may_open_the_jsonl_files_and_add_notes(nano_base: Path, run_dir: Path) -> None:
    folder = make(run_dir, "sft", nano_base)
    (folder / "metrics.jsonl").write_text("")
    (folder / "notes.txt").write_text("mine")
    load_checkpoint(folder, "sft")


# --- what is not written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [KeyboardInterrupt(), RuntimeError("a bug"), UserError("x"), OSError(errno.ENOSPC, "No space left")]
)
def test_a_stage_that_fails_leaves_the_earlier_checkpoint(nano_base: Path, run_dir: Path, fault: BaseException) -> None:
    before = snapshot(make(run_dir, "sft", nano_base))
    with pytest.raises(type(fault)), writing(run_dir, "sft") as folder:
        MetricsLog(folder / "metrics.jsonl").log(step=1)
        raise fault
    assert snapshot(run_dir / "sft") == before
    assert sorted(path.name for path in run_dir.iterdir()) == ["sft"]


@pytest.mark.parametrize("full", ["model", "tokenizer", "stage.json", "fsync", "rename"])
def test_a_disk_that_fills_up_at_any_step(
    nano_base: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    before = snapshot(make(run_dir, "sft", nano_base))
    what = contents(nano_base, 1.0)

    def no_space(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    real_write_text, real_rename = Path.write_text, Path.rename

    def write_text(path: Path, *rest: Any, **more: Any) -> int:
        return no_space() if path.name == "stage.json" else real_write_text(path, *rest, **more)

    def rename(path: Path, target: Path) -> Path:
        return no_space() if path.name == "sft.partial" else real_rename(path, target)

    if full in ("model", "tokenizer"):
        monkeypatch.setattr(what[full], "save_pretrained", no_space)
    elif full == "stage.json":
        monkeypatch.setattr(Path, "write_text", write_text)
    elif full == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space left"), writing(run_dir, "sft") as folder:
        save_checkpoint(folder, stage="sft", **what)
    assert snapshot(run_dir / "sft") == before
    assert sorted(path.name for path in run_dir.iterdir()) == ["sft"]


def test_a_first_run_that_fails_leaves_no_folder(run_dir: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(run_dir, "sft"):
        raise KeyboardInterrupt
    assert not run_dir.exists()


def test_leaving_the_block_without_saving_is_a_bug(run_dir: Path) -> None:
    with pytest.raises(RuntimeError, match="call save_checkpoint"), writing(run_dir, "sft"):
        pass
    assert not run_dir.exists()


def test_what_a_killed_process_left_is_cleared(nano_base: Path, run_dir: Path) -> None:
    """A real process, killed while it writes: its lock does not outlive it, and the next start cleans up."""
    code = (
        "import pathlib, time; from rlhf_mini.core.checkpoints import writing\n"
        "with writing('runs/x', 'sft') as folder:\n"
        "    (folder / 'metrics.jsonl').write_text('{}')\n"
        "    print('ready', flush=True); time.sleep(60)"
    )
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        with pytest.raises(UserError) as refused, writing(run_dir, "sft"):
            raise AssertionError("two processes write one checkpoint")
        assert str(refused.value) == ("another process is writing runs/x/sft: wait for it, or choose another run")
        assert (run_dir / "sft.partial" / "metrics.jsonl").exists()  # the refusal touched nothing
        make(run_dir, "rm", nano_base)  # another checkpoint has another lock
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    shutil.rmtree(run_dir / "rm")
    assert (run_dir / "sft.partial" / "metrics.jsonl").exists()
    with pytest.raises(UserError, match="there is no sft checkpoint"):
        load_checkpoint(run_dir / "sft", "sft")
    make(run_dir, "sft", nano_base)
    assert sorted(path.name for path in run_dir.iterdir()) == ["sft"]
    assert "metrics.jsonl" not in snapshot(run_dir / "sft")


def test_two_threads_cannot_write_one_checkpoint(nano_base: Path, run_dir: Path) -> None:
    with ThreadPoolExecutor(1) as pool, writing(run_dir, "sft") as folder:
        with pytest.raises(UserError, match="another process is writing runs/x/sft: "):
            pool.submit(make, run_dir, "sft", nano_base).result()
        save_checkpoint(folder, stage="sft", **contents(nano_base, 1.0))
        before = snapshot(folder)
    assert snapshot(run_dir / "sft") == before
    with ThreadPoolExecutor(1) as pool:
        pool.submit(make, run_dir, "sft", nano_base).result()  # the lock is gone
    assert snapshot(run_dir / "sft") != before


def test_locks_are_not_in_the_folder_of_the_run(run_dir: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(run_dir, "sft"):
        assert [path.name for path in run_dir.iterdir()] == ["sft.partial"]
        assert sorted(path.name for path in run_dir.parent.iterdir()) == [".locks", "x"]
        raise KeyboardInterrupt
    assert [path.name for path in run_dir.parent.iterdir()] == [".locks"]


@pytest.mark.parametrize("already_new", [False, True])
def test_killed_between_the_two_renames(nano_base: Path, run_dir: Path, already_new: bool) -> None:
    """The old checkpoint was renamed; the new one has taken its name, or has not yet."""
    old = make(run_dir, "sft", nano_base)
    before = snapshot(old)
    old.rename(run_dir / "sft.replaced")
    if already_new:
        before = snapshot(make(Path("runs/other"), "sft", nano_base, 1.0).rename(run_dir / "sft"))
    with pytest.raises(KeyboardInterrupt), writing(run_dir, "sft"):
        raise KeyboardInterrupt
    assert snapshot(run_dir / "sft") == before
    assert sorted(path.name for path in run_dir.iterdir()) == ["sft"]


def test_the_last_good_weights_are_a_complete_checkpoint(nano_base: Path, run_dir: Path) -> None:
    with pytest.raises(UserError), writing(run_dir, "ppo") as folder:
        MetricsLog(folder / "metrics.jsonl").log(step=7, loss=float("nan"))
        saved = save_last_good(run_dir, "ppo", reason="the loss became NaN at step 7", **contents(nano_base))
        raise UserError(f"the loss became NaN; the weights before it are in {saved}")
    assert sorted(path.name for path in run_dir.iterdir()) == ["ppo.last_good"]
    checkpoint = load_checkpoint(saved, "ppo")
    assert checkpoint.info["stopped"] == "the loss became NaN at step 7"
    assert json.loads((saved / "metrics.jsonl").read_text()) == {"step": 7, "loss": None}


# --- a broken checkpoint: what is wrong, and what to run -------------------------------------------------------------


def refusal(path: Path, stage: str, of: Checkpoint | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path, stage, of=of)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    assert refusal(run_dir / "sft", "sft") == "there is no sft checkpoint in runs/x/sft: run `make sft RUN=x`"
    assert refusal(Path("runs/default/rm"), "rm").endswith(": run `make rm`")
    assert refusal(Path("data/base"), "base").endswith(": run `git checkout data/base`, or `make base`")
    elsewhere = tmp_path / "else"
    assert refusal(elsewhere / "y" / "sft", "sft").endswith(f"`python -m stages.sft --runs_dir {elsewhere} --run y`")
    assert refusal(Path("my runs/y") / "sft", "sft").endswith("`python -m stages.sft --runs_dir 'my runs' --run y`")


def test_a_half_written_checkpoint(nano_base: Path, run_dir: Path) -> None:
    folder = make(run_dir, "sft", nano_base)
    (folder / "model.safetensors").unlink()
    assert refusal(folder, "sft") == (
        "the sft checkpoint in runs/x/sft is incomplete (model.safetensors is missing): "
        "delete runs/x/sft, then run `make sft RUN=x`"
    )
    (folder / "stage.json").unlink()
    assert refusal(folder, "sft") == (
        "the sft checkpoint in runs/x/sft is half-written (it has no stage.json): run `make sft RUN=x`"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_checkpoint(nano_base: Path, run_dir: Path, name: str) -> None:
    folder = make(run_dir, "sft", nano_base)
    whole = (folder / name).read_bytes()
    for changed in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole + b" ", b""):
        (folder / name).write_bytes(changed)
        assert refusal(folder, "sft") == (
            f"runs/x/sft/{name} has changed since the sft stage wrote it: delete runs/x/sft, then run `make sft RUN=x`"
        )
    (folder / name).write_bytes(whole)
    load_checkpoint(folder, "sft")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "{}", "\udcff", '{"stage": "sft"}'),
        '{"format": 1, "stage": "sft", "sha256": {}, "parents": []}',
        '{"format": 1, "stage": "sft", "sha256": 3, "parents": []}',
    ],
)
def test_a_foreign_stage_json(nano_base: Path, run_dir: Path, content: str) -> None:
    folder = make(run_dir, "sft", nano_base)
    (folder / "stage.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "runs/x/sft/stage.json was not written by this project: delete runs/x/sft" in refusal(folder, "sft")


def test_a_checkpoint_of_another_stage_or_version(nano_base: Path, run_dir: Path) -> None:
    folder = make(run_dir, "sft", nano_base)
    folder.rename(run_dir / "rm")
    assert "runs/x/rm holds a checkpoint of stage sft, not rm: delete runs/x/rm" in refusal(run_dir / "rm", "rm")
    path = run_dir / "rm" / "stage.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    assert "another version of this project" in refusal(run_dir / "rm", "sft")


def test_a_reward_model_of_another_sft(nano_base: Path, run_dir: Path) -> None:
    make(run_dir, "sft", nano_base)
    make(run_dir, "rm", nano_base, 1.0, parents=[load_checkpoint(run_dir / "sft", "sft")])
    load_checkpoint(run_dir / "rm", "rm", of=load_checkpoint(run_dir / "sft", "sft"))
    make(run_dir, "sft", nano_base, 2.0)  # trained again, with other weights
    assert refusal(run_dir / "rm", "rm", of=load_checkpoint(run_dir / "sft", "sft")) == (
        "the rm checkpoint in runs/x/rm was not made from the sft in runs/x/sft: run `make rm RUN=x`"
    )


# --- what identifies a checkpoint ------------------------------------------------------------------------------------


def with_config(run_dir: Path, base: Path, **config: float) -> Checkpoint:
    """A reward model whose weights are always the same."""
    what = contents(base)
    for name, value in config.items():
        setattr(what["model"].config, name, value)
    with writing(run_dir, "rm") as folder:
        save_checkpoint(folder, stage="rm", **what)
    return load_checkpoint(run_dir / "rm", "rm")


def test_a_reward_model_with_the_same_weights_and_another_score_is_another(nano_base: Path, run_dir: Path) -> None:
    """`make rm ARGS="--normalization_size 100"` changes the zero of the scale alone, which is in config.json."""
    first = with_config(run_dir, nano_base, reward_mean=0.5)
    make(run_dir, "ppo", nano_base, parents=[first])
    load_checkpoint(run_dir / "ppo", "ppo", of=with_config(run_dir, nano_base, reward_mean=0.5))  # made again, alike
    other = with_config(run_dir, nano_base, reward_mean=0.75)
    assert other.sha256 == first.sha256
    for another in (other, with_config(run_dir, nano_base, reward_mean=0.5, likelihood_coef=0.1)):
        assert "was not made from the rm in runs/x/rm" in refusal(run_dir / "ppo", "ppo", of=another)


def test_a_checkpoint_of_an_older_version_knows_its_parents_by_their_weights(nano_base: Path, run_dir: Path) -> None:
    first = with_config(run_dir, nano_base)
    path = make(run_dir, "ppo", nano_base, parents=[first]) / "stage.json"
    info = json.loads(path.read_text())
    del info["parents"][0]["files_sha256"]
    path.write_text(json.dumps(info))
    load_checkpoint(run_dir / "ppo", "ppo", of=first)


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes stage.json, with the checksums as they are now: whoever shares a run can do so."""
    info = json.loads((folder / "stage.json").read_text())
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "stage.json"]
    sums = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    (folder / "stage.json").write_text(json.dumps(info | {"sha256": sums} | changes))


def test_sharded_weights_are_named_as_such(nano_base: Path, run_dir: Path) -> None:
    folder = make(run_dir, "sft", nano_base)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    rewrite(folder)
    assert refusal(folder, "sft") == (
        "the sft checkpoint in runs/x/sft has its weights in other files than model.safetensors, the only one that is "
        "read: save it again, with a larger max_shard_size"
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "value_model/config.json"])
def test_a_checkpoint_with_code_of_its_own_is_refused(nano_base: Path, run_dir: Path, name: str) -> None:
    """transformers would ask whether to run it."""
    folder = make(run_dir, "sft", nano_base)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('{"\\u0061uto_map": {"AutoModelForCausalLM": "planted.Model"}}')
    rewrite(folder)
    assert f"runs/x/sft/{name} could run code that came with the checkpoint" in refusal(folder, "sft")


def test_a_pickle_is_refused(nano_base: Path, run_dir: Path) -> None:
    folder = make(run_dir, "sft", nano_base)
    (folder / "value_model").mkdir()
    (folder / "value_model" / "pytorch_model.bin").write_bytes(b"")
    assert "value_model/pytorch_model.bin could run code that came with the checkpoint" in refusal(folder, "sft")


@pytest.mark.parametrize(
    "change",
    [{"options": 3}, {"metrics": []}, {"seed": "0"}, {"seconds": None}, {"parents": [{}]}, {"sha256": {"a": 1}}],
)
def test_a_stage_json_of_wrong_types(nano_base: Path, run_dir: Path, change: dict[str, Any]) -> None:
    folder = make(run_dir, "sft", nano_base)
    rewrite(folder, **change)
    assert "runs/x/sft/stage.json was not written by this project" in refusal(folder, "sft")


# --- many at once ----------------------------------------------------------------------------------------------------

# Forks processes that all enter `writing` at the same moment. One that gets in waits until all others have given up, so
# there must be exactly one. Prints what each came to.
CROWD = """
import os, sys, time
from pathlib import Path
from rlhf_mini.core.checkpoints import writing
from rlhf_mini.core.console import UserError

starts, stages = int(sys.argv[1]), sys.argv[2].split(",")
go, (read, write) = time.time() + 0.3 + starts / 1000, os.pipe()
for number in range(starts):
    if os.fork() == 0:
        stage = stages[number % len(stages)]
        time.sleep(max(0.0, go - time.time()))
        try:
            with writing("runs/x", stage) as folder:
                (folder / "stage.json").write_text(str(os.getpid()))
                while not Path("all others gave up").exists():
                    time.sleep(0.01)
                if stage == "fails":
                    raise UserError("a fault of its own")
                said = f"{stage} worked, {(folder / 'stage.json').read_text() == str(os.getpid())}"
        except UserError as fault:
            said = f"{stage} {fault}"
        except BaseException as fault:
            said = f"{stage} {fault!r}"
        os.write(write, f"{said}\\n".encode())
        os._exit(0)
os.close(write)
with open(read) as pipe:
    for number in range(starts - len(stages)):
        print(pipe.readline(), end="")
    Path("all others gave up").touch()
    print(pipe.read(), end="")
    Path("all others gave up").unlink()
"""


def crowd(starts: int, stages: str) -> dict[str, int]:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", CROWD, str(starts), stages], env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return dict(Counter(done.stdout.splitlines()))


def test_of_many_simultaneous_starts_exactly_one_works(run_dir: Path) -> None:
    busy = "another process is writing runs/x/{0}: wait for it, or choose another run".format
    assert crowd(40, "sft,rm") == {
        "sft worked, True": 1, f"sft {busy('sft')}": 19, "rm worked, True": 1, f"rm {busy('rm')}": 19
    }  # fmt: skip
    assert sorted(path.name for path in run_dir.iterdir()) == ["rm", "sft"]


def test_a_stage_that_fails_does_not_take_the_folder_from_one_that_starts(run_dir: Path) -> None:
    """It removes the empty folder of the run, in which the other is about to work."""
    for _ in range(3):
        assert crowd(2, "fails,sft").keys() == {"fails a fault of its own", "sft worked, True"}
        shutil.rmtree(run_dir)


def test_the_folder_of_a_run_may_vanish_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.mkdir
    taken: list[Path] = []

    def mkdir(path: Any, *rest: Any) -> None:
        real(path, *rest)
        if Path(path).name == "x" and not taken:
            taken.append(Path(path))
            os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(RuntimeError, match="is incomplete"), writing(tmp_path / "x", "sft") as folder:
        assert taken and folder.is_dir()

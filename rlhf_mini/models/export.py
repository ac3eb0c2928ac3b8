"""A checkpoint as a folder for other programs: one plain model, with its adapter merged, its tokenizer and its card.

    python -m rlhf_mini.models.export runs/default/ppo my-model
    HF_HUB_OFFLINE=0 python -m rlhf_mini.models.export runs/default/ppo my-model --push_to_hub me/my-model

transformers, vLLM and llama.cpp's converter to GGUF read such folders. A reward model's likelihood part is in the
folder `reader`; AutoModelForSequenceClassification loads the scalar alone.
"""

import argparse
import os
import shutil
from pathlib import Path

from rlhf_mini.core.checkpoints import load_checkpoint, read_stage_json
from rlhf_mini.core.console import UserError, console, run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_mini.models.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a stage, such as runs/default/ppo")
    parser.add_argument("folder", type=Path, help="new folder to write")
    parser.add_argument(
        "--push_to_hub", metavar="OWNER/NAME", help="also upload the folder, as a private repository if it is new"
    )
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.folder)
    console.print(f"{arguments.folder} written", soft_wrap=True)
    if arguments.push_to_hub:
        push(arguments.folder, arguments.push_to_hub)
        console.print(f"uploaded as {arguments.push_to_hub}", soft_wrap=True)


def export(path: Path, folder: Path) -> None:
    """Writes the model of the verified checkpoint in `path` to `folder`, which must be new."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from rlhf_mini.core.cards import card
    from rlhf_mini.models.adapters import has_scalar_head, load_model
    from rlhf_mini.models.scoring import READER

    stage = read_stage_json(path).get("stage")
    if stage is None:
        raise UserError(f"{path} is no finished checkpoint: name the folder of a stage, such as runs/default/ppo")
    checkpoint = load_checkpoint(path, stage)
    if folder.exists():
        raise UserError(f"{folder} is there already: name a new folder")
    scalar = has_scalar_head(AutoConfig.from_pretrained(path))
    model = load_model(AutoModelForSequenceClassification if scalar else AutoModelForCausalLM, path)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(path).save_pretrained(partial)
        if (path / READER).is_dir():
            shutil.copytree(path / READER, partial / READER)
        (partial / "README.md").write_text(card(checkpoint.info, adapter=False), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def push(folder: Path, name: str) -> None:
    """Uploads the folder. UserError if the network is off, or the Hub refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError("the network is off: set HF_HUB_OFFLINE=0 to upload")
    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as fault:
        raise UserError(f"{name} was not uploaded: {' '.join(str(fault).split())[:200]}") from None


if __name__ == "__main__":
    run(main)

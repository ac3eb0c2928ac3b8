"""What a round ranks: prompts, and K different responses of the SFT model or of the last round's policy."""

import argparse
from itertools import islice

from rlhf_mini.classroom.rank import RankOptions, drawn
from rlhf_mini.core.console import UserError, track
from rlhf_mini.core.examples import Prompt, Response
from rlhf_mini.core.rankings import Labeler, load_labelers
from rlhf_mini.workshop.store import NewItem, Store

SIMULATED = "rlhf_mini.world.labelers:training_labelers"


def new_round(store: Store, options: argparse.Namespace, number: int) -> None:
    """Samples the prompts of a round and begins it. From the second on, half of the samples are of the last policy."""
    labelers = load_labelers(SIMULATED)
    last = store.training(number - 1) if number > 1 else None
    settings = RankOptions(
        run=options.run, runs_dir=str(options.runs_dir), responses=options.responses, seed=number, labeler="class"
    )
    policy = options.runs_dir / last["run"] / "ppo" if last else None
    items: list[NewItem] = []
    groups = islice(drawn(settings, policy), options.prompts)
    for example, group in track(groups, "class: sampling responses to rank", options.prompts):
        ranks = [found for one in labelers if (found := ranks_of(one, example, group))]
        items.append((example, group, ranks))
    if len(items) <= options.common:
        raise UserError(f"only {len(items)} prompts have {options.responses} different responses: use --responses 3")
    store.begin_round(number, items, options.common)


def ranks_of(labeler: Labeler, example: Prompt, group: list[Response]) -> list[int]:
    try:
        return labeler.rank(example, group)
    except UserError:  # it cannot judge this prompt
        return []

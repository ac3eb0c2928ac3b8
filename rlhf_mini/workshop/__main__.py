"""The class ranks responses on its phones; one button trains a reward model and a policy on that.

    make class                                    # on this computer alone: http://127.0.0.1:8000/...
    make class HOST=0.0.0.0                       # for phones in the same network
    make class-train                              # what the button "Train on our rankings" does
    python -m rlhf_mini.workshop export class.jsonl --hashed
    python -m rlhf_mini.workshop import class.jsonl

Everything is in runs/<run>/<name>.sqlite; the same command goes on where the last one stopped, and another --name
begins another class. docs/class.md is a page for the teacher.
"""

import argparse
import secrets
import socket
from pathlib import Path

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.examples import read_rankings
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.options import check_run_name
from rlhf_mini.core.texts import LANGUAGES
from rlhf_mini.workshop import work
from rlhf_mini.workshop.store import Store

LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that look alike
LOCAL, EVERYWHERE = "127.0.0.1", "0.0.0.0"


def main() -> None:
    options = arguments()
    path = options.runs_dir / options.run / f"{options.name}.sqlite"
    if options.command in ("serve", "import"):  # these may begin a class
        load_checkpoint(options.runs_dir / options.run / "ppo", "ppo")  # a sentence about what to run, if there is none
    elif not path.is_file():
        raise UserError(f"there is no {path}: `make class` begins one")
    store = Store(path)
    number = options.round or int(store.setting("round", "1"))
    if options.command == "serve":
        serve(store, options, number)
    elif options.command in ("train", "round"):
        work.do(store, options, number)
    elif options.command == "export":
        rankings = list(store.rankings(number, options.hashed))
        write_jsonl(options.file, rankings)
        console.print(f"{options.file}: {len(rankings)} rankings of round {number} written", soft_wrap=True)
    else:
        added = store.take_in(number, read_rankings(options.file))
        console.print(f"{path}: {added} rankings of {options.file} are now in round {number}", soft_wrap=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_mini.workshop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = (
        "serve (default): the pages; train: a reward model and a policy on a round's rankings; round: sample what a "
        "round ranks; export: write a round's rankings to FILE; import: add those of FILE"
    )
    add("command", nargs="?", choices=("serve", "train", "round", "export", "import"), default="serve",
        metavar="COMMAND", help=text)  # fmt: skip
    add("file", nargs="?", type=Path, metavar="FILE", help="JSONL of rankings, of export and import")
    text = "finished run whose SFT model is ranked (default: default)"
    add("--run", type=check_run_name, default="default", help=text)
    add("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    text = "of the class; its runs are RUN-NAME-1, RUN-NAME-2 (default: ours)"
    add("--name", type=check_run_name, default="ours", help=text)
    add("--round", type=int, default=0, help="number of the round, but of serve (default: the present one)")
    pages = parser.add_argument_group("serve")
    add = pages.add_argument
    add("--host", default=LOCAL, help=f"address to listen on; {EVERYWHERE} for all (default: {LOCAL})")
    add("--port", type=int, default=8000, help="port (default: 8000)")
    add("--language", choices=LANGUAGES, default="en", help="of the projector; phones choose theirs (default: en)")
    rounds = parser.add_argument_group("serve and round")
    add = rounds.add_argument
    add("--prompts", type=int, default=60, help="prompts of a round (default: 60)")
    add("--common", type=int, default=5, help="of these, how many everybody gets (default: 5)")
    add("--responses", type=int, choices=range(2, 7), default=4, metavar="K", help="responses to each (default: 4)")
    text = "train: the reward model starts from data/judge (fresh) or from that of RUN (own) (default: fresh)"
    parser.add_argument("--start", choices=work.STARTS, default="fresh", help=text)
    parser.add_argument("--hashed", action="store_true", help="export: digests in the place of nicknames")
    options = parser.parse_intermixed_args()
    if (options.file is None) != (options.command not in ("export", "import")):
        parser.error("export and import, and nothing else, take a FILE")
    if options.round and options.command == "serve":
        parser.error("--round is not for serve, which goes on with the present one")
    if not 1 <= options.port <= 65535:
        parser.error("--port must be between 1 and 65535")
    if not 1 <= options.common <= options.prompts:
        parser.error("--common must be between 1 and --prompts")
    return options


def serve(store: Store, options: argparse.Namespace, number: int) -> None:
    """Samples what is ranked, if that has not been done, and serves until Ctrl-C."""
    import uvicorn

    from rlhf_mini.workshop.app import make_app

    if not store.items(number):
        from rlhf_mini.workshop.sampling import new_round

        new_round(store, options, number)
    if not store.items(number)[0].common:
        console.print("None of the prompts is everybody's (they were imported), so agreement may stay unknown.")
    code = store.setting("code") or store.set("code", "".join(secrets.choice(LETTERS) for _ in range(6)))
    secret = store.setting("secret") or store.set("secret", secrets.token_urlsafe(18))
    address = f"http://{own_address() if options.host == EVERYWHERE else options.host}:{options.port}"
    app = make_app(store, options, code, secret, address)
    try:
        with socket.create_server((options.host, options.port)):
            pass  # uvicorn would print a traceback
    except OSError as fault:
        raise UserError(
            f"cannot listen on {options.host}:{options.port} ({fault.strerror}): choose another --port"
        ) from None
    console.print(f"students:  {address}/{code}/", soft_wrap=True)
    console.print(f"teacher:   {address}/teacher/{secret}   (keep this address to yourself)", soft_wrap=True)
    if options.host == LOCAL:
        console.print(
            "Only this computer can open them. For phones in the same network: make class HOST=0.0.0.0", soft_wrap=True
        )
    console.print("Ctrl-C stops; `make class` goes on where it stopped.")
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
    )


def own_address() -> str:
    """This computer's address in its network; no packet is sent. UserError if there is no way out to ask about."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation
            return str(probe.getsockname()[0])
        except OSError:
            raise UserError(
                "this computer's address in its network cannot be told: look it up in the network settings, and "
                "give it, as in `make class HOST=192.168.1.20`"
            ) from None


if __name__ == "__main__":
    run(main)

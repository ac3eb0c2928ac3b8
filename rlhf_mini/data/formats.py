"""The formats of other people's data: how each is recognised, and what its records say.

Every record becomes items: a prompt, K responses to it and, if somebody compared them, their ranks. As what a stage
reads, an item is a ranking (K >= 2 with ranks), a demonstration (its best response) or a prompt.

    name                 columns
    prompt-completion    prompt, completion                 (TRL; texts or messages)
    ranking              prompt, responses, ranks           (this project's own)
    preference           prompt, chosen, rejected           (TRL; the prompt may be implicit)
    messages             messages                           (TRL)
    text                 text                               (TRL)
    prompt               prompt                             (TRL)
    hh-rlhf              chosen, rejected                   whole transcripts; Bai et al. 2022, arXiv 2204.05862
    summarize            info, summaries, choice            Stiennon et al. 2020, arXiv 2009.01325
    alpaca               instruction, input, output         Taori et al. 2023
    sharegpt             conversations                      as Vicuna's
    ultrafeedback        prompt, chosen, rejected, scores   Cui et al. 2023, arXiv 2310.01377
    oasst-tree           prompt with replies                OpenAssistant; Köpf et al. 2023, arXiv 2304.07327
    oasst                message_id, parent_id, text        the same messages, one a record
    helpsteer2           prompt, response, helpfulness      Wang et al. 2024, arXiv 2406.08673
    shp                  history, human_ref_A, human_ref_B  Ethayarajh et al. 2022, arXiv 2110.08420
    kochatgpt            prompt, completion_0, ..., ranking KoChatGPT's step 2; its steps 1 and 3 are TRL's

Of a conversation, the last reply is the response and what comes before it the prompt. A system message is put before
the first message of the user, with a blank line between, as not every chat template has a place for it. What a
conversation says before its first user message is left out, as Vicuna did.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import Any, NamedTuple

from rlhf_mini.core.examples import Messages
from rlhf_mini.core.rankings import competition
from rlhf_mini.data.records import Record

ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "system": "system",
}  # fmt: skip
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")


class Unusable(Exception):
    """A record from which no item can be made; the text says why."""


@dataclass
class Item:
    """A prompt, K responses to it and their ranks, 1 = best; no ranks if nobody compared them."""

    prompt: Messages
    responses: list[str] = field(default_factory=list)
    ranks: list[int] | None = None
    more: dict[str, Any] = field(default_factory=dict)
    """Other keys of a record in the project's own formats."""


class Text(NamedTuple):
    """A plain text."""

    text: str


Items = Iterator[Item | Text]


class Outcome(NamedTuple):
    """What became of one or more records: items, or the reason why there are none."""

    places: list[str]
    items: list[Item | Text]
    reason: str = ""


Placed = tuple[str, Record]


@dataclass(frozen=True)
class Format:
    """A format: whether a record looks like it, and what became of its records, each of which is in one outcome."""

    name: str
    fits: Callable[[Record], bool]
    outcomes: Callable[[Iterable[Placed]], Iterator[Outcome]]


def outcome(places: list[str], items: Items) -> Outcome:
    """All items, or none if one is Unusable."""
    try:
        return Outcome(places, list(items))
    except Unusable as fault:
        return Outcome(places, [], str(fault))


def each(items: Callable[[Record], Items]) -> Callable[[Iterable[Placed]], Iterator[Outcome]]:
    """For formats whose records do not depend on each other."""

    def outcomes(records: Iterable[Placed]) -> Iterator[Outcome]:
        return (outcome([place], items(record)) for place, record in records)

    return outcomes


# --- parts -----------------------------------------------------------------------------------------------------------


def text_in(record: Mapping[str, Any], name: str, blank: bool = False) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise Unusable(f'"{name}" is {"missing" if value is None else f"no text but {str(value)[:40]!r}"}')
    if not blank and not value.strip():
        raise Unusable(f'"{name}" is blank')
    return value


def number_in(record: Mapping[str, Any], name: str) -> float:
    value = record.get(name)
    if isinstance(value, str):  # CSV has texts only
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unusable(f'"{name}" is {"missing" if value is None else f"no number but {str(value)[:40]!r}"}')
    return value


def as_messages(value: Any, name: str, role: str = "role", content: str = "content") -> Messages:
    """Messages with the roles user and assistant in turn, beginning with the user."""
    if not isinstance(value, list) or not value:
        raise Unusable(f'"{name}" is not a list of messages')
    found: Messages = []
    system = ""
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise Unusable(f'"{name}[{index}]" is not a message')
        who = ROLES.get(str(message.get(role)).lower())
        if who is None:
            raise Unusable(f'"{name}[{index}]": the role {str(message.get(role))[:40]!r} is neither user nor assistant')
        said = message.get(content)
        if not isinstance(said, str) or not said.strip():
            raise Unusable(f'"{name}[{index}]": the turn of the {who} is empty')
        if who == "system":
            if found or system:
                raise Unusable(f'"{name}[{index}]": a system message that is not the first')
            system = said
        elif found and found[-1]["role"] == who:
            raise Unusable(f'"{name}[{index}]": two turns of the {who} follow each other')
        elif found or who == "user":
            found.append({"role": who, "content": said})
    if not found:
        raise Unusable(f'"{name}" has no turn of the user')
    return with_system(found, system)


def with_system(messages: Messages, system: str) -> Messages:
    """The system message before the first message of the user."""
    if not system:
        return messages
    return [{"role": "user", "content": f"{system}\n\n{messages[0]['content']}"}, *messages[1:]]


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def as_prompt(value: Any, name: str = "prompt") -> Messages:
    """A text, or messages that end with the user's."""
    messages = user(text_in({name: value}, name)) if not isinstance(value, list) else as_messages(value, name)
    if messages[-1]["role"] != "user":
        raise Unusable(f'"{name}" does not end with a message of the user')
    return messages


def as_response(value: Any, name: str) -> str:
    """A text, or one message of the assistant."""
    if not isinstance(value, list):
        return text_in({name: value}, name)
    if len(value) != 1 or not isinstance(value[0], dict) or ROLES.get(str(value[0].get("role"))) != "assistant":
        raise Unusable(f'"{name}" is not one message of the assistant')
    return text_in(value[0], "content")


def conversation(messages: Messages) -> Item:
    """The last reply as the response to what comes before it; a prompt if there is no reply."""
    if messages[-1]["role"] == "user" and len(messages) > 1:
        messages = messages[:-1]  # nobody answered it
    if messages[-1]["role"] == "user":
        return Item(messages)
    return Item(messages[:-1], [messages[-1]["content"]])


def preferred(first: Messages, second: Messages) -> Item:
    """Two conversations that part at their last turn, the first of which is the better one."""
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))
    if first == second:
        raise Unusable("chosen and rejected are the same")
    if shared != len(first) - 1 or shared != len(second) - 1:
        raise Unusable("chosen and rejected part before their last turn")
    if first[-1]["role"] != "assistant" or second[-1]["role"] != "assistant":
        raise Unusable("chosen and rejected part at a turn of the user")
    return Item(first[:-1], [first[-1]["content"], second[-1]["content"]], [1, 2])


def compared(prompt: Messages, responses: Sequence[str], scores: Sequence[float]) -> Item:
    """Ranks by score, the highest first; equal scores are tied."""
    return Item(prompt, list(responses), competition([-score for score in scores]))


def others(record: Record, *used: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in used}


# --- TRL's formats and the project's own -----------------------------------------------------------------------------


def of_prompt_completion(record: Record) -> Items:
    completion = as_response(record.get("completion"), "completion")
    yield Item(as_prompt(record.get("prompt")), [completion], more=others(record, "prompt", "completion"))


def of_ranking(record: Record) -> Items:
    responses, ranks = record["responses"], record["ranks"]
    if not isinstance(responses, list) or not all(isinstance(one, str) for one in responses) or len(responses) < 2:
        raise Unusable('"responses" is not a list of at least two texts')
    if not isinstance(ranks, list) or not all(type(one) is int and one >= 1 for one in ranks):
        raise Unusable('"ranks" is not a list of whole numbers from 1')
    ended = record.get("ended", [True] * len(responses))
    whole = isinstance(ended, list) and all(isinstance(one, bool) for one in ended)
    if not whole or len({len(responses), len(ranks), len(ended)}) > 1:
        raise Unusable('"responses", "ranks" and "ended" differ in length, or "ended" is not of true and false')
    if len({(text, end, rank) for text, end, rank in zip(responses, ended, ranks, strict=True)}) > len(
        set(zip(responses, ended, strict=True))
    ):
        raise Unusable("a response stands there twice, with two ranks")
    yield Item(as_prompt(record.get("prompt")), responses, ranks, others(record, "prompt", "responses", "ranks"))


def of_preference(record: Record) -> Items:
    chosen, rejected = record["chosen"], record["rejected"]
    if "prompt" in record:
        responses = [as_response(chosen, "chosen"), as_response(rejected, "rejected")]
        yield Item(as_prompt(record["prompt"]), responses, [1, 2], others(record, "prompt", "chosen", "rejected"))
    elif isinstance(chosen, list) and isinstance(rejected, list):
        yield preferred(as_messages(chosen, "chosen"), as_messages(rejected, "rejected"))
    else:  # the prompt is what both texts begin with, up to a space
        both = [text_in(record, "chosen"), text_in(record, "rejected")]
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=False)))
        prompt = both[0][: max(both[0].rfind(" ", 0, length), both[0].rfind("\n", 0, length), 0)]
        if not prompt.strip():
            raise Unusable("chosen and rejected begin with different words, so that there is no prompt")
        responses = [text[len(prompt) :].strip() for text in both]
        if not all(responses):
            raise Unusable("chosen or rejected is empty after the prompt")
        yield Item(user(prompt.strip()), responses, [1, 2])


def of_messages(record: Record) -> Items:
    yield conversation(as_messages(record["messages"], "messages"))


def of_text(record: Record) -> Items:
    yield Text(text_in(record, "text"))


def of_prompt(record: Record) -> Items:
    yield Item(as_prompt(record["prompt"]), more=others(record, "prompt"))


# --- public data sets ------------------------------------------------------------------------------------------------


def transcript(text: str, name: str) -> Messages:
    """The turns of "\\n\\nHuman: ... \\n\\nAssistant: ..."."""
    before, *turns = TURN.split(text)
    if before.strip() or not turns:
        raise Unusable(f'"{name}" does not begin with "Human:"')
    speakers, said = turns[::2], turns[1::2]
    return as_messages(
        [{"role": ROLES[who.lower()], "content": text.strip()} for who, text in zip(speakers, said, strict=True)], name
    )


def of_hh(record: Record) -> Items:
    yield preferred(*(transcript(text_in(record, name), name) for name in ("chosen", "rejected")))


def of_summaries(record: Record) -> Items:
    info, summaries, choice = record["info"], record["summaries"], record["choice"]
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) < 2:
        raise Unusable('"info" is not an object, or "summaries" has fewer than two')
    if type(choice) is not int or not 0 <= choice < len(summaries):
        raise Unusable('"choice" is not the number of a summary')
    texts = [text_in(one, "text").strip() if isinstance(one, dict) else text_in({}, "text") for one in summaries]
    title = info.get("title")
    parts = [f"SUBREDDIT: r/{info['subreddit']}"] if isinstance(info.get("subreddit"), str) else []
    parts += [f"TITLE: {title}"] if isinstance(title, str) and title.strip() else []
    parts += [f"POST: {text_in(info, 'post' if info.get('post') else 'article')}", "TL;DR:"]
    yield Item(user("\n\n".join(parts)), texts, [1 if index == choice else 2 for index in range(len(texts))])


def of_alpaca(record: Record) -> Items:
    given = record.get("input") or ""
    if not isinstance(given, str):
        raise Unusable('"input" is no text')
    prompt = user(text_in(record, "instruction") + (f"\n\n{given}" if given.strip() else ""))
    yield Item(prompt, [text_in(record, "output")] if record.get("output") is not None else [])


def of_sharegpt(record: Record) -> Items:
    yield conversation(as_messages(record["conversations"], "conversations", "from", "value"))


def of_ultrafeedback(record: Record) -> Items:
    both = preferred(as_messages(record["chosen"], "chosen"), as_messages(record["rejected"], "rejected"))
    yield compared(both.prompt, both.responses, [number_in(record, f"score_{name}") for name in ("chosen", "rejected")])


def of_helpsteer(records: Iterable[Placed]) -> Iterator[Outcome]:
    """Responses to one prompt follow each other; they are ranked by helpfulness."""
    for _, group in groupby(records, key=lambda placed: str(placed[1].get("prompt"))):
        placed = list(group)
        yield outcome([place for place, _ in placed], rated([record for _, record in placed]))


def rated(records: Sequence[Record]) -> Items:
    prompt = as_prompt(records[0].get("prompt"))
    responses = [text_in(record, "response") for record in records]
    scores = [number_in(record, "helpfulness") for record in records]
    yield compared(prompt, responses, scores) if len(records) > 1 else Item(prompt, responses)


def of_shp(record: Record) -> Items:
    label = number_in(record, "labels")
    if label not in (0, 1):
        raise Unusable('"labels" is neither 0 nor 1')
    responses = [text_in(record, "human_ref_A"), text_in(record, "human_ref_B")]
    yield Item(user(text_in(record, "history")), responses, [1, 2] if label == 1 else [2, 1])


def of_kochatgpt(record: Record) -> Items:
    ranking = record["ranking"]
    if not isinstance(ranking, list) or len(ranking) < 2 or not all(type(one) is int and one >= 0 for one in ranking):
        raise Unusable('"ranking" is not a list of at least two whole numbers, 0 for the best')
    responses = [text_in(record, f"completion_{index}") for index in range(len(ranking))]
    yield compared(user(text_in(record, "prompt")), responses, [-place for place in ranking])


# --- OpenAssistant ---------------------------------------------------------------------------------------------------


def of_tree(record: Record) -> Items:
    """An item for each message of the user: the replies to it, with ranks if all have one."""
    waiting: list[tuple[Messages, Any]] = [([], record["prompt"])]
    while waiting:
        before, node = waiting.pop(0)
        if not isinstance(node, dict):
            raise Unusable("a message of the tree is not an object")
        who = ROLES.get(str(node.get("role")).lower())
        if who != ("assistant" if before and before[-1]["role"] == "user" else "user"):
            raise Unusable(f"a message of the tree has the role {str(node.get('role'))[:40]!r} out of turn")
        said: Messages = [*before, {"role": who, "content": text_in(node, "text")}]
        replies = node.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
            raise Unusable('"replies" is not a list of messages')
        if who == "user":
            yield replies_to(said, replies)
        waiting += [(said, reply) for reply in replies]


def replies_to(prompt: Messages, replies: Sequence[Record]) -> Item:
    responses = [text_in(reply, "text") for reply in replies]
    places = [reply.get("rank") for reply in replies]
    if len(replies) > 1 and all(type(place) is int for place in places):
        return compared(prompt, responses, [-int(place) for place in places if place is not None])
    return Item(prompt, responses[:1])


def of_messages_by_tree(records: Iterable[Placed]) -> Iterator[Outcome]:
    """The messages of trees, one a record and in any order, which is why all of them are in memory."""
    nodes: dict[str, Placed] = {}
    children: dict[str, list[str]] = defaultdict(list)
    for place, record in records:
        name, parent = record.get("message_id"), record.get("parent_id")
        if not isinstance(name, str) or not name or not isinstance(parent, str | None):
            yield Outcome([place], [], '"message_id" or "parent_id" is no text')
        elif name in nodes:
            yield Outcome([place], [], f"the message_id {name[:40]!r} stands there before")
        else:
            nodes[name] = place, {**record, "replies": []}
            children[parent or ""].append(name)
    seen: set[str] = set()
    for root in children[""]:
        tree = [root]
        for name in tree:  # grows
            tree += children[name]
            nodes[name][1]["replies"] = [nodes[child][1] for child in children[name]]
        seen.update(tree)
        yield outcome([nodes[name][0] for name in tree], of_tree({"prompt": nodes[root][1]}))
    for name, (place, _) in nodes.items():
        if name not in seen:
            yield Outcome([place], [], "it does not hang on a first message that is there")


# --- all of them -----------------------------------------------------------------------------------------------------


def has(*names: str) -> Callable[[Record], bool]:
    return lambda record: all(name in record for name in names)


def is_hh(record: Record) -> bool:
    chosen = record.get("chosen")
    return "rejected" in record and "prompt" not in record and isinstance(chosen, str) and bool(TURN.match(chosen))


def is_ultrafeedback(record: Record) -> bool:
    scored = has("chosen", "rejected", "score_chosen", "score_rejected")(record)
    return scored and isinstance(record["chosen"], list) and len(record["chosen"]) > 1


def is_tree(record: Record) -> bool:
    prompt = record.get("prompt")
    return isinstance(prompt, dict) and ("replies" in prompt or has("text", "role")(prompt))


FORMATS = {
    one.name: one
    for one in (  # the first that fits
        Format("ranking", has("prompt", "responses", "ranks"), each(of_ranking)),
        Format("ultrafeedback", is_ultrafeedback, each(of_ultrafeedback)),
        Format("hh-rlhf", is_hh, each(of_hh)),
        Format("preference", has("chosen", "rejected"), each(of_preference)),
        Format("kochatgpt", has("prompt", "completion_0", "ranking"), each(of_kochatgpt)),
        Format("prompt-completion", has("prompt", "completion"), each(of_prompt_completion)),
        Format("helpsteer2", has("prompt", "response", "helpfulness"), of_helpsteer),
        Format("shp", has("history", "human_ref_A", "human_ref_B", "labels"), each(of_shp)),
        Format("summarize", has("info", "summaries", "choice"), each(of_summaries)),
        Format("alpaca", has("instruction"), each(of_alpaca)),
        Format("sharegpt", has("conversations"), each(of_sharegpt)),
        Format("oasst-tree", is_tree, each(of_tree)),
        Format("oasst", has("message_id", "text", "role"), of_messages_by_tree),
        Format("messages", has("messages"), each(of_messages)),
        Format("text", has("text"), each(of_text)),
        Format("prompt", has("prompt"), each(of_prompt)),
    )
}


def recognised(records: Iterable[Record]) -> Format | None:
    """The format that most of these records look like; None if none of them looks like any."""
    looks = Counter(next((one.name for one in FORMATS.values() if one.fits(record)), "") for record in records)
    del looks[""]
    return FORMATS[looks.most_common(1)[0][0]] if looks else None

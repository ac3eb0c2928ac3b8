"""What the class has said, in one SQLite file: students, what they were shown, rankings, votes, and rounds.

A label is on the disk when `label` returns (synchronous=FULL in WAL mode), so that a server that is killed loses
nothing that it has acknowledged. Each thread has a connection of its own; SQLite makes writers wait for each other.

Times are seconds since 1970 by the server's clock; those of phones are not used.
"""

import hashlib
import json
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rlhf_mini.core.examples import Messages, Prompt, Ranking, Response
from rlhf_mini.core.rankings import competition

WAIT = 5.0  # seconds for which a writer waits for another one
MAX_STUDENTS = 500
SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS students (
    id INTEGER PRIMARY KEY, token_sha256 TEXT UNIQUE NOT NULL, nickname TEXT NOT NULL, joined REAL NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL, common INTEGER NOT NULL, example TEXT NOT NULL,
    responses TEXT NOT NULL, ended TEXT NOT NULL, simulated TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shown (
    student INTEGER NOT NULL REFERENCES students, item INTEGER NOT NULL REFERENCES items, at REAL NOT NULL,
    PRIMARY KEY (student, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS labels (
    student INTEGER NOT NULL REFERENCES students, item INTEGER NOT NULL REFERENCES items, kind TEXT NOT NULL,
    ranks TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (student, item)) WITHOUT ROWID;
-- AUTOINCREMENT: a phone may still show a duel that is gone.
CREATE TABLE IF NOT EXISTS duels (
    id INTEGER PRIMARY KEY AUTOINCREMENT, round INTEGER NOT NULL, prompt TEXT NOT NULL, ours TEXT NOT NULL,
    theirs TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS votes (
    student INTEGER NOT NULL REFERENCES students, duel INTEGER NOT NULL REFERENCES duels, ours REAL NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (student, duel)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trainings (
    round INTEGER PRIMARY KEY, run TEXT NOT NULL, start TEXT NOT NULL, found TEXT NOT NULL);
"""
RANKED, ALL_BAD, SKIPPED = "ranked", "all_bad", "skipped"
KINDS = (RANKED, ALL_BAD, SKIPPED)


@dataclass(frozen=True)
class Student:
    """Somebody who has joined."""

    id: int
    nickname: str


@dataclass(frozen=True)
class Item:
    """A prompt and its responses, in the order of the file."""

    id: int
    round: int
    common: bool
    """Everybody gets it, so that agreement can be measured."""
    example: Prompt
    responses: list[str]
    ended: list[bool]
    """Whether each response ends by itself."""
    simulated: list[list[int]]
    """The ranks that each simulated labeler gives the responses; empty where they cannot judge."""


NewItem = tuple[Prompt, Sequence[Response], Sequence[Sequence[int]]]
"""A prompt, its responses, and how each simulated labeler ranks them."""


@dataclass(frozen=True)
class Label:
    """What a student said of an item: ranks in the order of the item's responses, 1 = best, equal = tied."""

    student: int
    item: int
    kind: str
    ranks: list[int]


@dataclass(frozen=True)
class Duel:
    """A response of the class's policy and one of the default policy."""

    id: int
    round: int
    prompt: Messages
    ours: str
    theirs: str


class Refused(Exception):
    """Something that a phone sent makes no sense. Its text is a key of texts/*.yaml, after "error."."""


class Store:
    """The file. Methods raise sqlite3.OperationalError if the disk is full or another process holds the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        with self._writing() as db:
            db.executescript(SCHEMA)

    # --- students ----------------------------------------------------------------------------------------------------

    def join(self, nickname: str, token: str) -> None:
        """Takes a student in, once for each token, which their phone makes up and keeps; only its digest is stored.

        A nickname that somebody has already gets a number.
        """
        name = " ".join(nickname.split())[:24]
        if not name or not name.isprintable():
            raise Refused("nickname")
        if not 20 <= len(token) <= 64:
            raise Refused("join")
        with self._writing() as db:
            if db.execute("SELECT 1 FROM students WHERE token_sha256 = ?", (digest(token),)).fetchone():
                return  # a second tap, or the first one's answer was lost
            if db.execute("SELECT count(*) FROM students").fetchone()[0] >= MAX_STUDENTS:
                raise Refused("full")
            taken = {nickname for (nickname,) in db.execute("SELECT nickname FROM students")}
            names = (f"{name} {number}" if number > 1 else name for number in count(1))
            values = (digest(token), next(one for one in names if one not in taken), time.time())
            db.execute("INSERT INTO students (token_sha256, nickname, joined) VALUES (?, ?, ?)", values)

    def student(self, token: str) -> Student | None:
        """Whose token this is."""
        query = "SELECT id, nickname FROM students WHERE token_sha256 = ?"
        found = self._db.execute(query, (digest(token),)).fetchone()
        return Student(*found) if found else None

    def nicknames(self) -> dict[int, str]:
        return dict(self._db.execute("SELECT id, nickname FROM students ORDER BY id").fetchall())

    def hide(self, student: int) -> None:
        """Gives a student a number in the place of their nickname."""
        with self._writing() as db:
            name = f"no. {student}"
            if not db.execute("UPDATE students SET nickname = ? WHERE id = ?", (name, student)).rowcount:
                raise Refused("button")

    # --- ranking -----------------------------------------------------------------------------------------------------

    def begin_round(self, number: int, items: Sequence[NewItem], common: int) -> None:
        """Makes this the round that is ranked; the first `common` of its prompts are everybody's.

        Does nothing if the round has prompts already: somebody else was faster.
        """
        with self._writing() as db:
            if db.execute("SELECT 1 FROM items WHERE round = ?", (number,)).fetchone():
                return
            for index, (example, responses, simulated) in enumerate(items):
                texts, ended = [one.text for one in responses], [one.ended for one in responses]
                values = (number, index < common, dumps(example), dumps(texts), dumps(ended), dumps(simulated))
                db.execute(INSERT_ITEM, values)
            db.execute("INSERT OR REPLACE INTO settings VALUES ('round', ?)", (str(number),))
            db.execute("INSERT OR REPLACE INTO settings VALUES ('phase', 'rank')")

    def items(self, number: int) -> list[Item]:
        rows = self._db.execute(f"{SELECT_ITEM} WHERE round = ? ORDER BY id", (number,)).fetchall()
        return [as_item(row) for row in rows]

    def next_item(self, student: int, number: int) -> Item | None:
        """What a student ranks next; the same one until it is labeled. None if the round has nothing more for them.

        Common prompts and others take turns. Of the others, the one that fewest have been shown comes first.
        """
        with self._writing() as db:
            open_one = db.execute(
                f"{SELECT_ITEM} JOIN shown ON item = id WHERE student = ? AND round = ? AND id NOT IN "
                "(SELECT item FROM labels WHERE student = ?) ORDER BY at",
                (student, number, student),
            ).fetchone()
            if open_one:
                return as_item(open_one)
            seen = db.execute(
                "SELECT count(*) FROM shown JOIN items ON item = id WHERE student = ? AND round = ?", (student, number)
            ).fetchone()[0]
            found = db.execute(
                f"{SELECT_ITEM} WHERE round = ? AND id NOT IN (SELECT item FROM shown WHERE student = ?) ORDER BY "
                "common = ? DESC, CASE WHEN common THEN 0 ELSE (SELECT count(*) FROM shown WHERE item = id) END, id",
                (number, student, seen % 2 == 0),
            ).fetchone()
            if found:
                db.execute("INSERT INTO shown VALUES (?, ?, ?)", (student, found[0], time.time()))
        return as_item(found) if found else None

    def label(self, student: int, item: int, kind: str, ranks: Sequence[int]) -> None:
        """Keeps what a student said of an item that they were shown. Of two answers (two tabs), the first counts."""
        with self._writing() as db:
            shown = db.execute(
                "SELECT responses FROM items JOIN shown ON item = id WHERE student = ? AND id = ?", (student, item)
            ).fetchone()
            if not shown:
                raise Refused("not_yours")
            check_label(kind, ranks, len(json.loads(shown[0])))
            db.execute(
                "INSERT OR IGNORE INTO labels VALUES (?, ?, ?, ?, ?)",
                (student, item, kind, dumps(list(ranks)), time.time()),
            )

    def labels(self, number: int) -> list[Label]:
        """All labels of a round, in the order in which they came."""
        rows = self._db.execute(
            "SELECT student, item, kind, ranks FROM labels JOIN items ON item = id WHERE round = ? "
            "ORDER BY at, student",
            (number,),
        ).fetchall()
        return [Label(student, item, kind, json.loads(ranks)) for student, item, kind, ranks in rows]

    def done(self, student: int, number: int) -> int:
        """How many prompts of a round a student has answered."""
        return int(
            self._db.execute(
                "SELECT count(*) FROM labels JOIN items ON item = id WHERE student = ? AND round = ?", (student, number)
            ).fetchone()[0]
        )

    def rankings(self, number: int, hashed: bool = False) -> Iterator[Ranking]:
        """A round's rankings, as `make rm ARGS="--rankings FILE"` reads them; without skipped prompts.

        Args:
            hashed: digests in the place of nicknames, with a salt that only this file has.
        """
        items = {item.id: item for item in self.items(number)}
        names = self.nicknames()
        if hashed:
            salt = self.setting("salt") or self.set("salt", secrets.token_hex(16))
            names = {student: digest(f"{salt}{student}")[:12] for student in names}
        for label in self.labels(number):
            if label.kind != SKIPPED:
                item = items[label.item]
                ranking: Ranking = {
                    **item.example,
                    "responses": item.responses,
                    "ended": item.ended,
                    "ranks": label.ranks,
                    "labeler": names[label.student],
                }
                yield ranking

    def take_in(self, number: int, rankings: Sequence[Ranking]) -> int:
        """Adds rankings from a file as a round's: each labeler becomes a student. Returns how many were new."""
        added = 0
        students: dict[str, int] = {}
        known = {item_key(item.example["prompt"], item.responses, item.ended): item.id for item in self.items(number)}
        with self._writing() as db:
            for ranking in rankings:
                ended = ranking.get("ended", [True] * len(ranking["responses"]))
                key = item_key(ranking["prompt"], ranking["responses"], ended)
                if key not in known:
                    example = {k: v for k, v in ranking.items() if k not in ("responses", "ended", "ranks", "labeler")}
                    values = (number, False, dumps(example), dumps(ranking["responses"]), dumps(ended), "[]")
                    known[key] = int(db.execute(INSERT_ITEM, values).lastrowid or 0)
                name = "".join(filter(str.isprintable, str(ranking.get("labeler", "file"))))[:24] or "file"
                if name not in students:
                    nobody = f"imported: {name}"  # no digest, so that no phone can have a token for it
                    query = "INSERT OR IGNORE INTO students (token_sha256, nickname, joined) VALUES (?, ?, ?)"
                    db.execute(query, (nobody, name, time.time()))
                    found = db.execute("SELECT id FROM students WHERE token_sha256 = ?", (nobody,)).fetchone()
                    students[name] = int(found[0])
                kind = ALL_BAD if len(set(ranking["ranks"])) == 1 else RANKED
                row = (students[name], known[key], kind, dumps(competition(ranking["ranks"])), time.time())
                added += db.execute("INSERT OR IGNORE INTO labels VALUES (?, ?, ?, ?, ?)", row).rowcount
        return added

    # --- voting ------------------------------------------------------------------------------------------------------

    def add_duels(self, number: int, duels: Sequence[tuple[Messages, str, str]]) -> None:
        """Prompts with a response of the class's policy and one of the default policy. They replace earlier ones."""
        with self._writing() as db:
            db.execute("DELETE FROM votes WHERE duel IN (SELECT id FROM duels WHERE round = ?)", (number,))
            db.execute("DELETE FROM duels WHERE round = ?", (number,))
            db.executemany(
                "INSERT INTO duels (round, prompt, ours, theirs) VALUES (?, ?, ?, ?)",
                [(number, dumps(prompt), ours, theirs) for prompt, ours, theirs in duels],
            )

    def duels(self, number: int) -> list[Duel]:
        rows = self._db.execute(
            "SELECT id, round, prompt, ours, theirs FROM duels WHERE round = ? ORDER BY id", (number,)
        )
        return [Duel(row[0], row[1], json.loads(row[2]), row[3], row[4]) for row in rows.fetchall()]

    def voted(self, student: int, number: int) -> int:
        """How many of a round's duels a student has voted on."""
        return sum(voter == student for voter, _, _ in self.votes(number))

    def next_duel(self, student: int, number: int) -> Duel | None:
        """The next one that a student has not voted on, in an order of their own."""
        voted = {duel for (duel,) in self._db.execute("SELECT duel FROM votes WHERE student = ?", (student,))}
        rest = [duel for duel in self.duels(number) if duel.id not in voted]
        return min(rest, key=lambda duel: random.Random(f"{student} {duel.id}").random(), default=None)

    def vote(self, student: int, number: int, duel: int, ours: float) -> None:
        """1 for the class's response, 0 for the other, 0.5 for neither; the first vote in a duel counts."""
        with self._writing() as db:
            if not db.execute("SELECT 1 FROM duels WHERE id = ? AND round = ?", (duel, number)).fetchone():
                raise Refused("not_yours")
            db.execute("INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?)", (student, duel, ours, time.time()))

    def votes(self, number: int) -> list[tuple[int, int, float]]:
        """(student, duel, ours) of a round."""
        return self._db.execute(
            "SELECT student, duel, votes.ours FROM votes JOIN duels ON duel = id WHERE round = ? ORDER BY at", (number,)
        ).fetchall()

    # --- rounds and trainings ----------------------------------------------------------------------------------------

    def setting(self, name: str, default: str = "") -> str:
        found = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else default

    def set(self, name: str, value: str) -> str:
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))
        return value

    def training(self, number: int) -> dict[str, Any] | None:
        """What the last training on a round's rankings found: its run, where its reward model started, and more."""
        found = self._db.execute("SELECT run, start, found FROM trainings WHERE round = ?", (number,)).fetchone()
        return {"run": found[0], "start": found[1], **json.loads(found[2])} if found else None

    def set_training(self, number: int, run: str, start: str, found: dict[str, Any]) -> None:
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO trainings VALUES (?, ?, ?, ?)", (number, run, start, dumps(found)))

    # --- the connection ----------------------------------------------------------------------------------------------

    @property
    def _db(self) -> sqlite3.Connection:
        if not hasattr(self._local, "db"):
            db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            self._local.db = db
        connection: sqlite3.Connection = self._local.db
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk, or nothing."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            if db.in_transaction:  # executescript commits by itself
                db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


SELECT_ITEM = "SELECT id, round, common, example, responses, ended, simulated FROM items"
INSERT_ITEM = "INSERT INTO items (round, common, example, responses, ended, simulated) VALUES (?, ?, ?, ?, ?, ?)"


def as_item(row: Sequence[Any]) -> Item:
    return Item(row[0], row[1], bool(row[2]), *map(json.loads, row[3:7]))


def item_key(prompt: Messages, responses: Sequence[str], ended: Sequence[bool]) -> str:
    return dumps([prompt, list(responses), list(ended)])


def check_label(kind: str, ranks: Sequence[int], number: int) -> None:
    """Raises Refused unless these are ranks of `number` responses, such as [1, 3, 1, 4] with a tie for the best."""
    if kind == SKIPPED:
        valid = list(ranks) == []
    else:
        whole = len(ranks) == number and all(type(rank) is int for rank in ranks)
        valid = whole and list(ranks) == competition(ranks)
        valid = valid and (kind == RANKED or (kind == ALL_BAD and set(ranks) == {1}))
    if not valid:
        raise Refused("ranks")


def shuffle_of(student: int, item: int, number: int) -> list[int]:
    """The order in which a student sees the responses: place -> index. Always the same for the same two."""
    return random.Random(f"{student} {item}").sample(range(number), number)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

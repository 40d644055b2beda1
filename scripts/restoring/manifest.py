"""What became of each photo, in an SQLite file in the target folder that several clients may share. That of a target
behind a URL is on this machine.

A row is claimed by one client before it works on the photo, and says `done` once the results are in place. A client
shows that it is alive by an open transaction on a file of its own: the system ends that with the process, however the
process ends, so the claims of a killed client are free at once.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import RestoreError
from .target import Target

CLAIMED, DONE, FAILED = "claimed", "done", "failed"
BUSY_SECONDS = 60
SCHEMA = """
CREATE TABLE IF NOT EXISTS photos (
    name TEXT PRIMARY KEY, state TEXT NOT NULL, owner TEXT, stamp TEXT, digest TEXT, recipe TEXT,
    host TEXT, seconds REAL, seed TEXT, attempts INTEGER, reason TEXT, note TEXT, files TEXT, at REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, name TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (
    prompt TEXT PRIMARY KEY, name TEXT NOT NULL, host TEXT NOT NULL, client TEXT NOT NULL, recipe TEXT, stamp TEXT
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a photo.

    stamp: size and time of the photo's file. digest: of its content. recipe: of the workflow and the format.
    files: path below the target -> size in bytes.
    """

    state: str
    owner: str = ""
    stamp: str = ""
    digest: str = ""
    recipe: str = ""
    host: str = ""
    seconds: float = 0.0
    seed: Any = None
    attempts: int = 0
    reason: str = ""
    note: str = ""
    files: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """A job that a client which is gone left on a host."""

    prompt: str
    host: str
    recipe: str
    stamp: str


class Manifest:
    """The SQLite file of a target folder, and this client's presence in it.

    Raises RestoreError where the folder cannot be written, or the file is damaged; and so does every method.
    """

    def __init__(self, target: Target):
        self.folder = target.records
        self.path = self.folder / "manifest.sqlite"
        self.client = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        self._presence: sqlite3.Connection | None = None
        try:
            (self.folder / "clients").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RestoreError(f"{self.folder.parent} cannot be written: {error.strerror or error}") from error
        with explained(self.path):
            self._database = connect(self.path, BUSY_SECONDS)
            self._database.execute("PRAGMA synchronous = NORMAL")
            with self._changes() as database:
                for statement in SCHEMA.split(";"):
                    database.execute(statement)
            self._presence = connect(self._client_file(self.client), 0)
            self._presence.execute("BEGIN EXCLUSIVE")

    def close(self) -> None:
        """Leave: what this client still claims is free."""
        if self._presence is not None:
            self._presence.close()
            self._presence = None
            with contextlib.suppress(OSError):
                self._client_file(self.client).unlink()
        self._database.close()

    def _client_file(self, client: str) -> Path:
        return self.folder / "clients" / client

    def partial(self) -> Path:
        """A path that no other client and no other call of this one uses."""
        return self.folder / f"{self.client}-{uuid.uuid4().hex[:12]}.partial"

    def entries(self) -> dict[str, Entry]:
        with explained(self.path), self._lock:
            return {row["name"]: entry(row) for row in self._database.execute("SELECT * FROM photos")}

    def get(self, name: str) -> Entry | None:
        with explained(self.path), self._lock:
            row = self._database.execute("SELECT * FROM photos WHERE name = ?", (name,)).fetchone()
        return None if row is None else entry(row)

    def claim(self, name: str, before: Entry | None) -> Entry | None:
        """Take a photo. Returns None when it is ours now, else the row that another client has made since `before`."""
        with explained(self.path), self._changes() as database:
            row = database.execute("SELECT * FROM photos WHERE name = ?", (name,)).fetchone()
            now = None if row is None else entry(row)
            if now is not None and now.state == CLAIMED:
                if now.owner != self.client and self._alive(now.owner):
                    return now
            elif now is not None and now != before:
                return now
            database.execute(
                "INSERT INTO photos (name, state, owner, at) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET state = excluded.state, owner = excluded.owner, at = excluded.at",
                (name, CLAIMED, self.client, time.time()),
            )
        return None

    def release(self, name: str) -> None:
        """Give a claim back: the photo is as if never touched."""
        with explained(self.path), self._changes() as database:
            database.execute(
                "DELETE FROM photos WHERE name = ? AND owner = ? AND state = ?", (name, self.client, CLAIMED)
            )

    def sent(self, name: str, prompt: str, host: str, recipe: str, stamp: str) -> None:
        """A job for the photo is about to be queued on a host."""
        with explained(self.path), self._changes() as database:
            database.execute(
                "INSERT OR REPLACE INTO jobs (prompt, name, host, client, recipe, stamp) VALUES (?, ?, ?, ?, ?, ?)",
                (prompt, name, host, self.client, recipe, stamp),
            )

    def ended(self, prompt: str) -> None:
        """The job is no more on its host."""
        with explained(self.path), self._changes() as database:
            database.execute("DELETE FROM jobs WHERE prompt = ?", (prompt,))

    def left(self, name: str) -> list[Left]:
        """Jobs of a photo that is ours now which earlier clients have left behind."""
        with explained(self.path), self._lock:
            query = "SELECT * FROM jobs WHERE name = ? AND client != ?"
            rows = self._database.execute(query, (name, self.client)).fetchall()
        return [Left(row["prompt"], row["host"], row["recipe"], row["stamp"]) for row in rows]

    def hosts_before(self) -> dict[str, str]:
        """Photo -> a host that has, or had, a job for it."""
        with explained(self.path), self._lock:
            return {row["name"]: row["host"] for row in self._database.execute("SELECT name, host FROM jobs")}

    def done(self, name: str, found: Entry, sizes: Mapping[str, int], put: Callable[[], None]) -> None:
        """Put results in place and say so: both or, but for a crash, neither.

        sizes: path below the target -> bytes. put: does it; nothing where that takes long and was done before. Raises
        FileExistsError where a result belongs to another photo or is a folder, OSError.
        """
        with explained(self.path), self._changes() as database:
            self._check_owner(database, name, sizes)
            put()
            database.execute("DELETE FROM files WHERE name = ?", (name,))
            database.executemany("INSERT INTO files VALUES (?, ?, ?)", [(path, name, sizes[path]) for path in sizes])
            self._write(database, name, DONE, found, sizes)

    def check_free(self, name: str, paths: Iterable[str]) -> None:
        """Raises FileExistsError where one of the paths is the result of another photo."""
        with explained(self.path), self._lock:
            self._check_owner(self._database, name, paths)

    @staticmethod
    def _check_owner(database: sqlite3.Connection, name: str, paths: Iterable[str]) -> None:
        for path in paths:
            owner = database.execute("SELECT name FROM files WHERE path = ?", (path,)).fetchone()
            if owner is not None and owner["name"] != name:
                raise FileExistsError(f"{path} is the result of another photo, {owner['name']}; rename one of them")

    def failed(self, name: str, found: Entry) -> None:
        """Set a photo aside with the reason."""
        with explained(self.path), self._changes() as database:
            self._write(database, name, FAILED, found, {})

    def _write(self, database: sqlite3.Connection, name: str, state: str, e: Entry, sizes: Mapping[str, int]) -> None:
        values = (e.stamp, e.digest, e.recipe, e.host, e.seconds, json.dumps(e.seed), e.attempts, e.reason, e.note)
        database.execute(
            "INSERT OR REPLACE INTO photos (name, state, owner, stamp, digest, recipe, host, seconds, seed, attempts, "
            "reason, note, files, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (name, state, self.client, *values, json.dumps(dict(sizes)), time.time()),
        )

    def _alive(self, client: str) -> bool:
        path = self._client_file(client)
        if not path.exists():
            return False
        probe = connect(path, 0)
        try:
            probe.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return True
        except sqlite3.DatabaseError:  # no file of ours
            return False
        finally:
            probe.close()
        return False

    def sweep(self) -> None:
        """Remove what killed clients have left: unfinished files and signs of life."""
        for path in self.folder.glob("*.partial"):
            if not self._alive(path.name.partition("-")[0]):
                path.unlink(missing_ok=True)
        for path in (self.folder / "clients").iterdir():
            client = path.name.partition("-")[0]  # SQLite adds a file named CLIENT-journal
            if client != self.client and not self._alive(client):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _changes(self) -> Iterator[sqlite3.Connection]:
        """A transaction: no other client writes between the reads and writes in it."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise


def connect(path: Path, wait: float) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
    database.row_factory = sqlite3.Row
    return database


def entry(row: sqlite3.Row) -> Entry:
    return Entry(
        row["state"],
        row["owner"] or "",
        row["stamp"] or "",
        row["digest"] or "",
        row["recipe"] or "",
        row["host"] or "",
        row["seconds"] or 0.0,
        json.loads(row["seed"] or "null"),
        row["attempts"] or 0,
        row["reason"] or "",
        row["note"] or "",
        json.loads(row["files"] or "{}"),
    )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Troubles of the manifest as RestoreError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise RestoreError(f"{path} cannot be written: {error}. Is the disk full, or read-only?") from error
        raise RestoreError(
            f"{path} is damaged ({error}). Delete it and run this again; results that are there stay."
        ) from error

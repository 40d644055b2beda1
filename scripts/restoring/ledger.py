"""The photos of a run: which are done, ours, another client's or set aside, and what each becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import RestoreError, printable
from .attempt import Made, Recipe, Results
from .manifest import CLAIMED, DONE, FAILED, Entry, Manifest
from .pictures import SUFFIX_OF
from .progress import Lines
from .results import has_result, row_of
from .sources import Photo, separator
from .target import Target


@dataclass
class Outcome:
    """How a run ended. stopped: by which signal, 0 for none."""

    failures: int = 0
    total: int = 0
    stopped: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


class Ledger:
    """What is known of the photos, by their keys; what comes of one goes into the manifest and to the person.

    again: also what has its result. Methods raise RestoreError where the manifest or the target cannot be written.
    """

    def __init__(self, recipe: Recipe, target: Target, manifest: Manifest, progress: Lines, again: bool = False):
        self.recipe = recipe
        self.target = target
        self.manifest = manifest
        self.progress = progress
        self.again = again
        self.photos: dict[str, Photo] = {}
        self.theirs: set[str] = set()
        self._positions: dict[str, int] = {}
        self._before: dict[str, Entry] = {}
        self._ours: set[str] = set()
        self._there: set[str] = set()
        self._failed: set[str] = set()

    def read(self) -> None:
        """What earlier runs have written, and what is in the target."""
        self.target.prepare()
        self._before = self.manifest.entries()

    def add(self, photos: Sequence[Photo]) -> list[str]:
        """Photos to see to; returns those without results."""
        there, other, todo = [], 0, []
        for photo in photos:
            self._positions.setdefault(photo.key, len(self._positions) + 1)
            self.photos[photo.key] = photo
        self.progress.total(len(self.photos))
        for photo in photos:
            key, entry = photo.key, self._before.get(photo.key)
            if not self.again and has_result(photo, entry, self.target, self.recipe.form):
                self._there.add(key)
                there.append(f"{self.counter(key)}: {self._result_of(key, entry)} is there already")
                other += entry is not None and entry.recipe != self.recipe.digest
            else:
                todo.append(key)
        self.progress.there(there)
        if other:
            self.progress.note(f"{other} of them by another workflow or other settings; --again restores them anew")
        return todo

    def replaced(self, photos: Sequence[Photo]) -> list[str]:
        """Photos that came, or were replaced, while the run was under way."""
        for photo in photos:
            for keys in (self._there, self._failed, self._ours, self.theirs):
                keys.discard(photo.key)
            if (entry := self.manifest.get(photo.key)) is not None:
                self._before[photo.key] = entry
        return self.add(photos)

    def counter(self, key: str) -> str:
        photo = self.photos[key]
        return f"[{self._positions[key]}/{len(self.photos)}] {photo.name}{photo.path.suffix}"

    def _result_of(self, key: str, entry: Entry | None) -> str:
        name = next(iter(entry.files), "") if entry is not None else ""
        return f"{self.target}/{name or f'{self.photos[key].name}{SUFFIX_OF[self.recipe.form]}'}"

    def claim(self, key: str) -> bool:
        """Whether a photo is ours; else another client has, or had, it."""
        if key in self._ours:
            return True
        entry = self.manifest.claim(key, self._before.get(key))
        if entry is None:
            self._ours.add(key)
            return True
        if entry.state == CLAIMED:
            if not self.theirs:
                self.progress.note("another client works on this folder too")
            self.theirs.add(key)
        else:
            self._theirs_ended(key, entry)
        return False

    def look_at_theirs(self) -> list[str]:
        """Photos that other clients have left, ours from now on; what they are through with is noted."""
        left = []
        for key in sorted(self.theirs):
            entry = self.manifest.claim(key, self._before.get(key))
            if entry is None:
                self.theirs.discard(key)
                self._ours.add(key)
                left.append(key)
            elif entry.state != CLAIMED:
                self._theirs_ended(key, entry)
        return left

    def _theirs_ended(self, key: str, entry: Entry) -> None:
        self.theirs.discard(key)
        if entry.state == DONE:
            self._there.add(key)
            self.progress.done(f"{self.counter(key)}: restored by another client")
        elif entry.state == FAILED:
            self._failed.add(key)
            self.progress.failed(f"{self.counter(key)}: failed: {entry.reason}")

    def sizes(self, key: str, results: Results) -> dict[str, int]:
        """Where results go, and their bytes: NAME.png for one, NAME_1.png and so on for several."""
        name, suffix = self.photos[key].name, SUFFIX_OF[self.recipe.form]
        if len(results.sizes) == 1:
            names = [name]
        else:
            # A list first: photos may come meanwhile, and this may be another thread than theirs.
            between = separator(name, {photo.name for photo in list(self.photos.values())})
            names = [f"{name}{between}{number}" for number in range(1, len(results.sizes) + 1)]
        return {f"{each}{suffix}": size for each, size in zip(names, results.sizes, strict=True)}

    def made(self, key: str, made: Made, put: bool, where: str = "") -> None:
        """Results come to their place, unless they are there already (not `put`). Raises FileExistsError, too."""
        sizes = self.sizes(key, made.results)
        try:
            self.manifest.done(
                key, made.entry, sizes, lambda: made.results.put(self.target, list(sizes)) if put else None
            )
        except FileExistsError:
            raise
        except OSError as error:
            raise RestoreError(f"{error.filename} cannot be written: {error.strerror or error}") from error
        many = f" ({len(sizes)} images)" if len(sizes) > 1 else ""
        self.progress.done(f"{self.counter(key)}: {made.entry.seconds:.1f} s{many}{where}")

    def set_aside(self, key: str, host: str, attempts: int, reason: str) -> None:
        self._failed.add(key)
        reason = printable(reason)
        entry = Entry("", recipe=self.recipe.digest, host=host, attempts=attempts, reason=reason)
        self.manifest.failed(key, entry)
        self.progress.failed(f"{self.counter(key)}: failed: {reason}")

    def release(self) -> None:
        """Give up what is still ours."""
        for key in self._ours:
            self.manifest.release(key)

    def outcome(self, stopped: int) -> Outcome:
        entries: Mapping[str, Entry] = self.manifest.entries()
        rows = [row_of(photo, entries.get(key), key in self._there) for key, photo in self.photos.items()]
        return Outcome(len(self._failed), len(self.photos), stopped, rows)

"""A folder that fills: photos that come, or are replaced, while a run is under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from . import NoPhotos, RestoreError
from .sources import Photo


class Arrivals:
    """Looks at the sources again and again, in a thread.

    find: the photos that are there. known: those that are seen to already. A photo is told once it has stayed the same
    from one look to the next, so that none is read while it is still being copied.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[Photo]],
        known: Sequence[Photo],
        pause: float,
        tell: Callable[[list[Photo]], None],
        complain: Callable[[str], None],
    ):
        self._find = find
        self._pause = pause
        self._tell = tell
        self._complain = complain
        self._told = stamps_of(known)
        self._before: Mapping[Photo, str] = {}
        self._complaint = ""
        self._over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._look, daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(self._pause):
            if new := self.look():
                self._tell(new)

    def look(self) -> list[Photo]:
        """Photos that are new since the last look that told them, and whole."""
        try:
            found = stamps_of(self._find())
        except NoPhotos:
            found = {}
        except RestoreError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._complain(self._complaint)
            return []
        same = {photo: stamp for photo, stamp in found.items() if self._before.get(photo) == stamp}
        new = [photo for photo, stamp in same.items() if self._told.get(photo) != stamp]
        self._told.update({photo: same[photo] for photo in new})
        self._before = found
        return new


def stamps_of(photos: Sequence[Photo]) -> dict[Photo, str]:
    stamps = {}
    for photo in photos:
        try:
            stamps[photo] = photo.stamp()
        except OSError:
            stamps[photo] = ""
    return stamps

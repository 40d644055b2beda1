"""What scripts/restore.py is made of: photos, workflow, hosts, manifest, pictures, and the run over all of them.

Nothing here needs more than Python. Pillow adds formats and what photos carry besides pixels, tqdm the bar.
"""

from __future__ import annotations


class RestoreError(Exception):
    """The run cannot start or go on; the message says what to change."""


class NoPhotos(RestoreError):
    """There is nothing to restore, yet."""


def printable(text: object) -> str:
    """Without what a terminal or a database cannot take: names of files may hold bytes that are no text."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")

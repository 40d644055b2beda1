"""Libraries written in Rust, where they give up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises RuntimeError with the first line of what a Rust library says when it panics inside.

    pyo3 makes a panic a BaseException, which no loader expects: it ends the thread in which a host runs its queue. The
    class is private to each compiled library and can be told by its name only.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        said = str(error).strip().splitlines()[:1]
        raise RuntimeError(f"a compiled library gave up: {said[0] if said else 'it does not say why'}") from None

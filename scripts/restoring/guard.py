"""Runs a command until it ends, or until whoever started this is gone: its end of standard input closes with it.

python guard.py COMMAND [ARGUMENTS...]
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading

FAREWELL = 10.0
"""Seconds to end by itself."""

SIGKILL = 9
"""As `signal` names it, but for Windows."""


def die_with_parent() -> None:
    """In the child, before it starts: ask Linux to end it when this process is killed."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, SIGKILL)


def end_with_input(child: subprocess.Popen[bytes]) -> None:
    sys.stdin.buffer.read()
    child.terminate()
    try:
        child.wait(FAREWELL)
    except subprocess.TimeoutExpired:
        child.kill()


def main(command: list[str]) -> int:
    prepare = die_with_parent if sys.platform == "linux" else None
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare)
    threading.Thread(target=end_with_input, args=(child,), daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

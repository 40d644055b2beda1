"""Runs a command until it ends, or until whoever started this is gone: its end of standard input closes with it.

python guard.py FOLDER COMMAND [ARGUMENTS...]

FOLDER is the command's, and is removed once that has ended.
"""

from __future__ import annotations

import ctypes
import os
import shutil
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
    while os.read(0, 1024):  # not sys.stdin, whose lock a thread must not hold when the interpreter ends
        pass
    child.terminate()
    try:
        child.wait(FAREWELL)
    except subprocess.TimeoutExpired:
        child.kill()


def run(folder: str, command: list[str]) -> int:
    """The command, and then its folder goes. Returns its exit status, 128 and the number for a signal."""
    try:
        prepare = die_with_parent if sys.platform == "linux" else None
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare)
        threading.Thread(target=end_with_input, args=(child,), daemon=True).start()
        status = child.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def main(folder: str, command: list[str]) -> int:
    # Ray kills the children of an actor that it ends, but not their children: so the work is done by one of those.
    if hasattr(os, "fork") and (inner := os.fork()):
        return os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
    return run(folder, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

"""A process that has imported the trainer and runs trainings in forks of itself: a start costs milliseconds.

Run as a script, with the methods to import as arguments. Reads one JSON request a line: {"arguments": [...], "log":
path, "environment": {...}, "die_at": n, "largest_file": bytes}. Answers {"pid": n} when the fork has started and
{"pid": n, "status": n} when it has ended.

die_at: SIGKILL itself at the n-th time (from 0) that a checkpoint's file or folder is to be synced, put in place or
deleted. largest_file: no file may grow larger, which is what a full disk looks like.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def import_trainer() -> None:
    """Everything a training imports; no tensor is computed here, so that forks are sound."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import torch._dynamo  # noqa: F401 - by every optimizer, in seconds

    import train
    from realisr.training.engine import engine  # noqa: F401

    for name in sys.argv[1:]:
        train.load_method(name)


def die_at(count: int) -> None:
    """Have the process kill itself at the count-th step of writing checkpoints."""
    from realisr.training.engine import checkpoints, files

    left = [count]

    def fatal(original: Any) -> Any:
        def step(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        return step

    checkpoints.sync = fatal(checkpoints.sync)
    checkpoints.remove = fatal(checkpoints.remove)
    checkpoints.save_file = fatal(checkpoints.save_file)
    vars(checkpoints)["os"] = SimpleNamespace(replace=fatal(os.replace))
    # The files for the nodes are written through these.
    files.sync = fatal(files.sync)


def child(request: dict[str, Any]) -> int:
    """The training, in a fork. Returns its exit status."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(request.get("environment", {}))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        from sharded_run import let_cpu_processes_shard

        let_cpu_processes_shard()
    if request.get("largest_file") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    if request.get("die_at") is not None:
        die_at(request["die_at"])
    import train

    try:
        train.main(request["arguments"])
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(error.code + "\n")
        return 0 if error.code is None else error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # as the interpreter would, which does not get here
        return 1
    return 0


def serve() -> None:
    import_trainer()
    lock = threading.Lock()

    def answer(message: dict[str, Any]) -> None:
        with lock:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    answer({"ready": True})

    def wait(pid: int) -> None:
        answer({"pid": pid, "status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(child(json.loads(line)))
        answer({"pid": pid})
        threading.Thread(target=wait, args=(pid,), daemon=True).start()


if __name__ == "__main__":
    serve()

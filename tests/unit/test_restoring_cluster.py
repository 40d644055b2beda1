"""A cluster's actors and their ComfyUIs, without Ray: in its place, calls that are made here when their answer is asked
for."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

import restore
from _pack import ROOT
from restoring import RestoreError
from restoring.attempt import Restored, Task
from restoring.cluster import Cluster, Slot, Wishes
from restoring.guard import __file__ as GUARD
from restoring.host import HostError
from restoring.hosts import Seen, Watch
from restoring.own_comfyui import OwnComfyUI
from restoring.sources import Photo
from restoring.storage import RemoteFile
from restoring.target import RemoteTarget


class Method:
    def __init__(self, function: Any):
        self.remote = lambda *given: lambda: function(*given)


class Actor:
    """With a photo that is restored to three bytes, which it holds. It knows what was asked of it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.greet = Method(lambda: (0, ""))
        self.attempt = Method(lambda task: (Restored([], "", 1.0), [3]))
        self.put = Method(lambda prompt, names: self.log.append(f"put {prompt}"))
        self.cancel = Method(lambda prompt: self.log.append(f"cancel {prompt}"))
        self.discard = Method(lambda prompt: None)


class Ray:
    """The part of Ray that the driver uses."""

    exceptions = SimpleNamespace(RayError=ConnectionError, RayTaskError=ConnectionAbortedError)

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.killed: list[Actor] = []

    def make(self) -> Actor:
        self.actors.append(Actor())
        return self.actors[-1]

    def wait(self, references: list, timeout: float) -> tuple[list, list]:
        return references, []

    def get(self, reference: Any) -> Any:
        return reference()

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)


def test_an_actor_stays_until_its_results_are_written(tmp_path: Path):
    """Towards the end it is not wanted any more, while a photo's last result is on its way."""
    ray = Ray()
    slot = Slot("ray:0", ray, ray.make, 1.0, attached=False)
    cluster = Cluster(ray, {"ray:0": slot}, Wishes(comfyui="x"), stored=True)
    target = RemoteTarget(RemoteFile("memory://out"), tmp_path)
    assert slot.greet() == 0
    task = Task(Photo(RemoteFile("memory://in/a.png"), "a"), "", 0, "prompt")
    answer = cluster.perform(task, slot, Event(), lambda prompt: None)
    assert isinstance(answer, Restored)
    assert answer.held is not None
    slot.wanted = False
    assert slot.greet() == 0
    assert ray.killed == []
    answer.held.put(target, ["a.png"])
    answer.held.discard()
    with pytest.raises(HostError, match="not needed now"):
        slot.greet()
    assert (ray.killed, ray.actors[0].log) == (ray.actors, ["put prompt"])


def test_an_actor_without_results_is_free_at_once():
    ray = Ray()
    slot = Slot("ray:0", ray, ray.make, 1.0, attached=False)
    cluster = Cluster(ray, {"ray:0": slot}, Wishes(comfyui="x"), stored=True)
    task = Task(Photo(RemoteFile("memory://in/a.png"), "a"), "", 0, "prompt")
    cluster.perform(task, slot, Event(), lambda prompt: None)  # there is no actor yet
    assert not slot.busy


@pytest.mark.parametrize("attached", [True, False])
def test_jobs_of_an_actor_that_died_are_taken_back(attached: bool):
    """A server that was there before goes on with them, and the next actor takes them off it."""
    ray = Ray()
    slot = Slot("http://a:8188", ray, ray.make, 1.0, attached)
    seen: queue.SimpleQueue[Seen] = queue.SimpleQueue()
    forgotten: list[str] = []
    watch = Watch({slot.url: slot}, 60.0, seen.put, forgotten.append)  # type: ignore[dict-item]
    watch.take_back(slot.url, "job")
    assert forgotten == ([] if attached else ["job"])
    watch.start()
    try:
        assert seen.get(timeout=60) == Seen(slot.url)
    finally:
        watch.stop()
    assert forgotten == ["job"]
    assert ray.actors[0].log == (["cancel job"] if attached else [])


def guarded(folder: Path, program: str) -> subprocess.Popen[bytes]:
    (folder / "in").mkdir(parents=True)
    command = [sys.executable, GUARD, str(folder), sys.executable, "-c", program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_the_guard_says_how_the_command_ended(tmp_path: Path):
    with guarded(tmp_path / "scratch", "import sys; print('no such model'); sys.exit(3)") as guard:
        assert guard.stdout is not None
        assert guard.stdout.read().split() == [b"no", b"such", b"model"]
        assert guard.wait() == 3
    assert not (tmp_path / "scratch").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_guard_says_which_signal_ended_the_command(tmp_path: Path):
    with guarded(tmp_path / "scratch", "import os; os.kill(os.getpid(), 9)") as guard:
        assert guard.stdout is not None
        assert guard.stdout.read() == b""
        assert guard.wait() == 128 + signal.SIGKILL


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_the_guard_removes_the_folder_when_the_owner_is_gone(tmp_path: Path, killed: bool):
    """Also when it is killed itself, as Ray does with the children of an actor that it ends."""
    with guarded(tmp_path / "scratch", "import time; print('here', flush=True); time.sleep(600)") as guard:
        assert guard.stdout is not None
        assert guard.stdin is not None
        assert guard.stdout.readline() == b"here\n"
        if killed:
            guard.kill()
            guard.wait()
        guard.stdin.close()
        assert guard.stdout.read() == b"", "all that could write have ended"
    assert not (tmp_path / "scratch").exists()


def test_a_comfyui_that_ends_is_started_again_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = "import pathlib, sys; print(sorted(p.name for p in pathlib.Path(sys.argv[1]).iterdir()), flush=True)"
    (tmp_path / "program.py").write_text(f"{program}; sys.exit(5)", encoding="utf-8")
    command = f'"{sys.executable}" "{tmp_path / "program.py"}" {{scratch}} {{port}}'
    own = OwnComfyUI(command.replace('"', "") if sys.platform == "win32" else command)
    for _ in range(2):
        said = own.ensure(lambda: False, 60)
        assert said == "ComfyUI ended with status 5: ['comfyui.log', 'input', 'output', 'temp', 'user']"
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


OWNER = """
import sys
sys.path.insert(0, sys.argv[1])
from restoring.own_comfyui import OwnComfyUI
own = OwnComfyUI(sys.argv[2])
print(own.ensure((own.scratch / "up").exists, 60) or own.scratch, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_nothing_is_left_when_the_owners_group_is_killed(tmp_path: Path):
    """As Ray does with an actor."""
    (tmp_path / "program.py").write_text(
        "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'up').touch(); time.sleep(600)", encoding="utf-8"
    )
    command = f"'{sys.executable}' '{tmp_path / 'program.py'}' {{scratch}} {{port}}"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(ROOT / "scripts"), command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as owner:
        assert owner.stdout is not None
        scratch = Path(owner.stdout.readline().strip())
        assert scratch.parent == tmp_path, scratch
        os.killpg(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while scratch.exists():
        assert time.monotonic() < deadline, f"{scratch} is left"
        time.sleep(0.05)


def test_a_folder_without_comfyui_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RestoreError, match="is no folder of ComfyUI"):
        OwnComfyUI(str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_needs_servers_or_something_to_start(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert restore.main([str(tmp_path), str(tmp_path / "out"), "--engine", "ray", "--patience", "0.1"]) == 2
    assert "--engine ray needs --server ADDRESS..., or --comfyui FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--gpus 0", "--cpus 2", "--hosts 2", "--address auto", "--comfyui x"])
def test_what_is_for_a_cluster_is_refused_without_one(capsys: pytest.CaptureFixture[str], words: str):
    with pytest.raises(SystemExit):
        restore.main(["in", "out", *words.split()])
    assert "are for --engine ray" in capsys.readouterr().err


def test_what_is_for_the_start_is_refused_with_servers(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        restore.main(["in", "out", "--engine", "ray", "--server", "x", "--cpus", "2"])
    assert "are for what --comfyui starts" in capsys.readouterr().err

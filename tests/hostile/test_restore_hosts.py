"""scripts/restore.py against hosts that hang, die, refuse and answer nonsense, over real connections."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import restore
from _pack import ROOT
from harness.comfy_protocol import Answer, ComfyProtocol, said
from restoring import run as run_module
from restoring import scheduler

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": 7, "image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
}
PHOTOS = 6


@pytest.fixture(autouse=True)
def _short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "FIRST_REST", 0.01)
    monkeypatch.setattr(scheduler, "LONGEST_REST", 0.02)
    monkeypatch.setattr(run_module, "TICK", 0.05)


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(GRAPH), encoding="utf-8")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(PHOTOS):
        Image.new("RGB", (6 + index, 4), (40 * index, 10, 30)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def host() -> Iterator[ComfyProtocol]:
    with ComfyProtocol() as running:
        yield running


@pytest.fixture
def arguments(photos: Path, tmp_path: Path, workflow: Path) -> Callable[..., list[str]]:
    def of(*hosts: ComfyProtocol) -> list[str]:
        given = [str(photos), str(tmp_path / "out"), "--workflow", str(workflow), "--pause", "0.05"]
        return given + [word for host in hosts for word in ("--server", host.url)]

    return of


def results(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def partials(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


def check_all(folder: Path, count: int = PHOTOS) -> None:
    """Every photo's result is there, whole, and its own."""
    assert results(folder) == [f"{index}.png" for index in range(count)]
    for index in range(count):
        with Image.open(folder / f"{index}.png") as result:
            assert (result.size, result.getpixel((0, 0))) == ((12 + 2 * index, 8), (40 * index, 10, 30))
    assert partials(folder) == []


@pytest.mark.parametrize("has_jobs", [True, False])
def test_work_is_shared_and_reported(arguments, tmp_path: Path, has_jobs: bool):
    with ComfyProtocol(has_jobs) as one, ComfyProtocol(has_jobs) as two:
        assert restore.main([*arguments(one, two), "--report", str(tmp_path / "report.json")]) == 0
        assert len(one.submitted) + len(two.submitted) == PHOTOS
        assert one.submitted
        assert two.submitted
        hosts = {one.url, two.url}
    check_all(tmp_path / "out")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["total"], report["done"], report["failed"]) == (PHOTOS, PHOTOS, 0)
    assert {row["host"] for row in report["photos"]} == hosts
    assert all(row["seed"] == {"2.seed": 7} and row["seconds"] >= 0 for row in report["photos"])


def wrong(answer: object) -> Callable[[str, bytes], Answer]:
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return lambda path, body: (200, content)


NONSENSE = {
    "a page instead of a picture": ("GET /view", b"<html>Bad gateway</html>"),
    "an empty picture": ("GET /view", b""),
    "a picture cut off": ("GET /view", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
    "a job without outputs": ("GET /api/jobs/", {"status": "completed"}),
    "a job without a status": ("GET /api/jobs/", {}),
    "a job that is a list": ("GET /api/jobs/", []),
    "outputs without images": ("GET /api/jobs/", {"status": "completed", "outputs": {"3": {}}}),
    "an image without a name": ("GET /api/jobs/", {"status": "completed", "outputs": {"3": {"images": [{}]}}}),
    "images that are numbers": ("GET /api/jobs/", {"status": "completed", "outputs": {"3": {"images": [1, 2]}}}),
    "an error without a node": ("GET /api/jobs/", {"status": "failed", "execution_error": {}}),
    "an error that is a word": ("GET /api/jobs/", {"status": "failed", "execution_error": "oops"}),
    "no prompt_id": ("POST /prompt", {"node_errors": {}}),
    "no JSON": ("POST /prompt", b"<html>"),
    "an upload without a name": ("POST /upload/image", {}),
}


@pytest.mark.parametrize(("route", "answer"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_no_result(arguments, capsys, tmp_path: Path, host: ComfyProtocol, route: str, answer: object):
    """From one host it is an error with the photo's name; another host makes up for it."""
    host.faults[route] = wrong(answer)
    assert restore.main(arguments(host)) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "0.png: failed: " in err
    assert f"{PHOTOS} of {PHOTOS} images failed" in err
    assert results(tmp_path / "out") == []
    assert partials(tmp_path / "out") == []
    with ComfyProtocol() as other:
        assert restore.main(arguments(host, other)) == 0
    check_all(tmp_path / "out")


@pytest.mark.parametrize("history", [{}, {"outputs": {}}, {"status": None, "outputs": None}, {"status": "success"}])
def test_nonsense_of_an_older_host(arguments, capsys, tmp_path: Path, history: object):
    with ComfyProtocol(has_jobs=False) as host:
        host.faults["GET /history/"] = lambda path, body: said({path.rpartition("/")[2]: history})
        assert restore.main(arguments(host)) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert results(tmp_path / "out") == []


def test_one_photo_that_is_too_large_is_set_aside(arguments, capsys, photos: Path, tmp_path: Path, host: ComfyProtocol):
    large = (photos / "0.png").read_bytes() + b"\0" * 100_000
    (photos / "large.png").write_bytes(large)
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (photos / "folder.png").mkdir()
    (photos / "linked.png").symlink_to(tmp_path, target_is_directory=True)
    host.faults["POST /upload/image"] = lambda path, body: (413, b"") if len(body) > 100_000 else None
    assert restore.main(arguments(host)) == 1
    err = capsys.readouterr().err
    assert "large.png: failed: " in err
    assert "takes no file of" in err
    assert "gone.png: failed: cannot be read" in err
    assert f"2 of {PHOTOS + 2} images failed" in err
    check_all(tmp_path / "out")


@pytest.mark.parametrize("route", ["GET /api/jobs/", "POST /upload/image", "POST /prompt", "GET /view"])
def test_a_host_that_hangs_holds_nothing_up(arguments, tmp_path: Path, host: ComfyProtocol, route: str):
    with ComfyProtocol() as bad:
        bad.faults[route] = bad.hang
        assert restore.main([*arguments(bad, host), "--silence", "0.3"]) == 0
        assert f"{route}" in bad.requests
    check_all(tmp_path / "out")


def test_a_slow_host_is_overtaken(arguments, tmp_path: Path, host: ComfyProtocol):
    """What a host does not get through is begun elsewhere once nothing else is to do, and taken back."""
    with ComfyProtocol() as slow:
        slow.held = True
        assert restore.main(arguments(slow, host)) == 0
        assert len(slow.submitted) == len(slow.cancelled) == 2
    check_all(tmp_path / "out")


def test_hosts_come_and_go(arguments, capsys, tmp_path: Path):
    """One dies with two photos in work; another comes up where none was."""
    with ComfyProtocol() as reserved:
        port = reserved.port
    with ComfyProtocol() as first:
        first.held = True
        command = [*arguments(first), "--server", f"http://127.0.0.1:{port}"]
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(restore.main(command)))
        thread.start()
        first.wait_for(lambda: len(first.submitted) == 2)
        first.die()
        with ComfyProtocol(port=port) as second:
            thread.join(60)
            assert done == [0]
            assert len(second.submitted) == PHOTOS
    check_all(tmp_path / "out")


def test_no_host_is_left(arguments, capsys, host: ComfyProtocol):
    def die(path: str, body: bytes) -> Answer | None:
        threading.Thread(target=host.die).start()
        return None

    host.faults["GET /view"] = die
    assert restore.main([*arguments(host), "--patience", "0.1"]) == 2
    assert f"lost {host.url} (" in capsys.readouterr().err


def start_client(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "restore.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_the_jobs_back(arguments, tmp_path: Path, host: ComfyProtocol, number: signal.Signals):
    host.held = True
    client = start_client(arguments(host))
    host.wait_for(lambda: len(host.submitted) == 2)
    client.send_signal(number)
    _, err = client.communicate(timeout=60)
    assert client.returncode == 128 + number
    assert "interrupted; run it again to go on" in err
    assert len(host.cancelled) == 2
    host.release()
    assert restore.main(arguments(host)) == 0
    check_all(tmp_path / "out")


def test_a_killed_client_is_resumed(arguments, tmp_path: Path, host: ComfyProtocol):
    """The jobs it had under way are taken over, not done again."""
    host.held = True
    client = start_client(arguments(host))
    host.wait_for(lambda: host.requests.count("GET /api/jobs/") >= 2 and len(host.submitted) == 2)
    client.kill()
    client.communicate(timeout=60)
    (tmp_path / "out" / ".realisr" / "0123-4567.partial").write_bytes(b"half")
    host.release()
    assert restore.main(arguments(host)) == 0
    check_all(tmp_path / "out")
    assert len(host.submitted) == PHOTOS
    assert host.cancelled == []


def test_several_clients_share_a_folder(arguments, capsys, tmp_path: Path, host: ComfyProtocol):
    host.held = True
    client = start_client(arguments(host))
    host.wait_for(lambda: len(host.submitted) == 2)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(restore.main(arguments(host))))
    thread.start()
    host.wait_for(lambda: len(host.submitted) == 4)
    host.release()
    _, err = client.communicate(timeout=60)
    thread.join(60)
    assert (client.returncode, statuses) == (0, [0]), err
    assert len(host.submitted) == PHOTOS
    check_all(tmp_path / "out")


def test_a_batch_is_there_when_all_of_it_is(arguments, capsys, photos: Path, tmp_path: Path):
    (photos / "0_1.png").write_bytes((photos / "5.png").read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    Image.new("RGB", (2, 2)).save(out / "1_1.png")
    with ComfyProtocol(batch=3) as host:
        assert restore.main(arguments(host)) == 0
        expected = {f"{name}_{each}.png" for name in ("0_", "0_1", "1", "2", "3", "4", "5") for each in (1, 2, 3)}
        assert set(results(out)) == expected
        (out / "2_3.png").unlink()
        (out / "3_1.png").write_bytes(b"")
        (out / "4_2.png").unlink()
        (out / "4_2.png").mkdir()
        capsys.readouterr()
        assert restore.main(arguments(host)) == 1
        printed = capsys.readouterr()
        assert printed.out.count("is there already") == PHOTOS + 1 - 3
        assert "4.png: failed: 4_2.png is a folder" in printed.err
    assert {f"{name}_{each}.png" for name in "23" for each in (1, 2, 3)} <= set(results(out))
    assert (out / "3_1.png").stat().st_size > 0


def test_what_is_no_result_is_made_again(arguments, capsys, photos: Path, tmp_path: Path, host: ComfyProtocol):
    out = tmp_path / "out"
    (out / "1.png").mkdir(parents=True)
    (out / "0.png").write_bytes(b"")
    whole = (photos / "2.png").read_bytes()
    (out / "2.png").write_bytes(whole)
    (out / "3.png").write_bytes(whole[:-9])
    assert restore.main(arguments(host)) == 1
    assert "1.png: failed: 1.png is a folder" in capsys.readouterr().err
    assert (out / "2.png").read_bytes() == whole
    (out / "1.png").rmdir()
    (out / "2.png").unlink()
    assert restore.main(arguments(host)) == 0
    check_all(out)


def test_a_replaced_photo_is_restored_again(arguments, photos: Path, tmp_path: Path, host: ComfyProtocol):
    assert restore.main(arguments(host)) == 0
    os.utime(photos / "1.png", (1, 1))
    Image.new("RGB", (50, 40)).save(photos / "2.png")
    assert restore.main(arguments(host)) == 0
    assert len(host.submitted) == PHOTOS + 1
    with Image.open(tmp_path / "out" / "2.png") as result:
        assert result.size == (100, 80)


FULL = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import restore
from restoring import attempt
left = [3]
sync = os.fsync
def full(number):
    left[0] -= 1
    if left[0] < 0:
        raise OSError(28, "No space left on device")
    sync(number)
attempt.os.fsync = full
sys.exit(restore.main(sys.argv[1:]))
"""


def test_a_full_disk(arguments, tmp_path: Path):
    """Three images of a batch are written or none, and the next run makes the rest."""
    with ComfyProtocol(batch=2) as host:
        command = [sys.executable, "-c", FULL, str(ROOT / "scripts"), *arguments(host), "--jobs", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "error: a result cannot be written" in done.stderr
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert partials(tmp_path / "out") == []
        assert results(tmp_path / "out") == ["0_1.png", "0_2.png"]
        assert restore.main(arguments(host)) == 0
    assert len(results(tmp_path / "out")) == 2 * PHOTOS


def test_targets_that_cannot_be_used(arguments, capsys, tmp_path: Path, photos: Path, host: ComfyProtocol):
    (tmp_path / "out").write_bytes(b"a file")
    assert restore.main(arguments(host)) == 2
    assert f"error: {tmp_path / 'out'} cannot be written" in capsys.readouterr().err
    (tmp_path / "out").unlink()
    (tmp_path / "out" / ".realisr").mkdir(parents=True)
    (tmp_path / "out" / ".realisr" / "manifest.sqlite").write_bytes(b"no database, but long enough to look at" * 9)
    assert restore.main(arguments(host)) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_target(arguments, capsys, tmp_path: Path, host: ComfyProtocol):
    (tmp_path / "out").mkdir(mode=0o555)
    assert restore.main(arguments(host)) == 2
    assert "cannot be written: Permission denied" in capsys.readouterr().err


def test_a_folder_that_fills(arguments, photos: Path, tmp_path: Path, host: ComfyProtocol):
    client = start_client([*arguments(host), "--watch"])
    host.wait_for(lambda: host.requests.count("GET /view") == PHOTOS)
    Image.new("RGB", (18, 4), (240, 10, 30)).save(tmp_path / "new.png")
    (tmp_path / "new.png").replace(photos / "6.png")
    host.wait_for(lambda: len(host.submitted) == PHOTOS + 1)
    assert client.stdout is not None
    for line in client.stdout:
        if "6.png: " in line:
            break
    client.terminate()
    client.communicate(timeout=60)
    assert client.returncode == 0
    assert len(results(tmp_path / "out")) == PHOTOS + 1

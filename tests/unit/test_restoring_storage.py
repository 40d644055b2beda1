"""Photos and results behind URLs, in fsspec's own memory and on a real S3 server, with a host that is none."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import infer_storage_options
from PIL import Image

import restore
from _pack import ROOT
from harness.cluster import storage
from harness.comfy_protocol import ComfyProtocol
from restoring import RestoreError
from restoring.sources import find_photos
from restoring.storage import RemoteFile, file_system
from restoring.target import RemoteTarget, target_for

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


@pytest.fixture
def folder() -> str:
    """One in memory that no other test uses."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "workflow.json").write_text(json.dumps(GRAPH), encoding="utf-8")
    return ["--workflow", str(tmp_path / "workflow.json"), "--pause", "0.05"]


def picture(width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 4), (10 * width, 20, 30)).save(file, "PNG")
    return file.getvalue()


def fill(folder: str, *names: str) -> None:
    for width, name in enumerate(names, 6):
        (RemoteFile(folder) / name).write_bytes(picture(width))


def width_of(url: str) -> int:
    with Image.open(io.BytesIO(RemoteFile(url).read_bytes())) as image:
        return image.size[0]


def test_sources(folder: str):
    fill(f"{folder}/in", "a.png", "b/c.PNG", ".hidden/d.png", "notes.txt", "b/out/e.png")
    target = f"{folder}/in/b/out"

    def names(*sources: str) -> list[str]:
        return [photo.name for photo in find_photos(sources, target)]

    assert names(f"{folder}/in") == ["a", "b/c"]
    assert [photo.name for photo in find_photos([f"{folder}/in"], target, recursive=False)] == ["a"]
    assert names(f"{folder}/in/**/*.PNG") == ["b/c"]
    assert names(f"{folder}/in/b/c.PNG") == ["c"]
    with pytest.raises(RestoreError, match="there is no folder or image"):
        names(f"{folder}/nowhere")
    with pytest.raises(RestoreError, match="two folders are the same"):
        find_photos([f"{folder}/in"], f"{folder}/in/")
    with pytest.raises(RestoreError, match="would lie beside it"):
        find_photos([f"{folder}/in/a.png"], f"{folder}/in")


def test_a_list_of_urls(folder: str, tmp_path: Path):
    fill(folder, "x/a.png", "y/b.png")
    (tmp_path / "list.txt").write_text(f"{folder}/x/a.png\n{folder}/y/b.png\n", encoding="utf-8")
    assert [photo.name for photo in find_photos([f"@{tmp_path / 'list.txt'}"], tmp_path)] == ["x/a", "y/b"]
    (tmp_path / "list.txt").write_text(f"{folder}/x/a.png\n/tmp/b.png\n", encoding="utf-8")
    with pytest.raises(RestoreError, match="a list of each"):
        find_photos([f"@{tmp_path / 'list.txt'}"], tmp_path)


def test_a_name_that_leaves_the_folder_is_refused(folder: str, tmp_path: Path):
    """Names of objects may be anything."""
    fill(folder, "in/a.png")
    store = fsspec.filesystem("memory").store
    start = f"/{folder.partition('://')[2]}/in/"
    key = f"{start}../../out.png"
    store[key] = store.pop(f"{start}a.png")
    try:
        with pytest.raises(RestoreError, match="a name that no file can have"):
            find_photos([f"{folder}/in"], tmp_path)
    finally:
        del store[key]


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RestoreError, match="Protocol not known: nosuch"):
        file_system("nosuch", "nosuch://x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(RestoreError, match=r"gs:// needs a package.*pip install fsspec gcsfs$"):
        file_system("gs", f"gs://{uuid.uuid4().hex}")


def test_fsspec_is_for_urls_alone(tmp_path: Path):
    """An interpreter without packages says what to install, and imports nothing of Ray either."""
    command = [sys.executable, "-S", "-E", str(ROOT / "scripts" / "restore.py"), "s3://a/b", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "pip install fsspec s3fs" in done.stderr) == (2, True), done.stderr
    command = [*command[:-2], str(tmp_path), str(tmp_path / "out"), "--engine", "ray", "--server", "x"]
    (tmp_path / "a.png").write_bytes(picture(6))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "pip install ray" in done.stderr) == (2, True), done.stderr


def test_from_memory_to_memory(folder: str, arguments: list[str], capsys, tmp_path: Path):
    fill(f"{folder}/in", "a.png", "b/c.png")
    with ComfyProtocol() as host:
        command = [f"{folder}/in", f"{folder}/out", *arguments, "--server", host.url]
        assert restore.main(command) == 0
        assert (width_of(f"{folder}/out/a.png"), width_of(f"{folder}/out/b/c.png")) == (12, 14)
        assert str(tmp_path / "state") in capsys.readouterr().err
        assert restore.main(command) == 0
        assert len(host.submitted) == 2
        assert capsys.readouterr().out.count("is there already") == 2
        # Another machine knows what is there by looking.
        assert restore.main([*command, "--manifest", str(tmp_path / "other")]) == 0
        assert len(host.submitted) == 2
        fill(f"{folder}/in", "new.png", "a.png")
        assert restore.main(command) == 0
        assert (len(host.submitted), width_of(f"{folder}/out/a.png")) == (4, 14)


def test_photos_of_storage_into_a_folder(folder: str, arguments: list[str], tmp_path: Path):
    fill(f"{folder}/in", "a.png")
    with ComfyProtocol() as host:
        assert restore.main([f"{folder}/in", str(tmp_path / "out"), *arguments, "--server", host.url]) == 0
    assert Image.open(tmp_path / "out" / "a.png").size == (12, 8)


def test_storage_that_fails_now_and_then(folder: str, arguments: list[str], capsys, monkeypatch: pytest.MonkeyPatch):
    """Reading and writing are tried again; what never works is set aside with the reason."""
    fill(f"{folder}/in", "a.png", "b.png")
    read, write = RemoteFile.read_bytes, RemoteFile.write_bytes
    failures = {"read": 1, "write": 1}

    def unsteady(kind: str, path: str) -> None:
        if path.endswith("a.png") and failures[kind]:
            failures[kind] -= 1
            raise OSError(5, "connection reset", path)

    def reading(self: RemoteFile) -> bytes:
        unsteady("read", self.url)
        return read(self)

    def writing(self: RemoteFile, content: bytes) -> None:
        unsteady("write", self.url)
        write(self, content)

    monkeypatch.setattr(RemoteFile, "read_bytes", reading)
    monkeypatch.setattr(RemoteFile, "write_bytes", writing)
    monkeypatch.setattr("restoring.scheduler.FIRST_REST", 0.01)
    monkeypatch.setattr("restoring.scheduler.LONGEST_REST", 0.02)
    with ComfyProtocol() as host:
        command = [f"{folder}/in", f"{folder}/out", *arguments, "--server", host.url]
        assert restore.main(command) == 0
        assert (width_of(f"{folder}/out/a.png"), width_of(f"{folder}/out/b.png")) == (12, 14)
        failures["write"] = 100
        assert restore.main([*command, "--again"]) == 1
        assert "a.png: failed: cannot be written: connection reset" in capsys.readouterr().err
        assert width_of(f"{folder}/out/a.png") == 12


def test_a_file_system_that_is_not_whole_at_once(tmp_path: Path):
    """A result comes under another name first."""
    target = target_for(f"file://{tmp_path}/out", tmp_path / "records")
    assert isinstance(target, RemoteTarget)
    target.write(b"one", "deep/a.png")
    target.write(b"two", "deep/a.png")
    assert (tmp_path / "out" / "deep" / "a.png").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["a.png"]


class Hosted(MemoryFileSystem):
    """Memory of a host that is in the URL and not in paths, as of sftp; what stands before @ is in them, as of abfs."""

    protocol = "hosted"
    stores: ClassVar[dict[str, tuple[dict, list[str]]]] = {}

    def __init__(self, host: str, **options):
        super().__init__(**options)
        self.store, self.pseudo_dirs = self.stores.setdefault(host, ({}, [""]))

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        if "://" in path:
            found = infer_storage_options(path)
            path = f"{found.get('username', '')}{found['path']}"
        return super()._strip_protocol(path)

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": infer_storage_options(path)["host"]}


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Addresses of two machines that no other test uses."""
    fsspec.register_implementation("hosted", Hosted, clobber=True)
    yield uuid.uuid4().hex, uuid.uuid4().hex
    Hosted.stores.clear()
    Hosted.clear_instance_cache()
    file_system.cache_clear()


@pytest.mark.parametrize("container", ["", "box@"])
def test_a_host_in_the_url(container: str, hosts: tuple[str, str], arguments: list[str], tmp_path: Path):
    one, two = (f"hosted://{container}{host}" for host in hosts)
    fill(f"{one}/in", "a.png", "b/c.png")
    fill(f"{two}/in", "other.png")
    found = find_photos([f"{one}/in"], tmp_path)
    assert [str(photo.path) for photo in found] == [f"{one}/in/a.png", f"{one}/in/b/c.png"]
    found = find_photos([f"{one}/*/b/*.png", f"{two}/in/o*"], tmp_path)
    assert {photo.name: str(photo.path) for photo in found} == {
        "in/b/c": f"{one}/in/b/c.png",
        "other": f"{two}/in/other.png",
    }
    for same in (f"{one}/in", f"{one}/in/"):
        with pytest.raises(RestoreError, match="two folders are the same"):
            find_photos([f"{one}/in"], same)
    with ComfyProtocol() as host:
        # The same folder of another machine is another folder.
        assert restore.main([f"{one}/in", f"{two}/in", *arguments, "--server", host.url]) == 0
        assert (width_of(f"{two}/in/a.png"), width_of(f"{two}/in/b/c.png")) == (12, 14)
        assert restore.main([f"{one}/**/*.png", f"{one}/in/out", *arguments, "--server", host.url]) == 0
    assert (width_of(f"{one}/in/out/in/a.png"), width_of(f"{one}/in/out/in/b/c.png")) == (12, 14)
    assert [photo.name for photo in find_photos([f"{one}/in"], f"{one}/in/out")] == ["a", "b/c"]


def test_one_connection_serves_one_thread_at_a_time(hosts: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    """As of sftp, where threads take each other's answers."""
    folder = f"hosted://{hosts[0]}/in"
    fill(folder, "a.png", "b.png")
    inside, met = threading.Lock(), threading.Event()
    read = Hosted.cat_file

    def reading(self: Hosted, path: str, *given, **named):
        if not inside.acquire(blocking=False):
            met.set()
            return read(self, path, *given, **named)
        try:
            met.wait(0.5)  # for another thread, which does not come
            return read(self, path, *given, **named)
        finally:
            inside.release()

    monkeypatch.setattr(Hosted, "cat_file", reading)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(width_of, [f"{folder}/a.png", f"{folder}/b.png"])) == [6, 7]
    assert not met.is_set()


def test_s3(arguments: list[str], tmp_path: Path):
    file_system.cache_clear()
    with storage("bucket") as (system, _), ComfyProtocol() as host:
        system.pipe_file("bucket/in/a b.png", picture(6))
        system.pipe_file("bucket/in/deep/ä.png", picture(7))
        command = ["s3://bucket/in", "s3://bucket/out", *arguments, "--server", host.url]
        assert restore.main(command) == 0
        assert system.find("bucket/out") == ["bucket/out/a b.png", "bucket/out/deep/ä.png"]
        system.pipe_file("bucket/in/a b.png", picture(9))
        assert restore.main(command) == 0
        assert (len(host.submitted), width_of("s3://bucket/out/a b.png")) == (3, 18)
    file_system.cache_clear()

"""The host bootstrap, without making a host: what it keys on, what it trusts, what it says."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

import host_env
from host_env import Host, HostError, Recipe


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no host named by the environment."""
    monkeypatch.setenv("REALISR_CACHE", str(tmp_path / "cache"))
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Something that looks like ComfyUI."""
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


def make_archive(path: Path, files: dict[str, bytes]) -> str:
    """Write a .tar.gz and return its sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_key_follows_what_is_installed():
    recipe = Recipe.current()
    assert recipe.key == Recipe.current().key
    changed = [
        replace(recipe, test_packages=(*recipe.test_packages, "another")),
        replace(recipe, packages_without_dependencies=("another",)),
        replace(recipe, packages=("torch==0.0",)),
        replace(recipe, sdist_sha256="0" * 64),
        replace(recipe, python="cpython-3.99"),
        replace(recipe, torch_backend="cpu"),
    ]
    assert len({recipe.key, *(other.key for other in changed)}) == 7


def test_the_test_packages_come_from_pyproject():
    recipe = Recipe.current()
    assert any(package.startswith("pytest") for package in recipe.test_packages)
    assert [package.partition(">")[0] for package in recipe.packages_without_dependencies] == ["pyiqa"]
    assert not any(package.startswith("pyiqa") for package in recipe.test_packages)
    with pytest.raises(HostError, match="no extra named 'nothing'"):
        host_env.read_extra(host_env.ROOT / "pyproject.toml", "nothing")


def test_unpacks_one_folder_of_an_archive(tmp_path: Path):
    sha256 = make_archive(
        tmp_path / "a.tar.gz",
        {"p-1/vendor/ComfyUI/main.py": b"main", "p-1/vendor/ComfyUI/comfy/sd.py": b"sd", "p-1/setup.py": b"no"},
    )
    host_env.unpack_folder(tmp_path / "a.tar.gz", sha256, "vendor/ComfyUI", tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"main.py", "comfy/sd.py"}


def test_refuses_an_archive_with_another_hash(tmp_path: Path):
    make_archive(tmp_path / "a.tar.gz", {"p-1/vendor/ComfyUI/main.py": b"main"})
    with pytest.raises(HostError, match="sha256"):
        host_env.unpack_folder(tmp_path / "a.tar.gz", "0" * 64, "vendor/ComfyUI", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_half_made_host_does_not_count(cache: Path):
    recipe = Recipe.current()
    folder = cache / f"host-{recipe.key}"
    python = host_env.python_of(folder / "venv")
    python.parent.mkdir(parents=True)
    python.touch()
    (folder / "ComfyUI").mkdir()
    assert host_env.find_host() is None
    (folder / host_env.STAMP).touch()
    assert host_env.find_host() == Host(python, folder / "ComfyUI")


def test_uses_a_comfyui_that_is_named(cache: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(checkout))
    assert host_env.find_host() == Host(Path(sys.executable), checkout)
    own = host_env.python_of(checkout / ".venv")
    own.parent.mkdir(parents=True)
    own.touch()
    assert host_env.find_host() == Host(own, checkout)
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert host_env.find_host() == Host(Path(sys.executable), checkout)


def test_says_when_the_named_comfyui_is_none(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HostError, match="holds no ComfyUI"):
        host_env.find_host()


def test_says_when_the_named_python_is_none(cache: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(checkout))
    monkeypatch.setenv("COMFYUI_PYTHON", str(checkout / "no" / "python"))
    with pytest.raises(HostError, match="COMFYUI_PYTHON"):
        host_env.find_host()


def test_says_what_the_named_comfyuis_python_lacks():
    host_env.check_packages(Host(Path(sys.executable), Path()), ["pytest>=8"])
    with pytest.raises(HostError, match=r"lacks nosuchpackage>=1.*pip install 'nosuchpackage>=1'"):
        host_env.check_packages(Host(Path(sys.executable), Path()), ["pytest", "nosuchpackage>=1"])
    with pytest.raises(HostError, match=r"pip install --no-deps 'nosuchpackage>=1'"):
        host_env.check_packages(Host(Path(sys.executable), Path()), ["nosuchpackage>=1"], "--no-deps ")


def run_in_host(code: str, checkout: Path, **environment: str) -> list[str]:
    """Lines that `host_env.py run -- -c code` prints, with this interpreter as the host's."""
    done = subprocess.run(
        [sys.executable, host_env.__file__, "run", "--", "-c", code],
        env={**os.environ, "COMFYUI_PATH": str(checkout), "COMFYUI_PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_is_run_imports_the_packs_own_modules_but_not_its_root(checkout: Path, tmp_path: Path):
    code = "import sys, comfy_client, archive, harness; print(*sys.path, sep='\\n')"
    path = run_in_host(code, checkout, PYTHONPATH=str(tmp_path))
    own = [str(host_env.ROOT / name) for name in host_env.IMPORTABLE]
    assert [folder for folder in path if folder in (*own, str(tmp_path))] == [*own, str(tmp_path)]
    assert str(host_env.ROOT) not in path


def test_a_run_inside_a_run_has_them_once(checkout: Path):
    inside = host_env.with_own_modules({"PYTHONPATH": "/given"})
    assert host_env.with_own_modules(inside) == inside
    assert host_env.without_own_modules(inside) == {"PYTHONPATH": "/given"}
    assert host_env.without_own_modules(host_env.with_own_modules({"A": "b"})) == {"A": "b"}


def test_two_runs_at_once_take_turns(tmp_path: Path):
    script = (
        f"import sys; sys.path.insert(0, {str(Path(host_env.__file__).parent)!r})\n"
        "import host_env, pathlib\n"
        f"with host_env.locked(pathlib.Path({str(tmp_path / 'lock')!r})): print('mine')\n"
    )
    with host_env.locked(tmp_path / "lock"):
        command = [sys.executable, "-c", script]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert other.stderr is not None
        assert "waiting" in other.stderr.readline()
        assert other.poll() is None
    out, _ = other.communicate(timeout=300)
    assert out == "mine\n"


def test_an_installer_that_outlives_its_run_keeps_the_lock(tmp_path: Path):
    lock = tmp_path / "lock"
    installer = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    script = (
        f"import sys; sys.path.insert(0, {str(Path(host_env.__file__).parent)!r})\n"
        "import host_env, pathlib\n"
        f"with host_env.locked(pathlib.Path({str(lock)!r})): host_env.call([sys.executable, '-c', {installer!r}])\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    installer_pid = int(run.stderr.readline())
    run.kill()
    run.wait()
    with lock.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(installer_pid, signal.SIGKILL)
        fcntl.flock(file, fcntl.LOCK_EX)


def test_uv_gets_pips_index_and_certificates(monkeypatch: pytest.MonkeyPatch):
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    env = host_env.uv_environment({"index-url": "https://mirror/simple", "cert": "/path/to/ca.pem"})
    assert (env["UV_DEFAULT_INDEX"], env["SSL_CERT_FILE"]) == ("https://mirror/simple", "/path/to/ca.pem")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine/simple")
    assert host_env.uv_environment({"index-url": "https://mirror/simple"})["UV_DEFAULT_INDEX"] == "https://mine/simple"


def test_prune_keeps_the_current_host(cache: Path):
    current = cache / f"host-{Recipe.current().key}"
    for folder in (current, cache / "host-old"):
        folder.mkdir(parents=True)
    (cache / "host-old.lock").touch()
    host_env.prune()
    assert sorted(path.name for path in cache.iterdir()) == [current.name]

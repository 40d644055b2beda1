"""What ships runs on Windows too: no module, call or default encoding that only POSIX has."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from _pack import ROOT

POSIX_MODULES = (
    "fcntl", "grp", "posix", "pwd", "pty", "readline", "resource", "spwd", "syslog", "termios", "tty",
)  # fmt: skip
POSIX_NAMES = {
    "os": {
        "WNOHANG", "chown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid",
        "getpgrp", "getuid", "killpg", "lchown", "mkfifo", "mknod", "nice", "openpty", "pread", "pwrite",
        "sched_getaffinity", "sched_setaffinity", "setgid", "setpgid", "setsid", "setuid", "statvfs", "sync", "sysconf",
        "uname", "wait3", "wait4",
    },
    "signal": {
        "ITIMER_REAL", "SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGUSR1",
        "SIGUSR2", "alarm", "pause", "pthread_sigmask", "setitimer", "sigwait",
    },
    "time": {"tzset", "clock_gettime", "pthread_getcpuclockid"},
}  # fmt: skip
SHIPPED = ("host", "models", "nodes", "services", "training", "scripts")

IMPORT_ALL = """
    import importlib, sys
    from pathlib import Path
    root, comfyui, base = map(Path, sys.argv[1:])
    sys.path[:0] = [str(root / "tests"), str(root / "scripts"), str(root / "dev")]
    from harness.host import start_host
    start_host(comfyui, base)
    # Hidden once the host and its libraries are there, whose own business it is what they need.
    for name in {hidden!r}:
        sys.modules[name] = None
    from _pack import load_pack
    load_pack()
    for folder in {shipped!r}:
        for path in sorted((root / folder).rglob("*.py")):
            if path.name == "demo.py":  # of `make demo`, which locks ComfyUI's cache by dev/host_env.py
                continue
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            # What lies in scripts/ is imported from there, as the scripts themselves do.
            inside = name.partition(".")[2]
            if folder != "scripts" or inside:
                importlib.import_module(inside if folder == "scripts" else f"realisr.{{name}}")
    print("imported")
"""


def shipped_files() -> list[Path]:
    return [ROOT / "__init__.py", *(path for folder in SHIPPED for path in sorted((ROOT / folder).rglob("*.py")))]


def test_everything_that_ships_is_imported_without_the_modules_of_posix(comfyui, tmp_path: Path):
    hidden = tuple(name for name in POSIX_MODULES if name != "posix")
    script = textwrap.dedent(IMPORT_ALL).format(hidden=hidden, shipped=SHIPPED)
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(comfyui.comfyui), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("imported"), done.stderr[-3000:]


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_name_of_posix_is_used_wherever_it_stands(path: Path):
    """Imports inside functions too, which importing the module does not run."""
    assert posix_only(path.read_text(encoding="utf-8")) == []


def posix_only(source: str) -> list[str]:
    """Line numbers and what stands there that Windows lacks, or does in its own encoding."""
    found = []
    tree = ast.parse(source)
    asked_for = set(hasattr_checks(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            names = [module.partition(".")[0]]
            bad = {alias.name for alias in node.names} & POSIX_NAMES.get(module, set())
            found += [f"{node.lineno}: {module}.{name}" for name in sorted(bad)]
        else:
            names = []
        found += [f"{node.lineno}: import {name}" for name in names if name in POSIX_MODULES]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = (node.value.id, node.attr)
            if node.attr in POSIX_NAMES.get(node.value.id, ()) and name not in asked_for:
                found.append(f"{node.lineno}: {'.'.join(name)}")
        if isinstance(node, ast.Call) and without_encoding(node):
            found.append(f"{node.lineno}: text without an encoding")
    return found


def hasattr_checks(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every `hasattr(module, "name")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hasattr":
            owner, name = node.args
            if isinstance(owner, ast.Name) and isinstance(name, ast.Constant):
                yield owner.id, name.value


def without_encoding(call: ast.Call) -> bool:
    """Whether this reads or writes text in the encoding of the machine: cp1252 on most that run Windows."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg for keyword in call.keywords}
    if name == "read_text":
        return not call.args and "encoding" not in keywords
    return name == "write_text" and len(call.args) < 2 and "encoding" not in keywords


@pytest.mark.parametrize(
    "source",
    [
        "import fcntl",
        "def lock():\n    from resource import getrlimit",
        "import os\nos.getuid()",
        "from signal import SIGKILL",
        "import signal\nsignal.alarm(3)",
        "path.read_text()",
        "path.write_text('x')",
    ],
)
def test_what_the_check_above_finds(source: str):
    assert len(posix_only(source)) == 1


def test_what_it_lets_pass():
    allowed = """
        import os, signal
        os.nice(1) if hasattr(os, "nice") else 0
        os.replace(a, b)
        signal.SIGTERM
        path.read_text(encoding="utf-8") + path.read_bytes()
    """
    assert posix_only(textwrap.dedent(allowed)) == []

"""Ruff over the whole project, mypy over the pack and what scripts and tests share.

mypy sees the pack as ComfyUI loads it, a package in a folder of its own, here named `realisr` through a link:
run from the repository root it would take `nodes` for ComfyUI's module, and a checkout folder such as
`realisr-main` for a package with an impossible name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nodes", "host", "models", "services", "training")
TYPED_SCRIPTS = ("scripts", "dev", "tests/harness")  # tests unpack and parametrise too freely to be worth annotating


def ruff() -> int:
    commands = (["check", "."], ["format", "--check", "."])
    return max(
        subprocess.run([sys.executable, "-m", "ruff", *each], cwd=ROOT, check=False).returncode for each in commands
    )


def mypy() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        link = Path(temporary) / "realisr"
        link.symlink_to(ROOT, target_is_directory=True)
        folders = [link / name for name in (*PACKAGES, *TYPED_SCRIPTS) if any((ROOT / name).rglob("*.py"))]
        roots = [temporary, str(link / "tests"), str(link / "scripts"), str(link / "dev")]
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "mypy",
                "--config-file",
                ROOT / "pyproject.toml",
                "--cache-dir",
                ROOT / ".mypy_cache",
                link / "__init__.py",
                *folders,
            ],
            env={**os.environ, "MYPYPATH": os.pathsep.join(roots)},
            cwd=temporary,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(ruff() | mypy())

"""The archive that ComfyUI's registry hands out, made as its publish action makes it.

    python3 dev/host_env.py run -- dev/archive.py OUT.zip

The files of the checkout without what .comfyignore names (gitignore's patterns).
"""

from __future__ import annotations

import argparse
import subprocess
import zipfile
from pathlib import Path

import pathspec

ROOT = Path(__file__).resolve().parent.parent


def checkout_files(root: Path = ROOT) -> list[str]:
    """Paths, relative to `root`, that git tracks or would add. Raises CalledProcessError where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    return sorted(name for name in listed.stdout.decode().split("\0") if name and (root / name).is_file())


def archived_files(root: Path = ROOT) -> list[str]:
    """Those of `checkout_files` that the archive holds."""
    ignored = pathspec.GitIgnoreSpec.from_lines((root / ".comfyignore").read_text(encoding="utf-8").splitlines())
    return [name for name in checkout_files(root) if not ignored.match_file(name)]


def write_archive(target: Path, root: Path = ROOT) -> list[str]:
    """Write the archive to `target` and return what it holds."""
    names = archived_files(root)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(root / name, name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    names = write_archive(asked.out)
    print(f"{asked.out}: {len(names)} files, {asked.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

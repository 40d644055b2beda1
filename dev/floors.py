"""The lowest versions that the pack and ComfyUI say will do, as pip's constraints: to test that they are true.

    python3 dev/floors.py ../ComfyUI/requirements.txt > floors.txt
    pip install -r ../ComfyUI/requirements.txt './realisr[test]' -c floors.txt

Of every requirement with a lower bound this is `name==bound`, the highest where several ask for it. ComfyUI states no
bound of torch in that file; its README says from which version on it is supported (TORCH).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from host_env import ROOT, WITHOUT_DEPENDENCIES, read_extra

EXTRAS = ("agent", "quality", WITHOUT_DEPENDENCIES)
"""What the nodes need; the other extras are for scripts and training."""

TORCH = {"torch": "2.5.0", "torchvision": "0.20.0", "torchaudio": "2.5.0"}
"""The oldest that ComfyUI supports, and those made for it."""

EXISTING = {"timm": "1.0.3", "safetensors": "0.4.3", "pyopengl": "3.1.10", "pydantic": "2.7.0"}
"""For a bound that was never published, or that another package of the list lifts (transformers, the test extra)."""

BOUND = re.compile(r"([A-Za-z0-9_.-]+)\s*(?:>=|~=|==)\s*([0-9][0-9.]*)")


def floors(requirements: list[str]) -> dict[str, str]:
    """name -> lowest version, of requirements in pip's form."""
    found: dict[str, str] = {}
    for line in requirements:
        if bound := BOUND.match(line):
            name, version = bound[1].lower(), bound[2]
            found[name] = max(found.get(name, "0"), version, key=numbers)
    # tokenizers goes with transformers, which asks for one release of it.
    return {name: EXISTING.get(name, version) for name, version in found.items() if name != "tokenizers"} | TORCH


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.strip(".").split("."))


def main(requirements: Path) -> None:
    own = [line for extra in EXTRAS for line in read_extra(ROOT / "pyproject.toml", extra)]
    theirs = requirements.read_text(encoding="utf-8").splitlines()
    for name, version in sorted(floors([*own, *theirs]).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

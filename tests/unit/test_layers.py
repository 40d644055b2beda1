"""The folders are the architecture: nodes -> host -> models, nodes and host -> services, training -> models."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from _pack import ROOT

MAY_IMPORT = {
    "models": {"models"},
    "services": {"services"},
    "training": {"training", "models"},
    "host": {"host", "models", "services"},
    "nodes": {"nodes", "host", "models", "services"},
}
KNOWS_COMFYUI = {"host", "nodes"}
COMFYUI_MODULES = {
    "api_server",
    "app",
    "cuda_malloc",
    "execution",
    "folder_paths",
    "latent_preview",
    "main",
    "node_helpers",
    "nodes",
    "protocol",
    "server",
}

SOURCES = [path.relative_to(ROOT) for layer in MAY_IMPORT for path in sorted((ROOT / layer).rglob("*.py"))]


def is_comfyui(module: str) -> bool:
    top = module.partition(".")[0]
    return top in COMFYUI_MODULES or top == "comfy" or top.startswith("comfy_")


def imports(source: str, path: Path) -> Iterator[tuple[str, bool]]:
    """Every import of a module at `path` (relative to the pack), as (dotted name, whether inside the pack)."""
    package = path.parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            parts = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(filter(None, parts))
            yield from ((f"{base}.{alias.name}" if base else alias.name, True) for alias in node.names)


def violations(source: str, path: Path) -> list[str]:
    layer = path.parts[0]
    found = []
    for module, inside in imports(source, path):
        if inside and module.partition(".")[0] not in MAY_IMPORT[layer]:
            found.append(f"{path} imports {module}: {layer}/ may import {sorted(MAY_IMPORT[layer])} only")
        if not inside and module.partition(".")[0] == "realisr":
            found.append(f"{path} imports {module} by name: inside the pack imports are relative")
        if not inside and is_comfyui(module) and layer not in KNOWS_COMFYUI:
            found.append(f"{path} imports {module}: {layer}/ does not know ComfyUI")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_point_one_way(path: Path):
    assert violations((ROOT / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/flow.py", "import comfy.utils"),
        ("models/flow.py", "def f():\n    from nodes import KSampler"),
        ("models/vosr/dit.py", "from ...host import files"),
        ("models/vosr/dit.py", "from ... import host"),
        ("services/vlm/answers.py", "import folder_paths"),
        ("services/vlm/answers.py", "from ...nodes import agent"),
        ("host/vosr/model.py", "from ...nodes.vosr import CATEGORY"),
        ("training/data.py", "from ..host import images"),
        ("services/vlm/answers.py", "from ...models import image"),
        ("nodes/vosr.py", "import realisr.models"),
    ],
)
def test_an_arrow_back_is_found(path: str, source: str):
    assert len(violations(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/vosr/dit.py", "from .config import VOSRConfig\nfrom ..tiles.grid import TileGrid\nimport torch"),
        ("host/vosr/model.py", "import comfy.model_base\nfrom ...models.vosr import dit\nfrom .. import files"),
        ("nodes/vosr.py", "from comfy_api.latest import io\nfrom ..host import files\nfrom ..services import iqa"),
    ],
)
def test_an_arrow_forward_is_fine(path: str, source: str):
    assert violations(source, Path(path)) == []


def test_models_and_services_import_without_comfyui(tmp_path: Path):
    """In a process that has no ComfyUI on its path, every module of both layers imports."""
    names = [
        ".".join(("realisr", *path.with_suffix("").parts)).removesuffix(".__init__")
        for path in SOURCES
        if path.parts[0] not in KNOWS_COMFYUI
    ]
    script = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "from _pack import load_pack\n"
        "load_pack()\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('comfy', 'folder_paths', 'nodes')]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

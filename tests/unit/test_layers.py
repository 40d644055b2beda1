"""The folders are the architecture: nodes -> host -> models; nodes, host, training -> services; training -> models."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from _pack import ROOT

MAY_IMPORT = {
    "models": {"models"},
    "services": {"services"},
    "training": {"training", "models", "services"},
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


def modules_of(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their dotted names; a package by its folder's."""
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def import_graph(sources: Mapping[Path, str]) -> dict[str, set[str]]:
    """Of each module, those of the pack that it imports; also inside functions, where an import is only put off."""
    known = modules_of(sources)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        inside = [module for module, is_ours in imports(sources[path], path) if is_ours]
        # `from .package import name` is a module of that name, or something in the package.
        graph[name] = {each if each in known else each.rpartition(".")[0] for each in inside} & known.keys() - {name}
    return graph


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_layer_is_looked_at():
    assert {path.parts[0] for path in SOURCES} == MAY_IMPORT.keys()


def test_no_modules_import_each_other_in_a_ring():
    assert circle(import_graph({path: (ROOT / path).read_text(encoding="utf-8") for path in SOURCES})) == []


def test_a_ring_is_found():
    ring = {
        Path("models/a/__init__.py"): "from .b import f",
        Path("models/a/b.py"): "def f():\n    from .c import g",
        Path("models/a/c.py"): "from . import b",
    }
    assert set(circle(import_graph(ring))) == {"models.a.b", "models.a.c"}
    assert circle(import_graph({**ring, Path("models/a/c.py"): "from ..d import h", Path("models/d.py"): ""})) == []


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
        ("training/data/photos.py", "from ...host import images"),
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

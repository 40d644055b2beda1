"""Import the pack from its folder under the name `realisr`, as ComfyUI does under a name of its own.

The repository root never goes on sys.path: its `nodes/` would shadow ComfyUI's `nodes` module.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
NAME = "realisr"


def load_pack() -> ModuleType:
    """The pack as the package `realisr`, importing none of its parts (`from realisr.models...` then works)."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module

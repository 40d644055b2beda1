"""ComfyUI inside the test process: its modules importable, on the CPU, with folders of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class InProcessHost:
    """The imported host. Its modules are imported as usual (`import comfy.sd`) in tests that use the fixture.

    base: base directory, with models/, input/ and output/ in it, empty at the start.
    """

    base: Path

    @property
    def models(self) -> Path:
        return self.base / "models"

    def save_model(self, folder: str, name: str, state_dict: Mapping[str, torch.Tensor]) -> str:
        """Write a safetensors file into models/<folder>; returns `name`, what a loader node's widget would hold."""
        path = self.models / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(state_dict), path)
        return name

    @staticmethod
    def run(node: type[Any], **inputs: Any) -> tuple[Any, ...]:
        """Execute one node class as the host's executor does, and return its outputs.

        Core nodes of the old kind (class attribute FUNCTION on a plain class) and V3 nodes alike.
        """
        from comfy_api.internal import _ComfyNodeInternal

        with torch.inference_mode():
            if not issubclass(node, _ComfyNodeInternal):
                return getattr(node(), node.FUNCTION)(**inputs)
            node.VALIDATE_CLASS()
            return node.PREPARE_CLASS_CLONE(None).execute(**inputs).result


def start_host(comfyui: Path, base: Path, cpu: bool = True) -> InProcessHost:
    """Import ComfyUI from `comfyui` into this process. Can be done once: its modules are global."""
    if "folder_paths" in sys.modules:
        raise RuntimeError("ComfyUI is imported already; its folders cannot be changed any more")
    for name in ("models", "input", "output", "temp", "user", "custom_nodes"):
        (base / name).mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = cpu
    args.base_directory = str(base)
    import folder_paths
    import nodes

    assert Path(folder_paths.models_dir) == base / "models"
    assert Path(nodes.__file__).parent == comfyui
    return InProcessHost(base)

"""Where the weight files of metrics are."""

from __future__ import annotations

from pathlib import Path

import torch

from _pack import ROOT


def default_weights() -> Path:
    """ComfyUI's folder for metrics when the pack is installed there, else the one that pyiqa itself fills."""
    if ROOT.parent.name == "custom_nodes":
        return ROOT.parent.parent / "models" / "classifiers" / "pyiqa"
    return Path(torch.hub.get_dir()) / "pyiqa"

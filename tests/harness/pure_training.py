"""A small PURE training: pictures in pairs, a list of conversations about them, and tiny networks to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import pure
from .pure import Sizes, backbone, save_pure_folder, save_vqgan, vqgan

INSTRUCTION = (
    "Perceive the degradation level, understand the image content, and restore the high-quality image. <|image|>"
)
SIDE = 32


def save_pairs(folder: Path, count: int, width: int = SIDE, height: int = SIDE) -> Path:
    """`count` pairs of smooth random pictures and a list about them, with answers of two lengths."""
    for name in ("lq", "hq"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(count):
        clean = pure.picture(number, width, height)[0]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(number)) * 0.1
        for name, picture in (("hq", clean), ("lq", (clean + noise).clamp(0, 1))):
            pixels = (picture * 255).round().to(torch.uint8).numpy()
            Image.fromarray(np.ascontiguousarray(pixels)).save(folder / name / f"{number}.png")
        text = f"{pure.SENTENCE}{' The image shows.' if number % 2 else ''} <|image|>"
        items.append(
            {
                "conversations": [{"from": "human", "value": INSTRUCTION}, {"from": "gpt", "value": text}],
                "image": [f"lq/{number}.png", f"hq/{number}.png"],
            }
        )
    path = folder / "train.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def save_start(folder: Path, seed: int = 0, sizes: Sizes | None = None) -> Path:
    """A tiny released folder to start from, with the VQGAN beside it; the folder."""
    sizes = sizes or Sizes()
    follows = pure.answer() if sizes.vocabulary == pure.VOCABULARY else {}
    config, tokenizer = sizes.config(), pure.tokenizer_json(pure.vocabulary(sizes.vocabulary))
    save_pure_folder(folder, backbone(seed, sizes, follows), config, tokenizer)
    save_vqgan(folder / pure.VQ_FILE, vqgan())
    return folder


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    """Of a run on `save_pairs` and `save_start` in `root`, made where absent; `changes` replace whole parts."""
    listed = root / "pairs" / "train.json"
    if not listed.is_file():
        save_pairs(root / "pairs", 8)
    start = root / "start"
    if not start.is_dir():
        save_start(start)
    return {
        "out": root / "run",
        "steps": 20,
        "batch": 2,
        "precision": "fp32",
        "workers": 0,
        "dropout": 0.0,
        "start": start,
        "vqgan": start / pure.VQ_FILE,
        "export_precision": "fp32",
        "data": {"conversations": [{"list": listed}], "side": SIDE},
        "log": {"trackers": []},
        **changes,
    }

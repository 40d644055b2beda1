"""What a DreamSR run is trained on: photos with prompts of their crops, and pairs of clean and detail-erased crops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.photos import ATTEMPTS, Photos
from ..engine.batches import SKIPPED
from ..engine.method import Samples

HQ_SUFFIX, ERASED_SUFFIX, RECORD_SUFFIX = ".hq.png", ".erased.png", ".pair.json"
"""Of a pair's three files; the last is written last, so that it stands for a whole pair."""


def read_image(path: Path) -> Tensor:
    """An 8-bit RGB file as float32 `[3, H, W]` in [0, 1]."""
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


class ErasedPairs:
    """The pairs that scripts/make_pairs.py wrote into a folder, in an order of the seed.

    Raises FileNotFoundError when there are none.
    """

    def __init__(self, folder: Path, seed: int, crop: int):
        self.folder, self.seed, self.crop = folder, seed, crop
        self.names = sorted(path.name.removesuffix(RECORD_SUFFIX) for path in folder.glob("*" + RECORD_SUFFIX))
        if not self.names:
            raise FileNotFoundError(f"erased.folder: {folder} holds no pairs; make them with scripts/make_pairs.py")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A pair that cannot be read gives way to the next one and is named under `skipped`.

        Raises ValueError for a pair of another size than the run's crops, RuntimeError when many in a row cannot be
        read.
        """
        skipped: list[tuple[str, str]] = []
        for further in range(ATTEMPTS):
            name = self.name(number + further)
            try:
                pair = self.read(name)
            except (OSError, ValueError, KeyError) as error:
                skipped.append((f"{self.folder / name}", f"it cannot be read ({type(error).__name__}: {error})"))
                continue
            self.check_size(name, pair)
            return {**pair, "number": number, SKIPPED: skipped}
        raise RuntimeError(f"{ATTEMPTS} pairs in a row cannot be read. The last is {skipped[-1][0]}: {skipped[-1][1]}")

    def name(self, number: int) -> str:
        rounds, place = divmod(number, len(self))
        order = np.random.default_rng((self.seed, rounds)).permutation(len(self))
        return self.names[int(order[place])]

    def read(self, name: str) -> dict[str, Any]:
        record = json.loads((self.folder / (name + RECORD_SUFFIX)).read_text(encoding="utf-8"))
        hq, erased = (read_image(self.folder / (name + suffix)) for suffix in (HQ_SUFFIX, ERASED_SUFFIX))
        prompt = {"prompt": record["prompt"], "crop_prompt": record["crop_prompt"]}
        return {"hq": hq, "erased": erased, **prompt, "name": f"{self.folder / name}"}

    def check_size(self, name: str, pair: Mapping[str, Any]) -> None:
        hq, erased = pair["hq"], pair["erased"]
        if hq.shape != (3, self.crop, self.crop) or erased.shape != hq.shape:
            raise ValueError(
                f"{self.folder / name}: the pair is {hq.shape[-1]}x{hq.shape[-2]} pixels and data.crop {self.crop}. "
                "Make pairs of the run's crops."
            )


class DreamSRSamples(Samples):
    """Photos, and of `share` of the numbers a detail-erased pair instead. `is_erased` says which an item is."""

    def __init__(self, photos: Photos, pairs: ErasedPairs | None, share: float, seed: int, global_only: bool = False):
        """global_only: whether crops go by the photo's prompt."""
        self.photos, self.pairs, self.share, self.seed = photos, pairs, share, seed
        self.global_only = global_only

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        chosen = np.random.default_rng((self.seed, 1, number)).random() < self.share
        if self.pairs is not None and chosen:
            item = {**self.pairs[number], "is_erased": True}
        else:
            item = {**self.photos[number], "is_erased": False}
            item["erased"] = torch.zeros_like(item["hq"])
        if self.global_only:
            item["crop_prompt"] = item["prompt"]
        return item

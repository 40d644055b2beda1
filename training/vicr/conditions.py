"""What the frozen networks make of a batch: latents of diptychs and CLIP's view of the LQ; once where that can be."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.vicr.diptych import empty_target, join
from ..data.cache import FeatureCache, content_key
from ..data.degradations import Degradations
from ..engine.draws import Draws
from ..engine.method import Batch
from ..flux.autoencoder import Autoencoder
from ..flux.encoders import ImageEncoder
from .losses import LAYOUT


class Diptychs:
    """Pairs as FLUX Fill reads them: `clean` and `masked` `[B, 16, h, 2 w]`, and CLIP's `embeds` `[B, 768]`."""

    def __init__(self, autoencoder: Autoencoder, vision: ImageEncoder | None):
        self.autoencoder, self.vision = autoencoder, vision

    def conditions(self, lq: Tensor) -> dict[str, Tensor]:
        """`masked` and `embeds` of LQ panels `[B, 3, H, W]` in [0, 1]."""
        masked = {"masked": self.autoencoder.encode(empty_target(lq, LAYOUT) * 2 - 1)}
        return masked if self.vision is None else {**masked, "embeds": self.vision.encode(lq)}

    def __call__(self, lq: Tensor, hq: Tensor) -> dict[str, Tensor]:
        """For training. The pair is encoded as one picture, for the autoencoder looks across the seam."""
        return {"clean": self.autoencoder.encode(join(lq, hq, LAYOUT) * 2 - 1), **self.conditions(lq)}


class FixedDegradations:
    """Crops that come again get one of a few degraded versions, and what is computed of these is kept on the disk."""

    def __init__(self, degradations: Degradations, count: int, seed: int, settings: Any, folder: Path):
        """settings: what the results depend on besides."""
        self.degradations, self.count, self.seed = degradations, count, seed
        self.cache = FeatureCache(folder / "diptychs", {"seed": seed, "settings": settings})

    def versions(self, batch: Batch) -> list[int]:
        """Which version each sample of a collated batch has, by its number."""
        return [int(Draws((self.seed, 1), int(number)).choice(self.count)) for number in batch["number"]]

    def lq(self, batch: Batch, device: torch.device, places: Sequence[int] | None = None) -> Tensor:
        """The degraded crops at `places` of the batch, `[n, 3, H, W]`; all by default."""
        versions, names = self.versions(batch), batch["name"]
        rows = []
        for place in range(len(names)) if places is None else places:
            draws = Draws((self.seed, 2, zlib.crc32(names[place].encode())), versions[place], device)
            rows.append(self.degradations(batch["hq"][place : place + 1].to(device), draws))
        return torch.cat(rows)

    def fetch(self, batch: Batch, device: torch.device, diptychs: Diptychs) -> dict[str, Tensor]:
        """What `diptychs` makes of the batch, from the disk where it is there."""
        rows = zip(batch["hq"], batch["name"], self.versions(batch), strict=True)
        keys = [f"{content_key(hq)} {name} {version}" for hq, name, version in rows]

        def compute(places: list[int]) -> dict[str, Tensor]:
            return diptychs(self.lq(batch, device, places), batch["hq"][places].to(device))

        return {name: value.to(device) for name, value in self.cache.fetch(keys, compute).items()}

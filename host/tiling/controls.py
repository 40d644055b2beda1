"""ControlNets of the host under tiling: each tile gets the hint's crop, and the control network sees tiles only."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import comfy.utils
import torch
from comfy.controlnet import ControlBase
from torch import Tensor

from ...models.tiles.grid import Box, Panes
from ...models.tiles.layout import CELL


class TileControls:
    """The ControlNets of one sampling run, cut to tiles. A chain of them is cut link by link.

    canvas: (height, width) in latent cells. What a control makes of its hint is kept only where a VAE encodes it:
    latents are small and costly to make, pixels the other way round.
    """

    def __init__(self, panes: Panes, canvas: tuple[int, int]):
        self.panes = panes
        self.canvas = canvas
        self.hints: dict[int, Tensor] = {}
        self.encoded: dict[tuple[int, int, int, int], ControlBase] = {}

    def cut(self, control: ControlBase, first: int, boxes: Sequence[Box], batch: int) -> ControlBase:
        """A control for tiles `first` and following, `batch` items each; one object for one control and tiles.

        The host runs conditions in one batch only when their control is the same object, so that the caller keeps
        what this returns for the length of an evaluation.
        """
        key = (id(control), first, len(boxes), batch)
        if key in self.encoded:
            return self.encoded[key]
        part = copy.copy(control)
        part.cond_hint = None
        if control.cond_hint_original is not None:
            part.cond_hint_original = self.crop(self.hint(control), boxes, batch, scale_of(control))
        part.extra_concat_orig = [self.crop_extra(extra, boxes, batch) for extra in control.extra_concat_orig]
        if control.previous_controlnet is not None:
            part.previous_controlnet = self.cut(control.previous_controlnet, first, boxes, batch)
        if control.vae is not None:
            self.encoded[key] = part
        return part

    def hint(self, control: ControlBase) -> Tensor:
        """The hint at the size the control wants for the whole canvas, scaled as the control itself would."""
        if id(control) not in self.hints:
            scale, (height, width) = scale_of(control), self.canvas
            hint = control.cond_hint_original
            if tuple(hint.shape[-2:]) != (height * scale, width * scale):
                hint = comfy.utils.common_upscale(
                    hint, width * scale, height * scale, control.upscale_algorithm, "center"
                )
            self.hints[id(control)] = hint
        return self.hints[id(control)]

    def crop(self, field: Tensor, boxes: Sequence[Box], batch: int, scale: int) -> Tensor:
        field = comfy.utils.repeat_to_batch_size(field, batch)
        return torch.cat([self.panes.crop(field, box, scale) for box in boxes])

    def crop_extra(self, extra: Tensor, boxes: Sequence[Box], batch: int) -> Tensor:
        """A mask that goes with the hint, at any size; a single cell stands for an even field."""
        if tuple(extra.shape[-2:]) == (1, 1):
            return extra
        height, width = self.canvas
        whole = comfy.utils.common_upscale(extra, width * CELL, height * CELL, "nearest-exact", "center")
        return self.crop(whole, boxes, batch, CELL)


def scale_of(control: ControlBase) -> int:
    """Hint pixels per latent cell."""
    encoder = 1 if control.vae is None else control.vae.spacial_compression_encode()
    return control.compression_ratio * encoder

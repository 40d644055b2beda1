"""DINOv2 features of the LQ image, by transformers' network (arXiv 2304.07193)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.state_dict import require_layers, require_tensors, shapes_of, sizes_of
from ...models.vosr.config import strip_wrapper_prefix
from ...models.vosr.dinov2_names import WANTED_FILES, transformers_names
from ...models.vosr.vision import INPUT_SIZE, feature_block, preprocess
from .tensor_files import read_tensors

HEAD_DIM = 64
"""Of every published DINOv2; the tensors do not tell."""

POSITION_OFFSET = 0.1
"""What the original adds to the side of the grid before it takes the scale of the position table."""


class VisionFeatures:
    """Tokens of one block of DINOv2, without the class token, and without the final norm unless it is the last.

    path: the file in torch hub or transformers naming. layer: the block, counted from 0; VOSR's own for this depth by
    default. Blocks after it are not kept.

    Raises ValueError for another file or a block that is not there, ModuleNotFoundError without transformers.
    """

    def __init__(self, path: Path, device: torch.device, layer: int | None = None, size: int = INPUT_SIZE):
        network = load_dinov2(path, device)
        depth = len(network.encoder.layer)
        self.layer = feature_block(depth) if layer is None else layer
        if not 0 <= self.layer < depth:
            raise ValueError(f"{path.name} has blocks 0 to {depth - 1}; the model takes block {self.layer}")
        self.norm = network.layernorm if self.layer == depth - 1 else None
        network.encoder.layer = network.encoder.layer[: self.layer + 1]
        self.network, self.size = network, size
        self.width: int = network.config.hidden_size
        self.grid = size // network.config.patch_size

    @property
    def tokens(self) -> int:
        return self.grid**2

    def __call__(self, image: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [-1, 1] of any size -> features `[B, M, E]`, row-major."""
        embeddings = self.network.embeddings
        with torch.autocast(image.device.type, enabled=False):
            pixels = preprocess((image.float() + 1) / 2, self.size)
        patches = embeddings.patch_embeddings(pixels)
        tokens = torch.cat([embeddings.cls_token.expand(len(image), -1, -1), patches], dim=1) + self.positions()
        for block in self.network.encoder.layer:
            tokens = block(tokens)
            tokens = tokens[0] if isinstance(tokens, tuple) else tokens  # of transformers before 5
        if self.norm is not None:
            tokens = self.norm(tokens)
        return tokens[:, 1:].float()

    def positions(self) -> Tensor:
        """The position table `[1, 1 + M, E]` at this grid, by the original's scale factor."""
        table = self.network.embeddings.position_embeddings
        side = round((table.shape[1] - 1) ** 0.5)
        if side == self.grid:
            return table
        square = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        scale = (self.grid + POSITION_OFFSET) / side
        square = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([table[:, :1], square.flatten(2).transpose(1, 2)], dim=1)


def load_dinov2(path: Path, device: torch.device) -> Any:
    """transformers' Dinov2Model in float32, not trained."""
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError as error:
        raise ModuleNotFoundError("DINOv2 needs transformers: pip install 'realisr[train]'") from error
    content = read_tensors(path, "meta" if device.type == "meta" else "cpu")
    require_tensors("DINOv2 encoder", path.name, content)
    tensors = transformers_names(path.name, strip_wrapper_prefix(content))
    with sizes_of("DINOv2 encoder", path.name, tensors, f"Use {WANTED_FILES}."):
        config = Dinov2Config(**dinov2_settings(tensors))
    if device.type == "meta":
        with torch.device("meta"):
            return Dinov2Model(config).eval().requires_grad_(False)
    # transformers' own loading knows its names of every version.
    network, report = Dinov2Model.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    problems = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if problems:
        raise ValueError(f"{path.name} does not fit a DINOv2 encoder: {problems}. Use {WANTED_FILES}.")
    return network.to(device, torch.float32).eval().requires_grad_(False)


def dinov2_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """transformers' settings for a DINOv2 with tensors of these shapes."""
    shapes = shapes_of(tensors)
    width = shapes["embeddings.cls_token"][-1]
    patch = shapes["embeddings.patch_embeddings.projection.weight"][-1]
    side = round((shapes["embeddings.position_embeddings"][1] - 1) ** 0.5)
    return {
        "hidden_size": width,
        "num_attention_heads": max(1, width // HEAD_DIM),
        "num_hidden_layers": require_layers(shapes, "encoder.layer."),
        "layer_norm_eps": 1e-6,
        "use_swiglu_ffn": any(".mlp.weights_in." in key for key in shapes),
        "use_mask_token": "embeddings.mask_token" in shapes,
        "patch_size": patch,
        "image_size": side * patch,
    }

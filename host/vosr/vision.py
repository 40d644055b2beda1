"""DINOv2 as a ComfyUI CLIP_VISION, and the features VOSR takes from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.ops
import torch
from comfy.image_encoders.dino2 import Dinov2Model
from torch import Tensor

from ...models.state_dict import require_keys, require_layers, require_tensors, shapes_of, sizes_of
from ...models.vosr.config import strip_wrapper_prefix
from ...models.vosr.dinov2_names import WANTED_FILES, transformers_names
from ...models.vosr.vision import IMAGE_MEAN, IMAGE_STD, INPUT_SIZE, feature_block, preprocess
from ..cost import Cost
from ..files import Reader, load_state_dict_file
from ..forwards import vision_forward
from ..model_catalogue import chosen_file
from ..model_folders import model_files
from ..progress import following
from ..types import ClipVision

HEAD_DIM = 64
"""Of every published DINOv2; the tensors do not tell."""

IMAGES_PER_FORWARD = 8
ACTIVATIONS_PER_TOKEN = 24
"""Values per token and width that one block keeps at a time, generously: qkv, MLP hidden, residuals, attention."""


def vision_choices() -> list[str]:
    """The files in models/clip_vision."""
    return model_files("clip_vision")


def find_vision_encoder(name: str) -> Path:
    """The file behind a loader choice. Raises FileNotFoundError saying what to fetch."""
    return chosen_file("clip_vision", name)


def load_vision_encoder(name: str) -> ClipVision:
    """The encoder behind a loader choice. Raises ValueError for a file that is not DINOv2 without registers."""
    return load_dinov2(find_vision_encoder(name))


def load_dinov2(path: str | Path, num_heads: int | None = None) -> ClipVision:
    """DINOv2 of any size as a CLIP_VISION, from a file in torch hub or transformers naming.

    num_heads: heads of width 64 unless given. Raises ValueError naming what a wrong file looks like.
    """
    path = Path(path)
    vision = dinov2_from_tensors(path.name, load_state_dict_file(path)[0], num_heads)
    vision.patcher.cached_patcher_init = (_file_patcher, (path, num_heads))
    return vision


def _file_patcher(path: Path, num_heads: int | None, disable_dynamic: bool = False):
    return load_dinov2(path, num_heads).patcher


def dinov2_from_tensors(source: str, state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> ClipVision:
    """The same from tensors; source names them in errors."""
    require_tensors("DINOv2 encoder", source, state_dict)
    tensors = transformers_names(source, strip_wrapper_prefix(state_dict))
    vision = comfy.clip_vision.ClipVisionModel(checked_config(source, tensors, num_heads))
    # The host computes in float32 and would store half precision: keep what the file has.
    vision.dtype = tensors["embeddings.cls_token"].dtype
    vision.model.to(vision.dtype)
    vision.load_sd(tensors)
    return vision


def checked_config(source: str, tensors: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """The host's settings for these tensors, when they are exactly a DINOv2's. Raises ValueError when they are not."""
    with sizes_of("DINOv2 encoder", source, tensors, f"Use {WANTED_FILES}."):
        config = dinov2_config(tensors, num_heads)
        expected = Dinov2Model(config, torch.float32, torch.device("meta"), comfy.ops.manual_cast).state_dict()
    require_keys("DINOv2 encoder", source, expected, tensors)
    return config


def dinov2_config(tensors: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """The host's settings for a DINOv2 with tensors of these shapes."""
    shapes = shapes_of(tensors)
    width = shapes["embeddings.cls_token"][-1]
    patch = shapes["embeddings.patch_embeddings.projection.weight"][-1]
    side = round((shapes["embeddings.position_embeddings"][1] - 1) ** 0.5)
    return {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_attention_heads": num_heads or max(1, width // HEAD_DIM),
        "num_hidden_layers": require_layers(shapes, "encoder.layer."),
        "layer_norm_eps": 1e-6,
        "use_swiglu_ffn": any(".mlp.weights_in." in key for key in shapes),
        "use_mask_token": "embeddings.mask_token" in shapes,
        "patch_size": patch,
        "image_size": side * patch,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }


def dinov2_of(vision: ClipVision) -> Dinov2Model:
    """The network inside a CLIP_VISION. Raises ValueError when it is no DINOv2 of images."""
    network = vision.model
    if not isinstance(network, Dinov2Model) or network.alt_start != -1:
        kind = vision.config.get("model_type", type(network).__name__)
        raise ValueError(
            f"VOSR reads images with DINOv2, the connected CLIP_VISION is a {kind}. Use Load VOSR Vision Encoder with "
            f"{WANTED_FILES}."
        )
    return network


@dataclass(frozen=True)
class VisionSize:
    """What of an encoder says how much memory it takes."""

    weights: int
    """Bytes."""
    width: int
    patch_size: int
    config: Mapping[str, Any] | None = None
    """The host's settings of a network that is known from its file alone."""

    @classmethod
    def of(cls, vision: ClipVision) -> VisionSize:
        """Raises ValueError when it is no DINOv2 of images."""
        network = dinov2_of(vision)
        return cls(int(vision.patcher.model_size()), network.embed_dim, network.patch_size)

    @classmethod
    def of_file(cls, path: Path, read: Reader) -> VisionSize:
        """Of a file before it is loaded. Raises ValueError when it is no DINOv2."""
        tensors = transformers_names(path.name, strip_wrapper_prefix(read(path)[0]))
        config = checked_config(path.name, tensors)
        size = tensors["embeddings.cls_token"].dtype.itemsize
        weights = sum(tensor.numel() for tensor in tensors.values()) * size
        return cls(weights, config["hidden_size"], config["patch_size"], config)

    def memory(self, images: int) -> int:
        """Bytes that a forward on so many images takes beside the weights."""
        tokens = (INPUT_SIZE // self.patch_size) ** 2
        return images * tokens * self.width * ACTIVATIONS_PER_TOKEN * 4

    def forward(self, images: int) -> Cost | None:
        """Of a forward on so many images; None for an encoder that is loaded already."""
        if self.config is None:
            return None
        with torch.device("meta"), torch.no_grad():
            network = Dinov2Model(dict(self.config), torch.float32, torch.device("meta"), comfy.ops.manual_cast)
        return vision_forward(network, images, INPUT_SIZE, feature_block(self.config["num_hidden_layers"]))


def encode_vosr_features(vision: ClipVision, images: Tensor, layer: int | None = None) -> Tensor:
    """VOSR's features `[B, 1024, E]` of images `[B, H, W, 3]` in 0..1, whatever their size; row-major over 32 x 32.

    layer: block to take, counted from 0; VOSR's own for this depth by default. The last block's tokens pass the
    final norm, earlier ones do not, and blocks after it are not run. On the host's intermediate device, float32.

    Raises ValueError for an encoder that is not DINOv2, or a layer it does not have.
    """
    network = dinov2_of(vision)
    depth = len(network.encoder.layer)
    layer = feature_block(depth) if layer is None else layer
    if not 0 <= layer < depth:
        raise ValueError(f"this DINOv2 has blocks 0 to {depth - 1}, block {layer} was asked for")
    needed = VisionSize.of(vision).memory(min(IMAGES_PER_FORWARD, images.shape[0]))
    comfy.model_management.load_models_gpu([vision.patcher], memory_required=needed)
    features, batches = [], images[..., :3].split(IMAGES_PER_FORWARD)
    with following(network.encoder.layer[: layer + 1], len(batches)):
        for batch in batches:
            pixels = preprocess(batch.movedim(-1, 1).to(device=vision.load_device, dtype=torch.float32))
            ((found, _),) = network.get_intermediate_layers(pixels, [layer], apply_norm=layer == depth - 1)
            features.append(found.to(device=comfy.model_management.intermediate_device(), dtype=torch.float32))
    return torch.cat(features)

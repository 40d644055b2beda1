"""DINOv2 as a ComfyUI CLIP_VISION, and the features VOSR takes from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.ops
import folder_paths
import torch
from comfy.image_encoders.dino2 import Dinov2Model
from torch import Tensor

from ...models.state_dict import describe_state_dict, require_keys, require_layers, require_tensors, shapes_of, sizes_of
from ...models.vosr.config import strip_wrapper_prefix
from ...models.vosr.vision import IMAGE_MEAN, IMAGE_STD, INPUT_SIZE, feature_block, preprocess
from ..files import load_state_dict_file
from ..model_folders import model_files
from ..types import ClipVision

HEAD_DIM = 64
"""Of every published DINOv2; the tensors do not tell."""

IMAGES_PER_FORWARD = 8
ACTIVATIONS_PER_TOKEN = 24
"""Values per token and width that one block keeps at a time, generously: qkv, MLP hidden, residuals, attention."""

HUB_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
HUB_BLOCK_NAMES = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
QKV = ("query", "key", "value")

WANTED_FILES = "dinov2_vitb14_pretrain.pth (0.5B models) or dinov2_vitl14_pretrain.pth (1.4B models and VOSR 2.0)"


def vision_choices() -> list[str]:
    """The files in models/clip_vision."""
    return model_files("clip_vision")


def load_vision_encoder(name: str) -> ClipVision:
    """The encoder behind a loader choice. Raises ValueError for a file that is not DINOv2 without registers."""
    return load_dinov2(folder_paths.get_full_path_or_raise("clip_vision", name))


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


def transformers_names(source: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 tensors under transformers' names. Raises ValueError for another network, or one with registers."""
    if any(key.endswith(("register_tokens", "embeddings.register_tokens")) for key in state_dict):
        raise ValueError(
            f"{source} is a DINOv2 with register tokens, which VOSR was not trained with. Use {WANTED_FILES}."
        )
    if any(key.startswith("dinov2.") for key in state_dict):
        state_dict = {key.removeprefix("dinov2."): value for key, value in state_dict.items()}
    if "encoder.layer.0.layer_scale1.lambda1" in state_dict:
        return dict(state_dict)
    if "blocks.0.ls1.gamma" in state_dict:
        with sizes_of("DINOv2 encoder", source, state_dict, f"Use {WANTED_FILES}."):
            return from_hub(state_dict)
    raise ValueError(
        f"{source} is not a DINOv2 encoder. It looks like {describe_state_dict(state_dict)}. Use {WANTED_FILES}."
    )


def from_hub(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in torch hub naming -> transformers naming; the joint qkv projection is split."""
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if not key.startswith("blocks."):
            stem = key if key in HUB_NAMES else key.rpartition(".")[0]
            renamed[HUB_NAMES.get(stem, stem) + key[len(stem) :]] = value
            continue
        _, index, part = key.split(".", 2)
        layer = f"encoder.layer.{index}."
        if part.startswith("attn.qkv."):
            leaf = part.removeprefix("attn.qkv.")
            for role, share in zip(QKV, value.chunk(3), strict=True):
                renamed[f"{layer}attention.attention.{role}.{leaf}"] = share.contiguous()
            continue
        stem = next((stem for stem in HUB_BLOCK_NAMES if part.startswith(stem)), "")
        renamed[layer + HUB_BLOCK_NAMES.get(stem, "") + part[len(stem) :]] = value
    return renamed


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
    tokens = (INPUT_SIZE // network.patch_size) ** 2
    together = min(IMAGES_PER_FORWARD, images.shape[0])
    comfy.model_management.load_models_gpu(
        [vision.patcher], memory_required=together * tokens * network.embed_dim * ACTIVATIONS_PER_TOKEN * 4
    )
    features = []
    for batch in images[..., :3].split(IMAGES_PER_FORWARD):
        pixels = preprocess(batch.movedim(-1, 1).to(device=vision.load_device, dtype=torch.float32))
        ((found, _),) = network.get_intermediate_layers(pixels, [layer], apply_norm=layer == depth - 1)
        features.append(found.to(device=comfy.model_management.intermediate_device(), dtype=torch.float32))
    return torch.cat(features)

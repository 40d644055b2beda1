"""DINOv2's tensors by their names: what a file is, and torch hub's naming as that of transformers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..state_dict import describe_state_dict, sizes_of

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

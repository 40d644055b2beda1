"""Where an MM-ControlNet's training starts: blocks copied from FLUX with zero outputs, or a file of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...models.dreamsr.config import HEAD_DIM, Injection, MMControlNetConfig
from ...models.dreamsr.mm_controlnet import MMControlNet
from ...models.dreamsr.start import copied_name, untrained
from ...models.state_dict import require_keys, sizes_of
from ..flux.files import WeightFiles, opened

WHAT = "DreamSR MM-ControlNet"


def sizes_for(transformer: nn.Module, layers: int) -> MMControlNetConfig:
    """Sizes of a control of `layers` blocks for a FluxTransformer2DModel. Raises ValueError where FLUX.1's heads of
    128 channels are not its own."""
    config = transformer.config
    if config.attention_head_dim != HEAD_DIM:
        raise ValueError(f"FLUX.1 has attention heads of {HEAD_DIM}, this model of {config.attention_head_dim}")
    hidden = config.num_attention_heads * config.attention_head_dim
    return MMControlNetConfig(
        hidden_size=hidden,
        layers=layers,
        in_features=transformer.out_channels,
        text_width=config.joint_attention_dim,
        pooled_width=config.pooled_projection_dim,
        mlp_hidden=4 * hidden,
        context_hidden=4 * hidden,
        has_guidance=config.guidance_embeds,
    )


def new_control(transformer: nn.Module, layers: int, blocks: tuple[int, ...], seed: int) -> MMControlNet:
    """An untrained control, float32 on the CPU: with it FLUX computes what it did without.

    blocks: the two-stream blocks that are copied, and acted on. The transformer is whole and on the CPU, or on the meta
    device, where nothing is copied.
    """
    config = sizes_for(transformer, layers)
    device = next(transformer.parameters()).device
    with torch.device("meta"):
        network = MMControlNet(config)
    if device.type == "meta":
        return network
    source = transformer.state_dict()
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in network.state_dict().items():
        theirs = copied_name(name, blocks)
        if theirs not in source:
            weights[name] = untrained(name, tuple(value.shape), generator)
            continue
        # A Fill or control variant of FLUX reads more after the noisy latent's features.
        columns = config.in_features if name == "x_embedder.weight" else None
        copied = source[theirs].float()
        weights[name] = (copied if columns is None else copied[:, :columns]).clone()
    require_keys(WHAT, "this FLUX", network.state_dict(), weights)
    network.load_state_dict(weights, assign=True)
    return network


def read_control(path: Path, transformer: nn.Module) -> tuple[MMControlNet, Injection]:
    """The control of a file, in float32 on the CPU, and where it acts.

    With a transformer on the meta device only the header is read.
    Raises FileNotFoundError; ValueError for a file that is none, or one for another FLUX.
    """
    files = WeightFiles(path)
    device = next(transformer.parameters()).device
    stand_ins: dict[str, Any] = {name: torch.empty(shape, device="meta") for name, shape in files.shapes.items()}
    with sizes_of(WHAT, str(path), stand_ins), torch.device("meta"):
        config = MMControlNetConfig.from_shapes(files.shapes)
        network = MMControlNet(config)
    require_keys(WHAT, str(path), network.state_dict(), stand_ins)
    try:
        injection = Injection.from_metadata(metadata_of(path), config.layers)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    require_same_flux(path, config, sizes_for(transformer, config.layers))
    if device.type != "meta":
        network.load_state_dict({name: files.read(name, torch.float32) for name in files.shapes}, assign=True)
    return network, injection


def require_same_flux(path: Path, found: MMControlNetConfig, wanted: MMControlNetConfig) -> None:
    for field in ("hidden_size", "in_features", "text_width", "pooled_width", "has_guidance"):
        ours, theirs = getattr(wanted, field), getattr(found, field)
        if ours != theirs:
            raise ValueError(f"{path} was made for another FLUX: its {field} is {theirs}, this model's {ours}")


def metadata_of(path: Path) -> Mapping[str, str]:
    with opened(path) as handle:
        return handle.metadata() or {}

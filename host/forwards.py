"""What one forward of each method's network costs, for any number of items of any size (see cost.py).

The networks are on the meta device: as nodes/estimates.py describes files, and as benchmarks make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
from torch import Tensor, nn

from ..models.pure.cache import KVCache
from ..models.pure.config import ChameleonConfig
from ..models.pure.transformer import Chameleon
from ..models.pure.vqgan import VQGAN, VQConfig
from ..models.vosr.dit import ContextKV
from .cost import FUSED, Cost, cost_of
from .dreamsr.control.conditioning import ApplyOptions, ControlRun
from .dreamsr.control.injection import control_features, host_attention, with_injections
from .dreamsr.control.loader import MMControl
from .memory import available_memory
from .types import VAE, Model

VISION_TOKENS = 1024
"""Of the vision features of one tile."""

TEXT_TOKENS = 256
"""Of a FLUX prompt: ComfyUI fills shorter ones up to as many."""

FILL_CHANNELS = 80
"""Beside the noise, FLUX Fill sees the masked image's 16 channels and the 64 of the mask's 8 x 8 pixels a cell."""

HELD, FLOAT32 = 6, 4
"""Latents that a run holds (noise, start, state, what is denoised), and their bytes a number."""

KEPT = 64
"""Forwards whose cost is remembered."""


@dataclass(frozen=True)
class MadeContext:
    """Keys and values as a run has kept them, in place of conds.Context."""

    kv: ContextKV

    def encode(self, *_: Any) -> list[ContextKV]:
        return [self.kv]


def vosr_context(model: Model, tokens: int) -> tuple[ContextKV, Cost]:
    """What a run makes of one tile's vision features, and the making."""
    network, made = model.model.diffusion_model, []
    dtype = model.model.get_dtype_inference()

    def run() -> None:
        made.append(network.encode_context(torch.empty(1, tokens, model.model.info.config.context_width, dtype=dtype)))

    cost = cost_of(run)
    return made[0], cost


@lru_cache(KEPT)
def vosr_forward(model: Model, full: int, weak: int, height: int, width: int) -> Cost:
    """Of a forward on so many tiles of height x width cells: with their vision features, and with none.

    The features' keys and values are there already.
    """
    base, config = model.model, model.model.info.config
    context: list[MadeContext] = []
    if config.context_width:
        context = [MadeContext(vosr_context(model, VISION_TOKENS)[0])] * full
        if weak:
            context.append(MadeContext(vosr_context(model, 1)[0].expand(weak)))

    def run() -> Tensor:
        x, lq = (torch.empty(full + weak, config.latent_channels, height, width) for _ in range(2))
        return base._apply_model(x, torch.empty(len(x)), lq, transformer_options=dict(FUSED), vision=context)

    return cost_of(run)


@lru_cache(KEPT)
def flux_forward(
    model: Model, items: int, height: int, width: int, control: MMControl | None = None, text: int = TEXT_TOKENS
) -> Cost:
    """Of FLUX or FLUX Fill on so many tiles of height x width cells, with what an MM-ControlNet adds."""
    base = model.model
    params = base.diffusion_model.params
    fill = params.in_channels > params.out_channels
    dtype = base.get_dtype_inference()

    def run() -> Tensor:
        x, sigma = torch.empty(items, params.out_channels, height, width), torch.empty(items)
        tokens, pooled = torch.empty(items, text, params.context_in_dim), torch.empty(items, params.vec_in_dim)
        options, guidance = dict(FUSED), torch.empty(items)
        if control is not None:
            blocks = control.injection.blocks(control.config.layers, len(base.diffusion_model.double_blocks))
            attention = host_attention(control.config.num_heads, options)
            inputs = (x.to(dtype), sigma, guidance, torch.empty_like(x), tokens, pooled)
            features = control_features(control, *inputs, attention)
            options = with_injections(ControlRun(control, blocks, ApplyOptions()), features, attention, options)
        beside = {"c_concat": torch.empty(items, FILL_CHANNELS, height, width)} if fill else {}
        return base._apply_model(
            x, sigma, c_crossattn=tokens, y=pooled, guidance=guidance, transformer_options=options, **beside
        )

    return cost_of(run)


def fill_sampling(model: Model, height: int, width: int, text: int = TEXT_TOKENS) -> Cost:
    """Of one step of FLUX Fill on a whole latent, with what the run holds of it from step to step."""
    forward = flux_forward(model, 1, height, width, None, text)
    channels = HELD * model.model.diffusion_model.params.out_channels + FILL_CHANNELS
    return replace(forward, peak=forward.peak + FLOAT32 * channels * height * width)


@lru_cache(KEPT)
def vae_forward(vae: VAE, name: str, height: int, width: int) -> Cost:
    """Of "encoding" or "decoding" one picture, or tile, of height x width pixels."""
    frames = (1,) if vae.latent_dim == 3 else ()
    cell = max(1, vae.spacial_compression_encode())
    # The host's choice for a machine without fused kernels asks how much memory is free on the device.
    attend_fused(vae.first_stage_model)

    def run() -> Tensor:
        if name == "encoding":
            return vae.first_stage_model.encode(torch.empty(1, 3, *frames, height, width, dtype=vae.vae_dtype))
        sides = (-(-height // cell), -(-width // cell))
        return vae.first_stage_model.decode(torch.empty(1, vae.latent_channels, *frames, *sides, dtype=vae.vae_dtype))

    return cost_of(run)


def attend_fused(autoencoder: nn.Module) -> None:
    """Let an autoencoder of the host or of the pack attend with torch's own kernels, as on GPUs."""
    for module in autoencoder.modules():
        for attribute in ("optimized_attention", "attention"):
            if callable(vars(module).get(attribute)):
                setattr(module, attribute, pytorch_attention)


def vision_forward(network: nn.Module, images: int, side: int, layer: int) -> Cost:
    """Of DINOv2 on so many images of side x side pixels, up to a block."""

    def run() -> Any:
        return network.get_intermediate_layers(torch.empty(images, 3, side, side), [layer], apply_norm=False)

    return cost_of(run)


@lru_cache(KEPT)
def pure_forwards(
    config: ChameleonConfig, dtype: torch.dtype, sequences: int, prompt: int, lengths: Sequence[int], capacity: int
) -> tuple[Cost, Cost]:
    """Of reading one prompt of so many tokens, and of one image token of so many sequences.

    lengths: of what each guidance branch has seen by then. capacity: tokens of a cache.
    """
    with torch.device("meta"), torch.no_grad():
        network = Chameleon(config, dtype)
        caches = [KVCache.allocate(config, sequences, capacity, dtype) for _ in lengths]
        one = KVCache.allocate(config, 1, capacity, dtype)

    def read() -> Tensor:
        one.set_span(prompt)
        hidden = network(torch.empty(1, prompt, dtype=torch.long), torch.empty(1, prompt, dtype=torch.long), [one])
        return network.logits(hidden[:, -1])

    def draw() -> Tensor:
        for cache, length in zip(caches, lengths, strict=True):
            cache.set_span(length)
        rows = sequences * len(caches)
        ids, positions = (torch.empty(rows, 1, dtype=torch.long) for _ in range(2))
        return network.image_logits(network(ids, positions, caches)).softmax(-1)

    return cost_of(read), cost_of(draw)


@lru_cache(KEPT)
def vqgan_forward(config: VQConfig, side: int, decode: bool) -> Cost:
    """Of PURE's VQGAN, on one square of so many pixels, to or from its tokens."""
    with torch.device("meta"), torch.no_grad():
        network = VQGAN(config, dtype=torch.float32)

    def run() -> Tensor:
        if not decode:
            return network.encode(torch.empty(1, 3, side, side))
        codes = side // config.downscale
        return network.decode(torch.empty(1, codes, codes, dtype=torch.long))

    return cost_of(run)


def for_cards(cost: Cost, dtype: torch.dtype) -> Cost:
    """What a network costs on a graphics card, which runs it in half precision where a CPU takes float32."""
    device = comfy.model_management.get_torch_device()
    on_cpu = comfy.model_management.is_device_cpu(device)
    return cost.halved() if on_cpu and dtype == torch.float32 else cost


def free_beside(weights: int) -> int:
    """Bytes that a run can have beside the weights of the models it loads."""
    return max(0, available_memory(comfy.model_management.get_torch_device()) - weights)

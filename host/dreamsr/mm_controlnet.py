"""An MM-ControlNet on a MODEL: run once per model call, its features injected into FLUX's two-stream blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.ldm.common_dit
import comfy.ldm.modules.attention
import comfy.model_base
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...models.dreamsr.mm_controlnet import PATCH, ControlFeatures, MMControlNet, inject_image, inject_text
from ...models.vosr.dit import AttentionFn
from .conditioning import Conditioning, ControlKeys, LocalPrompt, with_control
from .loader import MMControl

WRAPPER_KEY = "realisr_mm_controlnet"

BlockPatch = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class ApplyOptions:
    """strength: of both branches, 0 is plain FLUX. start, end: share of the sampling it acts in, as for ControlNets.
    text_branch: whether the text stream is steered too (eq. 2), or the image stream alone (eq. 1)."""

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    text_branch: bool = True

    def __post_init__(self):
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"start_percent {self.start} and end_percent {self.end} leave no step for the MM-ControlNet. "
                "Make start the smaller one, both between 0 and 1."
            )


def host_attention(heads: int, transformer_options: dict[str, Any]) -> AttentionFn:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return comfy.ldm.modules.attention.optimized_attention(
            q, k, v, heads, skip_reshape=True, transformer_options=transformer_options
        )

    return attention


@dataclass(frozen=True)
class BlockInjection:
    """Runs a two-stream block, or what another patch put in its place, and injects one control block's features."""

    network: MMControlNet
    layer: int
    features: ControlFeatures
    options: ApplyOptions
    text_residual: bool
    attention: AttentionFn
    previous: BlockPatch | None

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        out = extra["original_block"](args) if self.previous is None else self.previous(args, extra)
        strength, image, text = self.options.strength, out["img"], out["txt"]
        image = inject_image(image, self.features.image.to(image.dtype), strength)
        if self.options.text_branch:
            control = self.features.text
            update = self.network.text_update(self.layer, text.to(control.dtype), control, self.attention)
            text = inject_text(text, update.to(text.dtype), strength, self.text_residual)
        return {**out, "img": image, "txt": text}


@dataclass(frozen=True)
class ControlWrapper:
    """Around every call of the FLUX network (DIFFUSION_MODEL): conditions that carry this slot get the control.

    The network sees exactly what the DiT sees in this call, so a tile is controlled by its own crop and prompt.
    """

    control: MMControl
    slot: int
    blocks: tuple[int, ...]
    options: ApplyOptions

    def __call__(
        self,
        executor,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents=None,
        control=None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs,
    ):
        options = transformer_options or {}
        keys = ControlKeys.of(self.slot)
        own = {key: kwargs.pop(key) for key in keys if key in kwargs}
        if own:
            latent, tokens, pooled = (own[key] for key in keys)
            features = self.features(x, timestep, guidance, latent, tokens, pooled, options)
            options = self.with_injections(features, options)
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)

    def attention(self, options: dict[str, Any]) -> AttentionFn:
        return host_attention(self.control.config.num_heads, options)

    def features(
        self,
        x: Tensor,
        timestep: Tensor,
        guidance: Tensor | None,
        latent: Tensor,
        tokens: Tensor,
        pooled: Tensor,
        options: dict[str, Any],
    ) -> list[ControlFeatures]:
        if latent.shape[-2:] != x.shape[-2:]:
            raise ValueError(
                f"The LATENT being sampled is {x.shape[-2]}x{x.shape[-1]} cells, the one given to Apply "
                f"MM-ControlNet is {latent.shape[-2]}x{latent.shape[-1]}. Encode the image at the size of the result."
            )
        dtype = self.control.compute_dtype
        # What the DiT does with odd sides.
        latent = comfy.ldm.common_dit.pad_to_patch_size(latent.to(dtype), (PATCH, PATCH))
        pooled = pooled[:, : self.control.config.pooled_width].to(dtype)
        attention = self.attention(options)
        return self.control.network(latent, timestep, tokens.to(dtype), pooled, guidance, attention)

    def with_injections(self, features: Sequence[ControlFeatures], options: dict[str, Any]) -> dict[str, Any]:
        """Options whose block patches inject the features, after whatever replaces these blocks already."""
        replacements = options.get("patches_replace", {})
        dit: dict[Any, BlockPatch] = dict(replacements.get("dit", {}))
        attention = self.attention(options)
        residual = self.control.injection.text_residual
        for layer, (block, feature) in enumerate(zip(self.blocks, features, strict=True)):
            name = ("double_block", block)
            dit[name] = BlockInjection(
                self.control.network, layer, feature, self.options, residual, attention, dit.get(name)
            )
        return {**options, "patches_replace": {**replacements, "dit": dit}}


@dataclass(frozen=True)
class RangeWrapper:
    """Around every evaluation (APPLY_MODEL): outside the range of sigmas the control's conditions are left out.

    Reading the sigma makes the device wait, so this is only there when the range is narrowed.
    """

    slot: int
    start: float
    end: float

    def __call__(self, executor, x: Tensor, t: Tensor, *args, **kwargs):
        sampling = executor.class_obj.model_sampling
        sigma = float(t[0])
        if not sampling.percent_to_sigma(self.end) <= sigma <= sampling.percent_to_sigma(self.start):
            keys = ControlKeys.of(self.slot)
            kwargs = {key: value for key, value in kwargs.items() if key not in keys}
        return executor(x, t, *args, **kwargs)


@dataclass(frozen=True)
class PrepareWrapper:
    """Before the host makes room for a run (PREPARE_SAMPLING): features are part of its memory, and must be there."""

    control: MMControl
    slot: int

    def __call__(self, executor, model, noise_shape: Sequence[int], conds: dict[str, list[dict[str, Any]]], *args, **kw):
        key = ControlKeys.of(self.slot).latent
        entries = [entry for branch in conds.values() for entry in branch]
        if not any(key in entry.get("model_conds", {}) for entry in entries):
            raise ValueError(
                f"The MODEL has the MM-ControlNet {self.control.name}, but no conditioning of this run is for it. "
                "Connect the positive output of the same Apply MM-ControlNet node to the sampler or guider."
            )
        return executor(model, self.with_room(model.model, noise_shape), conds, *args, **kw)

    def with_room(self, model: comfy.model_base.BaseModel, noise_shape: Sequence[int]) -> list[int]:
        """A taller noise shape, whose memory estimate covers the features kept through the call as well."""
        one = [1, *noise_shape[1:]]
        config, itemsize = self.control.config, self.control.compute_dtype.itemsize
        tokens = math.prod(noise_shape[-2:]) / PATCH**2
        features = config.layers * tokens * config.hidden_size * itemsize
        share = features / max(1.0, model.memory_required(one, cond_shapes={}))
        return [*noise_shape[:-2], math.ceil(noise_shape[-2] * (1 + share)), noise_shape[-1]]


def require_flux(model, control: MMControl) -> tuple[int, ...]:
    """DiT block of each control block. Raises ValueError when the MODEL is not one this control was made for."""
    base, config = model.model, control.config
    network = base.diffusion_model
    if not isinstance(base, comfy.model_base.Flux) or network.patch_size != PATCH:
        raise ValueError(
            f"MM-ControlNet steers FLUX.1 models; this MODEL is {type(base).__name__}. Load FLUX.1-dev with Load "
            "Diffusion Model."
        )
    if network.hidden_size != config.hidden_size:
        raise ValueError(
            f"{control.name} expects hidden {config.hidden_size}, this model has {network.hidden_size}. "
            "Use the MM-ControlNet that was made for this model."
        )
    try:
        return control.injection.blocks(config.layers, len(network.double_blocks))
    except ValueError as error:
        raise ValueError(f"{control.name} does not fit this MODEL: {error}.") from error


def model_space(model, control: MMControl, latent: Mapping[str, Any]) -> Tensor:
    """The samples of a LATENT as the model sees latents. Raises ValueError when they are not FLUX's."""
    samples, channels = latent["samples"], control.config.latent_channels
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise ValueError(
            f"Apply MM-ControlNet got a latent of shape {list(samples.shape)}, but {control.name} reads {channels} "
            "channels (batch, channels, height, width). Encode the image with FLUX's VAE (ae.safetensors)."
        )
    return model.get_model_object("latent_format").process_in(samples)


def local_prompt(control: MMControl, entry: Sequence[Any], source: str) -> LocalPrompt:
    """The prompt of a CONDITIONING entry. Raises ValueError when its text is of another kind than the control's."""
    prompt, config = LocalPrompt.from_entry(entry, control.config.pooled_width), control.config
    if prompt.tokens.shape[-1] != config.text_width or prompt.pooled.shape[-1] < config.pooled_width:
        raise ValueError(
            f"{source} has text tokens {prompt.tokens.shape[-1]} wide and pooled text {prompt.pooled.shape[-1]} wide; "
            f"{control.name} reads {config.text_width} and {config.pooled_width}. Encode it with FLUX's text encoders "
            "(DualCLIPLoader, type flux)."
        )
    return prompt


def apply_mm_control(
    model,
    control: MMControl,
    positive: Conditioning,
    negative: Conditioning | None,
    latent: Mapping[str, Any],
    local: Conditioning | None,
    options: ApplyOptions,
) -> tuple[Any, Conditioning, Conditioning]:
    """The MODEL with one more MM-ControlNet, and the conditionings that carry its latent and local prompt.

    latent: the host's LATENT of the LQ or degradation-free image, at the size that will be sampled. local: the local
    prompt of positive's entries, None for the prompt each has already. negative, if any, is controlled with its own
    prompt as the local one. At strength 0 everything is returned as it came.
    Raises ValueError naming what does not fit.
    """
    blocks = require_flux(model, control)
    samples = model_space(model, control, latent)
    if local is not None and len(local) != 1:
        raise ValueError(
            f"local_positive holds {len(local)} prompts, Apply MM-ControlNet takes one. Prompts of tiles go to the "
            "tiled sampler."
        )
    prompts = [local_prompt(control, local[0] if local else entry, "local_positive") for entry in positive]
    opposite = [local_prompt(control, entry, "negative") for entry in negative or []]
    if options.strength == 0.0:
        return model, positive, negative or []
    patched = model.clone()
    slot = len(patched.get_wrappers(WrappersMP.DIFFUSION_MODEL, WRAPPER_KEY))
    add_control(patched, control, slot, blocks, options)
    controlled = [with_control(entry, slot, samples, prompt) for entry, prompt in zip(positive, prompts, strict=True)]
    against = [
        with_control(entry, slot, samples, prompt) for entry, prompt in zip(negative or [], opposite, strict=True)
    ]
    return patched, controlled, against


def add_control(patched, control: MMControl, slot: int, blocks: tuple[int, ...], options: ApplyOptions) -> None:
    patched.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, WRAPPER_KEY, ControlWrapper(control, slot, blocks, options)
    )
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, WRAPPER_KEY, PrepareWrapper(control, slot))
    if options.start > 0.0 or options.end < 1.0:
        patched.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, WRAPPER_KEY, RangeWrapper(slot, options.start, options.end)
        )
    patched.set_additional_models(f"{WRAPPER_KEY}_{slot}", [control.patcher])

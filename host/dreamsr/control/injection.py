"""Running MM-ControlNets on a MODEL: once per model call, features injected into FLUX's two-stream blocks.

The MODEL holds the control networks and three wrappers; what is run, on which latent and text, the conditions say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.ldm.common_dit
import comfy.ldm.modules.attention
import comfy.model_base
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....models.attention import AttentionFn
from ....models.dreamsr.mm_controlnet import PATCH, ControlFeatures, inject_image, inject_text
from ...copies import copy_of
from ...types import Model
from .conditioning import ControlKeys, ControlRun
from .loader import MMControl

KEY = "realisr_mm_controlnet"

BlockPatch = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def add_control(model: Model, control: MMControl) -> Model:
    """A clone of the MODEL that loads the control network with itself and runs what its conditions carry."""
    model = copy_of(model)
    if not model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, run_controls)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, leave_out_of_range)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, take_own_copies)
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, prepare)
    # A new list: clones share theirs.
    model.set_additional_models(KEY, [*model.get_additional_models_with_key(KEY), control.patcher])
    # The host would load the network again for each of its copies of the MODEL on other devices, and for every run.
    for copy in model.get_additional_models_with_key("multigpu"):
        own = control.patcher_on(copy.load_device)
        copy.set_additional_models(KEY, [*copy.get_additional_models_with_key(KEY), own])
    return model


def run_controls(
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
    """Around every call of the FLUX network (DIFFUSION_MODEL).

    A control network sees what the DiT sees in this call, so a tile is controlled by its own crop and prompt.
    """
    options = transformer_options or {}
    for keys in list(ControlKeys.used(kwargs)):
        run, latent, tokens, pooled = (kwargs.pop(key) for key in keys)
        if run is None:
            continue
        attention = host_attention(run.control.config.num_heads, options)
        features = control_features(run.control, x, timestep, guidance, latent, tokens, pooled, attention)
        options = with_injections(run, features, attention, options)
    return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)


def host_attention(heads: int, transformer_options: dict[str, Any]) -> AttentionFn:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return comfy.ldm.modules.attention.optimized_attention(
            q, k, v, heads, skip_reshape=True, transformer_options=transformer_options
        )

    return attention


def control_features(
    control: MMControl,
    x: Tensor,
    timestep: Tensor,
    guidance: Tensor | None,
    latent: Tensor,
    tokens: Tensor,
    pooled: Tensor,
    attention: AttentionFn,
) -> list[ControlFeatures]:
    """Features of every control block. Raises ValueError when the latent is not of the size being sampled."""
    if latent.shape[-2:] != x.shape[-2:]:
        raise ValueError(
            f"The LATENT being sampled is {x.shape[-2]}x{x.shape[-1]} cells, the one given to Apply MM-ControlNet is "
            f"{latent.shape[-2]}x{latent.shape[-1]}. Encode the image at the size of the result."
        )
    dtype = control.compute_dtype
    # What the DiT does with odd sides.
    latent = comfy.ldm.common_dit.pad_to_patch_size(latent.to(dtype), (PATCH, PATCH))
    pooled = pooled[:, : control.config.pooled_width].to(dtype)
    return control.network(latent, timestep, tokens.to(dtype), pooled, guidance, attention)


def with_injections(
    run: ControlRun, features: Sequence[ControlFeatures], attention: AttentionFn, options: dict[str, Any]
) -> dict[str, Any]:
    """Options whose block patches inject the features, after whatever replaces these blocks already."""
    replacements = options.get("patches_replace", {})
    dit: dict[Any, BlockPatch] = dict(replacements.get("dit", {}))
    for layer, (block, feature) in enumerate(zip(run.blocks, features, strict=True)):
        name = ("double_block", block)
        dit[name] = BlockInjection(run, layer, feature, attention, dit.get(name))
    return {**options, "patches_replace": {**replacements, "dit": dit}}


# Without a hash of its fields: the compiler of torch 2.5 asks for that of an object that has none yet.
@dataclass(frozen=True, eq=False)
class BlockInjection:
    """Runs a two-stream block, or what another patch put in its place, and injects one control block's features."""

    run: ControlRun
    layer: int
    features: ControlFeatures
    attention: AttentionFn
    previous: BlockPatch | None

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        out = extra["original_block"](args) if self.previous is None else self.previous(args, extra)
        control, options, image, text = self.run.control, self.run.options, out["img"], out["txt"]
        image = inject_image(image, self.features.image.to(image.dtype), options.strength)
        if options.text_branch:
            stream = text.to(control.compute_dtype)
            update = control.network.text_update(self.layer, stream, self.features.text, self.attention)
            text = inject_text(text, update.to(text.dtype), options.strength, control.injection.text_residual)
        return {**out, "img": image, "txt": text}


def leave_out_of_range(executor, x: Tensor, t: Tensor, *args, **kwargs):
    """Around every evaluation (APPLY_MODEL): controls are switched off where sigma is outside their range.

    Reading the sigma makes the device wait, so it is done for narrowed ranges only.
    """
    sampling = executor.class_obj.model_sampling
    for keys in ControlKeys.used(kwargs):
        options = kwargs[keys.run].options
        if options.always:
            continue
        if t[0] > sampling.percent_to_sigma(options.start) or t[0] < sampling.percent_to_sigma(options.end):
            kwargs[keys.run] = None
    return executor(x, t, *args, **kwargs)


def take_own_copies(executor, x: Tensor, t: Tensor, *args, **kwargs):
    """Around every evaluation (APPLY_MODEL): a copy of the MODEL on another device runs its own control networks."""
    patcher = executor.class_obj.current_patcher
    if getattr(patcher, "is_multigpu_base_clone", False):
        own = {held.clone_base_uuid: held for held in patcher.get_additional_models_with_key(KEY)}
        for keys in ControlKeys.used(kwargs):
            run = kwargs[keys.run]
            if run is not None:
                held = own[run.control.patcher.clone_base_uuid]
                kwargs[keys.run] = replace(run, control=replace(run.control, patcher=held))
    return executor(x, t, *args, **kwargs)


def prepare(
    executor,
    model: Model,
    noise_shape: Sequence[int],
    conds: dict[str, list[dict[str, Any]]],
    *args,
    **kwargs,
):
    """Before the host makes room for a run (PREPARE_SAMPLING): MODEL and conditions must belong together, and the
    features kept through a call are part of what it needs."""
    carried = [list(carried_runs(entry.get("model_conds", {}))) for branch in conds.values() for entry in branch]
    require_same_controls(model, [run.control for runs in carried for run in runs])
    size = max(sum(feature_size(run.control, noise_shape) for run in runs) for runs in carried)
    return executor(model, with_room(model.model, noise_shape, size), conds, *args, **kwargs)


def carried_runs(model_conds: dict[str, Any]) -> list[ControlRun]:
    return [model_conds[keys.run].cond for keys in ControlKeys.used(model_conds)]


def require_same_controls(model: Model, carried: Sequence[MMControl]) -> None:
    """Raises ValueError unless the conditions carry all the MODEL's control networks and no other."""
    held = [patcher.model for patcher in model.get_additional_models_with_key(KEY)]
    for network in held:
        if not any(control.network is network for control in carried):
            raise ValueError(
                "The MODEL has an MM-ControlNet that no conditioning of this run is for. Connect the positive output "
                "of the same Apply MM-ControlNet node to the sampler or guider."
            )
    for control in carried:
        if not any(control.network is network for network in held):
            raise ValueError(
                f"The conditioning is for the MM-ControlNet {control.name}, which the MODEL does not have. Connect "
                "the model output of the same Apply MM-ControlNet node to the sampler or guider."
            )


def feature_size(control: MMControl, noise_shape: Sequence[int]) -> float:
    """Bytes of the image features of one item of the batch."""
    tokens = math.prod(noise_shape[-2:]) / PATCH**2
    return control.config.layers * tokens * control.config.hidden_size * control.compute_dtype.itemsize


def with_room(model: comfy.model_base.BaseModel, noise_shape: Sequence[int], size: float) -> list[int]:
    """A taller noise shape, whose memory estimate covers `size` more bytes for each item of the batch."""
    share = size / max(1.0, model.memory_required([1, *noise_shape[1:]], cond_shapes={}))
    return [*noise_shape[:-2], math.ceil(noise_shape[-2] * (1 + share)), noise_shape[-1]]

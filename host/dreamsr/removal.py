"""DreamSR's degradation removal: one forward on the LQ latent itself (arXiv 2605.15682)."""

from __future__ import annotations

import copy

import comfy.model_sampling
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..live_tiles import LIVE, LiveTiles
from ..types import Model


class SingleForward(comfy.samplers.Sampler):
    """z - t v(z, t) of the starting latent: no noise is added, and the model is called once."""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        denoised = model_wrap(latent_image, sigmas[:1].expand(latent_image.shape[0]), **extra_args)
        if callback is not None:
            callback(0, denoised, latent_image, 1)
        return denoised


def with_model(guider: comfy.samplers.CFGGuider, model: Model) -> comfy.samplers.CFGGuider:
    """The same guidance and conditions on another model."""
    changed = copy.copy(guider)
    changed.model_patcher = model
    changed.model_options = model.model_options
    return changed


def require_flow(model: Model) -> None:
    """Raise ValueError for a model that does not predict a velocity."""
    if not isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        raise ValueError(
            f"Degradation removal needs a flow-matching model such as FLUX.1-dev; {type(model.model).__name__} "
            "predicts something else than a velocity."
        )


def remove_degradation(
    guider: comfy.samplers.CFGGuider, model: Model, latent: Tensor, time: float, live: LiveTiles | None = None
) -> Tensor:
    """z_dr = z_lq - t_s v(z_lq, t_s), `[B, C, H, W]`, as host LATENTs hold it, like `latent`.

    guider: guidance and conditions; tiling and ControlNets that they and `model` carry apply. model: what to run them
    on, the guider's own model or a clone with the acceleration LoRA. time: t_s in (0, 1]. live: shows the run, in place
    of the host's previews.
    """
    require_flow(model)
    guider = with_model(guider, model)
    if live is not None:
        guider.model_options = {**guider.model_options, LIVE: live}
    callback = latent_preview.prepare_callback(model, 1) if live is None else None
    try:
        samples = guider.sample(
            torch.zeros_like(latent),
            latent,
            SingleForward(),
            torch.tensor([time, 0.0]),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=0,
        )
    finally:
        # The host ejects when it next loads another clone; what holds this network until then must not see the LoRA.
        for patcher in (model, *model.get_additional_models_with_key("multigpu")):
            patcher.eject_model()
    return samples

"""Every network of DreamSR's training, and the losses of its turns (arXiv 2605.15682, eq. 4-7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...models.dreamsr.schedule import REMOVAL_TIME, TEXTURE_START, TEXTURE_STEPS, texture_sigmas
from ..engine.draws import Draws
from ..engine.method import Batch
from ..flow import noisy
from .flux import ControlledFlux, Prompts
from .lora import lora_layers, use_lora
from .losses import (
    clean_estimate,
    generator_error,
    hinge_loss,
    samples_below,
    squared_error,
    velocity_error,
)

CONTROL, LORA, DISCRIMINATOR, RESTORE = "control", "lora", "discriminator", "restore"
"""Turns; the last is no training but a restoration, so that it too runs through the network's own forward."""


@dataclass(frozen=True)
class Objective:
    """Numbers of the losses; the defaults are the paper's where it states them."""

    image_below: float = 0.2
    """Stage 1 judges the decoded estimate too where t is below."""
    pixel: float = 1.0
    lpips: float = 2.0
    adversarial: float = 0.5
    guidance: float = 3.5
    """Distilled scale that both networks are told."""
    removal_time: float = REMOVAL_TIME
    """t_s of the single removal forward."""
    logit_normal: tuple[float, float] | None = None
    """Mean and standard deviation of logit(t); None for uniform t."""


@dataclass(frozen=True)
class Sampling:
    """Of sample grids."""

    texture_start: float = TEXTURE_START
    texture_steps: int = TEXTURE_STEPS


class DreamSRNetwork(nn.Module):
    """Called as `network(turn, batch, draws)`.

    A prepared batch holds latents `[B, C, h, w]` in the model's space: `hq`, `lq` (degraded), `condition` (what the
    control sees in its turn: lq, or a detail-erased image); `hq_image` `[B, 3, H, W]` in [-1, 1]; and the embedded
    prompts `tokens`, `pooled` (global) and `local_tokens`, `local_pooled` (the patches').

    decoder: latents in the model's space -> images about in [-1, 1], with gradients. lpips: image pairs -> `[B]`.
    """

    def __init__(
        self,
        flux: ControlledFlux,
        decoder: nn.Module,
        lpips: nn.Module | None,
        discriminator: nn.Module | None = None,
        objective: Objective | None = None,
        sampling: Sampling | None = None,
    ):
        super().__init__()
        self.flux = flux
        self.decoder = decoder
        self.lpips = lpips
        self.discriminator = discriminator
        self.objective = objective or Objective()
        self.sampling = sampling or Sampling()

    def forward(self, turn: str, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        turns: Mapping[str, Callable[[Batch, Draws], dict[str, Tensor]]] = {
            CONTROL: self.control_turn,
            LORA: self.lora_turn,
            DISCRIMINATOR: self.discriminator_turn,
            RESTORE: self.restore_turn,
        }
        return turns[turn](batch, draws)

    def velocity(self, x: Tensor, t: Tensor, batch: Batch, condition: Tensor | None, lora: bool = False) -> Tensor:
        # Set for as long as the backward pass lasts, in which blocks may be computed again.
        use_lora(self.flux.transformer, lora)
        guidance = torch.full_like(t, self.objective.guidance)
        prompts = Prompts(batch["tokens"], batch["pooled"])
        return self.flux(x, t, prompts, guidance, condition, Prompts(batch["local_tokens"], batch["local_pooled"]))

    def removal(self, batch: Batch) -> Tensor:
        """Eq. 7's estimate: z_lq - t_s v of one forward with the LoRA on the LQ latent itself."""
        lq = batch["lq"]
        t = torch.full((lq.shape[0],), self.objective.removal_time, device=lq.device)
        return clean_estimate(lq, self.velocity(lq, t, batch, lq, lora=True), t)

    def control_turn(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Stage 1: eq. 4, and for early times eq. 5-6 on the decoded estimate."""
        hq = batch["hq"]
        noise, t = draws.normal(*hq.shape), self.times(draws, hq.shape[0])
        z_t = noisy(hq, noise, t)
        velocity = self.velocity(z_t, t, batch, batch["condition"])
        error = velocity_error(velocity, hq, noise)
        parts = {"velocity": error.mean()}
        early = samples_below(t, self.objective.image_below)
        if self.objective.image_below > 0:
            if len(early):
                errors = self.image_errors(clean_estimate(z_t, velocity, t)[early], batch["hq_image"][early])
            else:  # the same terms in every micro-batch: processes take the mean of theirs together
                errors = {name: error.new_zeros(1) for name in self.image_terms}
            # Samples at later times count with 0.
            parts |= {name: value.sum() / len(t) for name, value in errors.items()}
        return summed(parts, self.weights)

    def lora_turn(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Eq. 7 for the acceleration LoRA: latent, pixels, LPIPS and the discriminator's opinion."""
        assert self.discriminator is not None
        clean = self.removal(batch)
        image = self.decoder(clean)
        parts = {"latent": squared_error(clean, batch["hq"]).mean()}
        errors = self.image_errors(clean, batch["hq_image"], image)
        parts |= {name: value.mean() for name, value in errors.items()}
        parts["adversarial"] = generator_error(self.discriminator(image)).mean()
        return summed(parts, self.weights)

    def discriminator_turn(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The discriminator's hinge loss, on what the LoRA makes after its own turn."""
        assert self.discriminator is not None
        with torch.no_grad():
            fake = self.decoder(self.removal(batch))
        return summed({"hinge": hinge_loss(self.discriminator(batch["hq_image"]), self.discriminator(fake))}, {})

    @torch.no_grad()
    def restore_turn(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """DreamSR on `lq`: removal where there is a LoRA, then the texture stage. `image`: about in [-1, 1]."""
        lq = batch["lq"]
        clean = self.removal(batch) if lora_layers(self.flux.transformer) else lq
        sigmas = texture_sigmas(self.sampling.texture_steps, self.sampling.texture_start).tolist()
        start = torch.full((lq.shape[0],), sigmas[0], device=lq.device)
        x = noisy(clean, draws.normal(*lq.shape), start)
        for sigma, following in pairwise(sigmas):
            x = x + (following - sigma) * self.velocity(x, torch.full_like(start, sigma), batch, clean)
        return {"image": self.decoder(x)}

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms that do not count once."""
        objective = self.objective
        return {"pixel": objective.pixel, "lpips": objective.lpips, "adversarial": objective.adversarial}

    def times(self, draws: Draws, count: int) -> Tensor:
        if self.objective.logit_normal is None:
            return draws.uniform(count)
        mean, std = self.objective.logit_normal
        return torch.sigmoid(mean + std * draws.normal(count))

    @property
    def image_terms(self) -> tuple[str, ...]:
        """Names of what `image_errors` gives."""
        return ("pixel",) if self.lpips is None else ("pixel", "lpips")

    def image_errors(self, clean: Tensor, hq_image: Tensor, image: Tensor | None = None) -> dict[str, Tensor]:
        """Eq. 5-6 of decoded latents, each `[B]` and not yet weighted."""
        image = self.decoder(clean) if image is None else image
        errors = {"pixel": squared_error(image, hq_image)}
        if self.lpips is not None:
            with torch.autocast(image.device.type, enabled=False):
                errors["lpips"] = self.lpips(image.float(), hq_image.float())
        return errors


def summed(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The loss, and its terms as the log takes them."""
    loss = torch.stack([weights.get(name, 1.0) * value for name, value in parts.items()]).sum()
    return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

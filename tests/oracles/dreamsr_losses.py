"""DreamSR's training losses (arXiv 2605.15682, eq. 4-7) as straight lines in float64, sample by sample.

FLUX and its control come from `straight_line_flux`; the decoder is given as a function. Nothing of the pack's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
ENDS = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}
"""VGG-16's layer that a stage of LPIPS ends with -> the stage."""
POOLS = (4, 9, 16, 23)


def vgg_stages(vgg: Weights, image: Tensor) -> list[Tensor]:
    """relu1_2 to relu5_3 of one image `[3, H, W]`."""
    x, stages = image[None], []
    for layer in range(30):
        if layer in POOLS:
            x = F.max_pool2d(x, 2, 2)
        elif f"features.{layer}.weight" in vgg:
            x = F.conv2d(x, vgg[f"features.{layer}.weight"].double(), vgg[f"features.{layer}.bias"].double(), padding=1)
        else:
            x = x * (x > 0)
        if layer in ENDS:
            stages.append(x[0])
    return stages


def lpips(vgg: Weights, head: Weights, image: Tensor, reference: Tensor) -> Tensor:
    """LPIPS 0.1 of one pair in [-1, 1], `[3, H, W]` in float64."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    total = torch.zeros((), dtype=torch.float64)
    pairs = zip(vgg_stages(vgg, (image - shift) / scale), vgg_stages(vgg, (reference - shift) / scale), strict=True)
    for stage, (a, b) in enumerate(pairs):
        weight = head[f"lin{stage}.model.1.weight"].double().reshape(-1, 1, 1)
        a, b = (x / (torch.sqrt((x * x).sum(0) + 1e-40) + 1e-10) for x in (a, b))
        total = total + (weight * (a - b) ** 2).sum(0).mean()
    return total


def stage_one(
    velocity: Callable[[Tensor, float, int], Tensor],
    decode: Callable[[Tensor], Tensor],
    perceptual: Callable[[Tensor, Tensor], Tensor],
    hq: Tensor,
    hq_image: Tensor,
    noise: Tensor,
    times: list[float],
) -> dict[str, Tensor]:
    """Eq. 4-6. velocity: (z_t `[1, C, h, w]`, t, sample number) -> v. All in float64."""
    terms = {name: torch.zeros((), dtype=torch.float64) for name in ("velocity", "pixel", "lpips")}
    for index, t in enumerate(times):
        z_t = (1 - t) * hq[index] + t * noise[index]
        v = velocity(z_t[None], t, index)[0]
        terms["velocity"] = terms["velocity"] + ((v - (noise[index] - hq[index])) ** 2).mean() / len(times)
        if t < 0.2:
            image = decode((z_t - t * v)[None])[0]
            terms["pixel"] = terms["pixel"] + ((image - hq_image[index]) ** 2).mean() / len(times)
            terms["lpips"] = terms["lpips"] + perceptual(image, hq_image[index]) / len(times)
    return terms


def stage_one_loss(terms: Mapping[str, Tensor]) -> Tensor:
    return terms["velocity"] + terms["pixel"] + 2 * terms["lpips"]


def lora_terms(
    velocity: Callable[[Tensor, float, int], Tensor],
    decode: Callable[[Tensor], Tensor],
    perceptual: Callable[[Tensor, Tensor], Tensor],
    judge: Callable[[Tensor], Tensor],
    lq: Tensor,
    hq: Tensor,
    hq_image: Tensor,
    t_s: float,
) -> dict[str, Tensor]:
    """Eq. 7."""
    terms = {name: torch.zeros((), dtype=torch.float64) for name in ("latent", "pixel", "lpips", "adversarial")}
    for index in range(len(lq)):
        clean = lq[index] - t_s * velocity(lq[index][None], t_s, index)[0]
        image = decode(clean[None])[0]
        terms["latent"] = terms["latent"] + ((clean - hq[index]) ** 2).mean() / len(lq)
        terms["pixel"] = terms["pixel"] + ((image - hq_image[index]) ** 2).mean() / len(lq)
        terms["lpips"] = terms["lpips"] + perceptual(image, hq_image[index]) / len(lq)
        terms["adversarial"] = terms["adversarial"] - judge(image[None]).mean() / len(lq)
    return terms


def lora_loss(terms: Mapping[str, Tensor]) -> Tensor:
    return terms["latent"] + terms["pixel"] + 2 * terms["lpips"] + 0.5 * terms["adversarial"]


def discriminator(weights: Weights, image: Tensor) -> Tensor:
    """Five 4 x 4 convolutions, three of stride 2; normalised in 8 groups between the first and the last."""
    x = image
    for index, (layer, stride) in enumerate(((0, 2), (2, 2), (5, 2), (8, 1), (11, 1))):
        weight, bias = weights[f"layers.{layer}.weight"].double(), weights[f"layers.{layer}.bias"].double()
        x = F.conv2d(x, weight, bias, stride=stride, padding=1)
        if 0 < index < 4:
            groups = x.reshape(len(x), 8, -1)
            mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, unbiased=False)
            normal = ((groups - mean) / torch.sqrt(variance + 1e-5)).reshape(x.shape)
            scale, shift = weights[f"layers.{layer + 1}.weight"].double(), weights[f"layers.{layer + 1}.bias"].double()
            x = normal * scale[:, None, None] + shift[:, None, None]
        if index < 4:
            x = torch.where(x > 0, x, 0.2 * x)
    return x


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    return (
        torch.maximum(1 - real, torch.zeros_like(real)).mean() + torch.maximum(1 + fake, torch.zeros_like(fake)).mean()
    )

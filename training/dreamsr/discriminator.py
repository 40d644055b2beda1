"""The discriminator of the acceleration LoRA's adversarial term (eq. 7). The paper does not describe one: our choice.

A patch discriminator as in arXiv 1611.07004: strided convolutions that judge overlapping patches of 70 pixels. Group
normalisation instead of batch or spectral normalisation: no state but parameters, and samples do not depend on others.
"""

from __future__ import annotations

from torch import Tensor, nn

GROUPS = 8


def stage(before: int, after: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 4, stride, padding=1)
    return [convolution, nn.GroupNorm(GROUPS, after), nn.LeakyReLU(0.2)]


class PatchDiscriminator(nn.Module):
    """Images `[B, 3, H, W]` in [-1, 1] -> scores `[B, 1, h, w]`, high for what looks real; sides at least 32."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            *stage(width, 2 * width, 2),
            *stage(2 * width, 4 * width, 2),
            *stage(4 * width, 8 * width, 1),
            nn.Conv2d(8 * width, 1, 4, 1, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)

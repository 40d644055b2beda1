"""Settings of the degradations that training draws from. Sizes are pixels, noise is in 8-bit levels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ...models.degradation.kernels import KERNEL_SIDE
from ..engine.config import Chance, Settings


def rising(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if low > high:
        raise ValueError(f"the range begins at {low} and ends below, at {high}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(rising)]
"""What a number is drawn from, uniformly: lowest and highest."""

PositiveRange = Annotated[tuple[Annotated[float, Field(gt=0)], float], AfterValidator(rising)]
Strengths = Annotated[tuple[Annotated[float, Field(ge=0)], float], AfterValidator(rising)]
Qualities = Annotated[
    tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]], AfterValidator(rising)
]

Scales = Annotated[tuple[Annotated[float, Field(ge=1)], ...], Field(min_length=1)]
Weights = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]

Weight = Annotated[float, Field(gt=0)]

Enlarging = Literal["random", "bicubic"]
"""How the small image comes back to its size: by a random one of area, bilinear and bicubic (VOSR in training), or by
Pillow's bicubic, which is what the nodes do."""


class RoundSettings(Settings):
    """One round of the real-world degradation."""

    blur_chance: Chance = 1.0
    sigma: PositiveRange = (0.2, 3.0)
    """Standard deviations of the blur, for each axis of the anisotropic kinds."""
    sinc_chance: Chance = 0.1
    """Of an ideal low-pass filter (ringing) in place of a blur."""
    kernel_weights: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Gaussian, generalised and plateau kernels, each isotropic and anisotropic."""
    beta_generalized: PositiveRange = (0.5, 4.0)
    beta_plateau: PositiveRange = (1.0, 2.0)
    kernel_sizes: Annotated[tuple[int, ...], Field(min_length=1)] = (7, 9, 11, 13, 15, 17, 19, 21)
    """Odd sides up to 21, all alike."""
    resize_weights: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Enlarging, shrinking, keeping the size."""
    enlarge: PositiveRange = (1.0, 1.5)
    """Factors."""
    shrink: PositiveRange = (0.15, 1.0)
    """Factors."""
    gaussian_chance: Chance = 0.5
    """Of Gaussian noise; otherwise it is shot noise."""
    gaussian: Strengths = (1, 30)
    """Standard deviations."""
    poisson: Strengths = (0.05, 3.0)
    """Factors of the shot noise."""
    grey_chance: Chance = 0.4
    """Of noise that is equal in all channels."""
    quality: Qualities = (30, 95)

    @model_validator(mode="after")
    def odd_kernels(self) -> RoundSettings:
        wrong = [size for size in self.kernel_sizes if not (size % 2 and 1 <= size <= KERNEL_SIDE)]
        if wrong:
            raise ValueError(f"kernel_sizes holds {wrong[0]}; sides are odd and at most {KERNEL_SIDE}")
        return self


class SecondRoundSettings(RoundSettings):
    blur_chance: Chance = 0.8
    sigma: PositiveRange = (0.2, 1.5)
    resize_weights: tuple[float, float, float] = (0.3, 0.4, 0.3)
    enlarge: PositiveRange = (1.0, 1.2)
    shrink: PositiveRange = (0.3, 1.0)
    gaussian: Strengths = (1, 25)
    poisson: Strengths = (0.05, 2.5)


class ScaledSettings(Settings):
    """What every kind of degradation has."""

    weight: Weight = 1.0
    """A kind's chance, for every photo, is its weight over the sum of all."""
    scales: Scales
    """How many times smaller the degraded image is: one of these."""
    scale_weights: Weights
    """One for each of the scales; a scale's chance is its weight over the sum of all."""

    @model_validator(mode="after")
    def weight_for_each(self) -> ScaledSettings:
        if len(self.scales) != len(self.scale_weights):
            raise ValueError(f"there are {len(self.scales)} scales and {len(self.scale_weights)} scale_weights")
        return self


class RealWorldSettings(ScaledSettings):
    """The second-order model of Real-ESRGAN (arXiv 2107.10833), with VOSR's numbers (arXiv 2604.03225) as defaults."""

    kind: Literal["real_world"] = "real_world"
    scales: Scales = (4,)
    scale_weights: Weights = (1,)
    first: RoundSettings = RoundSettings()
    second: SecondRoundSettings | None = SecondRoundSettings()
    """null: one round only."""
    final_sinc_chance: Chance = 0.8
    jpeg_last_chance: Chance = 0.5
    """Of the last compression coming after the last resize and filter."""
    shared: bool = True
    """One draw of kernels, resizes and order for the photos of a micro-batch, as VOSR has it; false: one for each."""
    upscale: Enlarging = "random"


class SimpleSettings(ScaledSettings):
    """Blur, one antialiased bicubic reduction, Gaussian noise and JPEG, drawn for every photo."""

    kind: Literal["simple"] = "simple"
    scales: Scales = (1, 2, 3, 4)
    scale_weights: Weights = (0.1, 0.45, 0.1, 0.35)
    blur_chance: Chance = 0.25
    blur: Strengths = (0.3, 1.2)
    """Standard deviations in pixels of the clean photo."""
    noise: Strengths = (0.0, 22.0)
    """Standard deviations."""
    clean_chance: Chance = 0.05
    """Of neither noise nor JPEG."""
    quality: Qualities = (45, 95)
    upscale: Enlarging = "bicubic"


class CameraSettings(ScaledSettings):
    """What a shorter focal length makes of a scene: mostly lens blur, drawn for every photo."""

    kind: Literal["camera"] = "camera"
    scales: Scales = (4,)
    scale_weights: Weights = (1,)
    sigma: PositiveRange = (0.2, 0.8)
    """Standard deviations of the blur along its two axes, in pixels of the small picture."""
    round_chance: Chance = 0.5
    """Of a blur that is alike along both axes."""
    noise: Strengths = (0.0, 3.0)
    """Standard deviations."""
    jpeg_chance: Chance = 0.5
    quality: Qualities = (85, 100)
    upscale: Enlarging = "bicubic"


DegradationSettings = Annotated[RealWorldSettings | SimpleSettings | CameraSettings, Field(discriminator="kind")]

"""Settings of the training data: where photos come from, how they are cut, changed and degraded."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from ..engine.config import Chance, Count, Settings, UserPath
from .degradation_config import DegradationSettings, PositiveRange, RealWorldSettings, Weight


class ProceduralSettings(Settings):
    """Images made by rules: shapes, text, lines, textures."""

    count: PositiveInt = 1000
    """Different images."""
    side: Annotated[int, Field(ge=96)] = 512
    """Of an image, pixels."""


class SourceSettings(Settings):
    """One place that photos come from: exactly one of the five."""

    folder: UserPath | None = None
    """Photos in a folder and the folders inside it, with prompts in `photo.txt` beside `photo.jpg`."""
    tars: str | None = None
    """WebDataset shards: a .tar file, a folder of them, or a pattern such as `shards/{000..099}.tar`."""
    parquet: UserPath | None = None
    """A table with the columns `image_path` (relative to the table's folder, or absolute) and `prompt`."""
    builtin: bool = False
    """The photos that scikit-image brings, less those kept for measuring."""
    procedural: ProceduralSettings | None = None
    weight: Weight = 1.0
    """Its share of the samples is its weight over the sum of all."""

    @model_validator(mode="after")
    def one_place(self) -> SourceSettings:
        given = [name for name in ("folder", "tars", "parquet", "builtin", "procedural") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"a source is one of folder, tars, parquet, builtin and procedural; here are {' and '.join(given)}"
                if given
                else "a source needs one of folder, tars, parquet, builtin and procedural"
            )
        return self


class ResizeSettings(Settings):
    """Shrinking of a whole photo before the crop is taken. Photos are never enlarged by it."""

    chance: Chance = 0.0
    short_side: PositiveInt | None = None
    """To this shorter side (DreamSR's receptive-field enhancement: 1024, with a chance of 0.2)."""
    factor: PositiveRange | None = None
    """By a factor whose logarithm is uniform in this range."""

    @model_validator(mode="after")
    def one_way(self) -> ResizeSettings:
        if self.short_side is not None and self.factor is not None:
            raise ValueError("give short_side or factor, not both")
        if self.chance and self.short_side is None and self.factor is None:
            raise ValueError("a chance of resizing needs short_side or factor")
        if self.factor is not None and self.factor[1] > 1:
            raise ValueError(f"a factor of {self.factor[1]} enlarges, which blurs what is learned; use at most 1")
        return self


class AugmentSettings(Settings):
    """Changes of a crop. No paper of the four has any."""

    flip: bool = False
    """Mirror left to right, half of the time."""
    rotate: bool = False
    """By a random multiple of 90 degrees."""
    channels: bool = False
    """Exchange colour channels, 30 % of the time."""
    recolour: bool = False
    """Change contrast and brightness, a little differently for each channel, 60 % of the time."""


class DataSettings(Settings):
    """The training data of a run."""

    sources: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    crop: PositiveInt = 512
    """Side of the square that is cut from a photo, pixels."""
    enlarge: bool = False
    """Enlarge smaller photos (bicubic) to the crop, as VOSR does; false: skip and count them."""
    fixed_crops: Count = 0
    """How many different crops a photo has; 0: a new random one every time. With a number, what frozen networks make
    of a crop can be kept on the disk."""
    resize: ResizeSettings = ResizeSettings()
    augment: AugmentSettings = AugmentSettings()
    degradation: Annotated[tuple[DegradationSettings, ...], Field(min_length=1)] = (RealWorldSettings(),)
    """What photos are degraded by: one or several, each with its weight."""
    prompts: str = ".txt"
    """Ending of the file beside a photo, or of the member in a tar, that holds its prompt."""
    crop_prompts: str = ".crops.json"
    """Ending of the file with prompts for crops, for methods that read them."""
    memory: Count = 256
    """Decoded photos that each reading process keeps, MB."""

    @model_validator(mode="after")
    def large_enough(self) -> DataSettings:
        if self.resize.short_side is not None and self.resize.short_side < self.crop:
            raise ValueError(f"resize.short_side is {self.resize.short_side}, smaller than the crop of {self.crop}")
        return self

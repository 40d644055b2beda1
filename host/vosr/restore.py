"""The whole VOSR method from image to image, from the same pieces as the separate nodes."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from ...models.color import Method, align_colors
from ...models.image import upscale
from ...models.tiles.grid import Box, TileGrid, Wrap, wrapped_axes
from ...models.tiles.layout import TileLayout
from ...models.vosr.sampling import MULTI_STEP, RestorationGuidance, euler_times
from ..families import model_in_words
from ..images import Results, checked_image, with_alpha_of
from ..live_tiles import LIVE, LiveTiles, live_tiles, minutes, numbered, tell
from ..memory import give_back_freed
from ..progress import NodeBar, new_bar, show_on_node
from ..tile_repair import Pictures, TileRepair, repair_tiles, require_no_repair, scale_of, whole, with_nan, without_nan
from ..types import VAE, ClipVision, Model
from ..vae_wrap import decode_around
from .conditioning import PATCH_SIZE, EncodeOptions, SquareTiles, VOSRConditioning, build_conditioning, reads_once
from .guider import RestorationGuider
from .loader import TILING
from .model import VOSRInfo, VOSRModel

log = logging.getLogger(__name__)

NODE = "Restoration-CFG Sampler"

MIN_OVERLAP = 16
"""Pixels: an eighth of a small tile is too narrow to blend in. Never more than a quarter of the tile."""


ENCODING_SHARE, SAMPLING_SHARE, DECODING_SHARE = 1.5, 1.0, 2.0
"""Of the bar, next to one another; sampling's for each step."""

PIXELS_SHARE = 0.05
"""Of enlarging the picture and of aligning its colours, next to them."""

PIXEL_SHARE = 0.02
"""Of them, for a VAE without a network."""

REPAIR_SHARE = 0.5
"""Of the bar, next to the restoration."""

MOST_FAITHFUL = 2.0
"""Restoration scale: the authors' command line default, and the largest they name."""


@dataclass(frozen=True)
class VOSRRestoreOptions:
    """How images are restored. width, height: of the result in pixels."""

    width: int
    height: int
    seed: int = 0
    """Item i of a batch uses seed + i."""
    steps: int = 0
    """Euler steps, 0 for the model's own: 25, or 1 for a one-step model."""
    guidance: RestorationGuidance = field(default_factory=RestorationGuidance)
    """Unused by one-step students, whose guidance is distilled in."""
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    """Its seed is set from the above, its tiles from the below."""
    tiles: SquareTiles | TileLayout | None = None
    """None for tiles of the size the model was trained at with an eighth of overlap, or MIN_OVERLAP."""
    color: Method = "adain"
    repair: TileRepair | None = None
    """What happens to bad tiles; None to look for none."""
    preview: bool = True
    """Show the tiles as they are done."""

    def __post_init__(self):
        require_no_repair(self.repair is not None, self.wrap, NODE)

    @property
    def wrap(self) -> Wrap:
        """Over which edges the picture goes on at its other side."""
        return self.tiles.grid.wrap if isinstance(self.tiles, TileLayout) else self.encode.wrap


def vosr_info(model: Model) -> VOSRInfo:
    """What is known of a VOSR MODEL. Raises ValueError for another kind of model."""
    if not isinstance(model.model, VOSRModel):
        raise ValueError(
            f"This node needs a VOSR model, and {model_in_words(model)} is connected to model. Connect Load VOSR Model."
        )
    return model.model.info


def check_parts(info: VOSRInfo, vae: VAE, vision: object | None) -> None:
    """Raises ValueError when the VAE or the vision encoder is not of the model's kind."""
    expected, found = info.config.latent_channels, vae.latent_channels
    if expected != found:
        raise ValueError(
            f"{info.name} works in latents of {expected} channels, this VAE makes {found}. Use the SD 2.1 VAE with the "
            "0.5B models, the Qwen-Image VAE with the 1.4B models, pixel unshuffle with VOSR nano."
        )
    if info.config.context_width and vision is None:
        encoder = "DINOv2 ViT-B/14" if info.config.context_width == 768 else "DINOv2 ViT-L/14"
        raise ValueError(
            f"{info.name} is conditioned on vision features {info.config.context_width} wide: connect Load VOSR Vision "
            f"Encoder with {encoder}."
        )


def training_tiles(info: VOSRInfo, vae: VAE) -> SquareTiles:
    side = info.config.train_latent_size * vae.spacial_compression_encode()
    return SquareTiles(side, max(side // 8, min(MIN_OVERLAP, side // 4)))


def own_steps(info: VOSRInfo, steps: int) -> int:
    if steps:
        return steps
    return 1 if info.one_step else MULTI_STEP


def sample(
    model: Model, conditioning: VOSRConditioning, options: VOSRRestoreOptions, live: LiveTiles | None = None
) -> Tensor:
    """Restored latent `[1, C, h, w]`, as the VAE decodes it. live: shows the run, in place of the host's previews."""
    info = vosr_info(model)
    steps = own_steps(info, options.steps)
    info.check_run(steps, 1.0 if info.one_step else options.guidance.scale)
    guidance = options.guidance
    if info.one_step:
        guidance = RestorationGuidance(scale=1.0)
        log.info("RealISR: %s is a one-step model: guidance is built in, restoration_scale is unused", info.name)
    guider = RestorationGuider(model, conditioning.full, conditioning.weak, guidance)
    latent = conditioning.latent["samples"]
    if live is not None:
        guider.model_options = {**guider.model_options, LIVE: live}
    return guider.sample(
        comfy.sample.prepare_noise(latent, options.seed),
        latent,
        comfy.samplers.ksampler("euler"),
        euler_times(steps),
        callback=latent_preview.prepare_callback(model, steps) if live is None else None,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=options.seed,
    ).to(comfy.model_management.intermediate_device())


def restore_item(
    model: Model,
    vae: VAE,
    vision: ClipVision | None,
    image: Tensor,
    options: VOSRRestoreOptions,
    live: LiveTiles | None = None,
) -> Tensor:
    """One image `[1, h, w, 3 or 4]` -> `[1, height, width, 3 or 4]`; alpha is resized by itself and rejoined."""
    bar = NodeBar(PIXELS_SHARE + 1 + (0 if options.repair is None else REPAIR_SHARE))
    with bar.stage(PIXELS_SHARE):
        upscaled = upscale(image, options.width, options.height, wrapped_axes(options.wrap), new_bar())
    with bar.stage():
        if live is not None:
            live.start_from(upscaled, vae.spacial_compression_encode())
        restored = restore_enlarged(model, vae, vision, upscaled[..., :3], options, live=live)
    if options.repair is not None:
        pictures = Pictures(restored, upscaled[..., :3], scale_of(image, options.width, options.height))
        with bar.stage(REPAIR_SHARE):
            restored = repaired(model, vae, vision, pictures, options, options.repair)
    return with_alpha_of(upscaled, restored, upscaled is not image)


def restore_enlarged(
    model: Model,
    vae: VAE,
    vision: ClipVision | None,
    upscaled: Tensor,
    options: VOSRRestoreOptions,
    redo: bool = False,
    live: LiveTiles | None = None,
) -> Tensor:
    """One image `[1, H, W, 3]` at the size of the result -> the same restored. redo: of a bad tile."""
    height, width = upscaled.shape[1:3]
    info = vosr_info(model)
    steps = SAMPLING_SHARE * own_steps(info, options.steps)
    part = 1.0 if any(True for _ in vae.first_stage_model.parameters()) else PIXEL_SHARE
    bar = NodeBar((ENCODING_SHARE + DECODING_SHARE) * part + steps + PIXELS_SHARE)
    with bar.stage(ENCODING_SHARE * part):
        tell(live, "reading the picture")
        once = reads_once(model, own_steps(info, options.steps))
        conditioning = build_conditioning(upscaled, vae, vision, options.encode, once)
    with bar.stage(steps):
        latent = sample(model, conditioning, options, live)
    holes = None
    if options.repair is not None:
        latent, holes = without_nan(latent, conditioning.full[0][1]["concat_latent_image"], redo)
    # Features alone may be as large as the picture.
    del conditioning
    give_back_freed()
    with bar.stage(DECODING_SHARE * part):
        tell(live, "decoding the picture")
        decoded = decode_around(vae, latent, options.encode.vae_tile, info.name, options.wrap)
    restored = decoded[:, :height, :width, :3]
    around, like = wrapped_axes(options.wrap), upscaled.to(restored)
    with bar.stage(PIXELS_SHARE):
        aligned = align_colors(restored, like, options.color, in_place=True, around=around, told=new_bar())
    return with_nan(aligned, holes, vae.spacial_compression_decode())


def repaired(
    model: Model,
    vae: VAE,
    vision: ClipVision | None,
    pictures: Pictures,
    options: VOSRRestoreOptions,
    repair: TileRepair,
) -> Tensor:
    """A restored image with its bad tiles restored again, each with its surroundings as an image of its own."""
    height, width = pictures.lq.shape[1:3]
    downscale = vae.spacial_compression_encode()
    cells = -(-height // (downscale * PATCH_SIZE)) * PATCH_SIZE, -(-width // (downscale * PATCH_SIZE)) * PATCH_SIZE
    latent_grid = options.encode.grid(*cells, downscale)
    grid = whole(height, width) if latent_grid is None else latent_grid.scaled(downscale)

    def again(window: Box, lq: Tensor, round_number: int) -> Tensor:
        seed = (options.seed + round_number) % 2**64
        encode = replace(options.encode, seed=seed, tiles=window_tiles(latent_grid, downscale))
        guidance = options.guidance
        if repair.less_creative:
            guidance = replace(guidance, scale=closer(guidance.scale, round_number))
        changed = replace(options, seed=seed, encode=encode, guidance=guidance)
        return restore_enlarged(model, vae, vision, lq, changed, redo=True)

    return repair_tiles(pictures, grid, TILING.weights, repair, again, NODE)


def window_tiles(grid: TileGrid | None, downscale: int) -> SquareTiles:
    """Tiles for a part of the image, of the size it had."""
    if grid is None:
        return SquareTiles(0, 0)
    return SquareTiles(max(grid.tile_height, grid.tile_width) * downscale, min(grid.overlaps) * downscale)


def closer(scale: float, round_number: int) -> float:
    """A restoration scale nearer to the input: half a unit a round, up to MOST_FAITHFUL."""
    return max(scale, min(scale + 0.5 * round_number, MOST_FAITHFUL))


def restore(model: Model, vae: VAE, vision: ClipVision | None, images: Tensor, options: VOSRRestoreOptions) -> Tensor:
    """Restore images `[B, h, w, 3 or 4]` in 0..1, one after another.

    Item i is what it would be alone with seed + i. Raises ValueError for images, parts or options that do not fit;
    an interrupt ends within one call of the model.
    """
    info = vosr_info(model)
    images = checked_image(images)
    check_parts(info, vae, vision)
    tiles = options.tiles or training_tiles(info, vae)
    results, bar, started = Results(len(images)), NodeBar(len(images)), time.monotonic()
    for index, image in enumerate(images.split(1)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        seed = (options.seed + index) % 2**64
        encode = replace(options.encode, seed=seed, tiles=tiles, node=NODE)
        live = live_tiles(model, numbered(index, len(images)), len(images) - index - 1) if options.preview else None
        with bar.stage():
            results.add(restore_item(model, vae, vision, image, replace(options, seed=seed, encode=encode), live))
    if options.preview and options.repair is None:
        show_on_node(f"done in {minutes(time.monotonic() - started)}")
    return results.images

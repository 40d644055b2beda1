"""What Restoration-CFG Sampler will take, from the same tiles, steps and formulas as its run."""

from __future__ import annotations

from dataclasses import replace

from ...models.vosr.sampling import guidance_branches
from ..estimate import MemoryOf, RunEstimate, Stage, sampling_stage, vae_stages
from ..types import VAE, ClipVision, Model
from .conditioning import PATCH_SIZE
from .model import VOSRInfo
from .restore import NODE, VOSRRestoreOptions, check_parts, own_steps, training_tiles, vosr_info
from .vision import IMAGES_PER_FORWARD, VisionSize


def estimate_run(
    info: VOSRInfo,
    memory_of: MemoryOf,
    weights: int,
    vae: VAE,
    vision: VisionSize | None,
    options: VOSRRestoreOptions,
) -> RunEstimate:
    """Of one image. info, memory_of, weights: of the MODEL, its memory_required and size in bytes.

    Raises ValueError for options that the run would refuse.
    """
    steps = own_steps(info, options.steps)
    info.check_run(steps, 1.0 if info.one_step else options.guidance.scale)
    downscale = vae.spacial_compression_encode()
    height, width = (-(-side // (downscale * PATCH_SIZE)) * PATCH_SIZE for side in (options.height, options.width))
    encode = replace(options.encode, tiles=options.tiles or training_tiles(info, vae), node=NODE)
    grid = encode.grid(height, width, downscale)
    tiles = 1 if grid is None else len(grid)
    seen = (height, width) if grid is None else (grid.tile_height, grid.tile_width)
    branches = 1 if info.one_step else sum(guidance_branches(options.guidance.scale))
    stages = [
        *vae_stages(vae, width * downscale, height * downscale, options.encode.vae_tile),
        sampling_stage(memory_of, weights, (1, info.config.latent_channels, *seen)),
    ]
    if vision is not None and info.config.context_width:
        stages.append(Stage("vision features", vision.weights, vision.memory(min(tiles, IMAGES_PER_FORWARD))))
    return RunEstimate(NODE, options.width, options.height, tiles, tiles * steps * branches, stages)


def estimate(model: Model, vae: VAE, vision: ClipVision | None, options: VOSRRestoreOptions) -> RunEstimate:
    """Of one image, for the node's own inputs. Raises ValueError for parts or options that do not fit."""
    info = vosr_info(model)
    check_parts(info, vae, vision)
    seen = None if vision is None else VisionSize.of(vision)
    return estimate_run(info, model.model.memory_required, int(model.model_size()), vae, seen, options)

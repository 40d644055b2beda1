"""What Restoration-CFG Sampler will take, from the same tiles, steps and formulas as its run."""

from __future__ import annotations

from dataclasses import replace

from ...models.vosr.sampling import guidance_branches
from ..cost import Cost, is_described
from ..estimate import RunEstimate, Stage, sampling_stage, vae_stages
from ..forwards import VISION_TOKENS, for_cards, free_beside, vosr_context, vosr_forward
from ..tiling.sampling import tiles_together
from ..types import VAE, ClipVision, Model
from .conditioning import PATCH_SIZE, is_streamed, reads_once
from .loader import TILING
from .restore import NODE, VOSRRestoreOptions, check_parts, own_steps, training_tiles, vosr_info
from .vision import IMAGES_PER_FORWARD, VisionSize

CANVASES = 7
"""Latents of the whole image, in float32, that sampling holds: noise, start, state, condition, sums of tiles."""

CANVASES_OF_BRANCH = 2


def estimate_run(model: Model, vae: VAE, vision: VisionSize | None, options: VOSRRestoreOptions) -> RunEstimate:
    """Of one image. model, vae: as loaded, or as their files describe them, which alone are counted in full.

    Raises ValueError for options that the run would refuse.
    """
    info = vosr_info(model)
    steps = own_steps(info, options.steps)
    info.check_run(steps, 1.0 if info.one_step else options.guidance.scale)
    downscale = vae.spacial_compression_encode()
    height, width = (-(-side // (downscale * PATCH_SIZE)) * PATCH_SIZE for side in (options.height, options.width))
    encode = replace(options.encode, tiles=options.tiles or training_tiles(info, vae), node=NODE)
    grid = encode.grid(height, width, downscale)
    tiles = 1 if grid is None else len(grid)
    seen = (height, width) if grid is None else (grid.tile_height, grid.tile_width)
    branches = (True, False) if info.one_step else guidance_branches(options.guidance.scale)
    shape = (1, info.config.latent_channels, *seen)
    sampling = sampling_stage(model.model.memory_required, int(model.model_size()), shape)
    if is_described(model.model.diffusion_model):
        sampling = counted(sampling, model, tiles, shape, steps, branches, height * width)
    stages = [*vae_stages(vae, width * downscale, height * downscale, options.encode.vae_tile), sampling]
    if vision is not None and info.config.context_width:
        stages.append(vision_stage(vision, tiles))
    return RunEstimate(NODE, options.width, options.height, tiles, tiles * steps * sum(branches), stages)


def counted(
    stage: Stage,
    model: Model,
    tiles: int,
    shape: tuple[int, ...],
    steps: int,
    branches: tuple[bool, bool],
    cells: int,
) -> Stage:
    """The stage with what its forwards come to. shape: of what one tile is; cells: of the whole latent."""
    free = free_beside(stage.weights)
    together = tiles_together(TILING, tiles, model.model, shape, lambda: free)
    full, weak = (together * int(needed) for needed in branches)
    forward = vosr_forward(model, full, weak, *shape[-2:])
    kept, made = 0, Cost()
    if model.model.info.config.context_width and branches[0]:
        context, encoding = vosr_context(model, VISION_TOKENS)
        budget = int(min(stage.weights / 2, free / 4))
        held = 0 if is_streamed(tiles, reads_once(model, steps)) else min(tiles, budget // max(context.nbytes, 1))
        # Those that are not kept are made at every step, and are there for their forward.
        kept = min(tiles, held + together) * context.nbytes
        made = encoding.times(held + (tiles - held) * steps)
    latent = 4 * shape[1] * cells
    canvases = (CANVASES + CANVASES_OF_BRANCH * sum(branches) * (tiles > 1)) * latent
    cost = for_cards(forward.times(steps * tiles / together) + made, model.model.get_dtype_inference())
    return replace(stage, peak=canvases + kept + max(forward.peak, made.peak), cost=cost)


def vision_stage(vision: VisionSize, tiles: int) -> Stage:
    together = min(tiles, IMAGES_PER_FORWARD)
    stage = Stage("vision features", vision.weights, vision.memory(together))
    forward = vision.forward(together)
    return stage if forward is None else replace(stage, peak=forward.peak, cost=forward.times(tiles / together))


def estimate(model: Model, vae: VAE, vision: ClipVision | None, options: VOSRRestoreOptions) -> RunEstimate:
    """Of one image, for the node's own inputs. Raises ValueError for parts or options that do not fit."""
    check_parts(vosr_info(model), vae, vision)
    return estimate_run(model, vae, None if vision is None else VisionSize.of(vision), options)

"""What DreamSR Restore will take, from the same tiles, steps and formulas as its run."""

from __future__ import annotations

from dataclasses import replace

from ...models.tiles.grid import TileGrid
from ..cost import is_described
from ..estimate import RunEstimate, Stage, sampling_stage, vae_stages
from ..forwards import flux_forward, for_cards, free_beside
from ..tiling.sampling import Tiling, tiles_together
from ..types import VAE, Model
from .control.injection import feature_size, with_room
from .control.loader import MMControl
from .removal import require_flow
from .restore import IMAGE_MULTIPLE, NODE, DreamSR

CANVASES, CANVASES_OF_ONE_TILE = 9, 6
"""Latents of the whole image, in float32, that sampling holds: noise, start, state, condition, sums of tiles."""


def estimate_run(
    model: Model,
    control: MMControl | None,
    vae: VAE | None,
    size: tuple[int, int],
    grid: TileGrid,
    steps: int,
    removal: bool,
    tiles_per_batch: int = 0,
    vae_tile: int = 0,
) -> RunEstimate:
    """Of one image. model, control: as loaded, or as their files describe them. vae: None where it is not known.

    size: (width, height) of the result. grid: of `tiles_over` that size. removal: whether a forward with the
    acceleration LoRA comes before the steps.
    """
    # As Tiling.prepare asks: for the tiles that were told to run together, for one where memory decides.
    together = min(max(tiles_per_batch, 1), len(grid))
    shape = [together, model.model.latent_format.latent_channels, grid.tile_height, grid.tile_width]
    weights = int(model.model_size())
    if control is not None:
        weights += int(control.patcher.model_size())
        shape = with_room(model.model, shape, feature_size(control, shape))
    stage = sampling_stage(model.model.memory_required, weights, shape)
    if is_described(model.model.diffusion_model):
        stage = counted(stage, model, control, grid, steps + removal, tiles_per_batch)
    stages = [stage]
    if vae is not None:
        width, height = (side + -side % IMAGE_MULTIPLE for side in size)
        stages += vae_stages(vae, width, height, vae_tile)
    return RunEstimate(NODE, *size, len(grid), len(grid) * (steps + removal), stages)


def counted(
    stage: Stage, model: Model, control: MMControl | None, grid: TileGrid, steps: int, tiles_per_batch: int
) -> Stage:
    """The stage with what its forwards come to."""
    channels, tiling = model.model.latent_format.latent_channels, Tiling(grid, per_forward=tiles_per_batch)
    tile = (1, channels, grid.tile_height, grid.tile_width)
    free = free_beside(stage.weights)
    together = tiles_together(tiling, len(grid), model.model, tile, lambda: free)
    forward = flux_forward(model, together, *tile[-2:], control)
    canvases = CANVASES if len(grid) > 1 else CANVASES_OF_ONE_TILE
    peak = forward.peak + 4 * channels * grid.height * grid.width * canvases
    cost = forward.times(steps * len(grid) / together)
    return replace(stage, peak=peak, cost=for_cards(cost, model.model.get_dtype_inference()))


def estimate(method: DreamSR, vae: VAE, size: tuple[int, int], grid: TileGrid, vae_tile: int = 0) -> RunEstimate:
    """Of one image, for the node's own inputs. Raises ValueError for a model that is no flow model."""
    require_flow(method.model)
    steps, removal = method.texture_steps, method.lora is not None
    control = method.control if method.control_options.strength else None
    return estimate_run(method.model, control, vae, size, grid, steps, removal, method.tiles_per_batch, vae_tile)

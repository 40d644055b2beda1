"""VOSR in tiles: the MODEL follows the tiles of its conditioning, wherever it is sampled."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from harness.checkpoints import dinov2, vosr_args
from harness.host import InProcessHost
from harness.tiled import node_lists
from harness.vosr import Recorder, Scene, TinyVOSR, plain_run, relative_error, run_guider

SIZE = (16, 28)


def grid_of(height: int, width: int, side: int = 16, overlap: int = 4):
    from realisr.models.tiles.grid import TileGrid

    return TileGrid(height, width, side, side, overlap, align=2)


@pytest.fixture
def scene(multi_step) -> Scene:
    """Two tiles of 16 x 16."""
    return Scene.random(multi_step.config, SIZE, grid=grid_of(*SIZE))


def ksampler(host: InProcessHost, model, scene: Scene, cfg: float = 0.5) -> torch.Tensor:
    import nodes

    (latent,) = host.run(
        nodes.KSampler,
        model=model,
        seed=scene.seed,
        steps=3,
        cfg=cfg,
        sampler_name="euler",
        scheduler="simple",
        positive=scene.full,
        negative=scene.weak,
        latent_image=scene.empty,
        denoise=1.0,
    )
    return latent["samples"]


def test_the_hosts_own_sampler_needs_no_further_node(host, multi_step, scene):
    recorder = Recorder()
    result = ksampler(host, recorder.watch(multi_step.load()), scene)
    assert {forward.size for forward in recorder.forwards} == {(16, 16)}
    assert relative_error(result, plain_run(multi_step, scene, 0.5, 3)) < 1e-5


def tile_explicitly(model, grid, weights="narrow gaussian"):
    from realisr.models.tiles.layout import TileLayout
    from realisr.nodes.tiles import TiledMultiDiffusion

    inputs = {"weights": weights, "tiles_per_batch": 1, "true_positions": False, "patch_prompt_reader": "auto"}
    return InProcessHost.run(TiledMultiDiffusion, **node_lists(model=model, tile_grid=TileLayout(grid), **inputs))[0]


def test_tiled_multidiffusion_takes_over_with_its_own_weights(multi_step, scene):
    model = multi_step.load()
    expected = run_guider(model, scene)
    recorder = Recorder()
    same = run_guider(tile_explicitly(recorder.watch(model), scene.grid), scene)
    assert recorder.batches == [2] * 2 * 4, "one tile a forward, both branches in it"
    assert relative_error(same, expected) < 1e-5
    uniform = run_guider(tile_explicitly(model, scene.grid, "uniform"), scene)
    assert relative_error(uniform, expected) > 1e-3
    assert torch.equal(run_guider(model, scene), expected), "the model itself is as it was"


def test_tiled_multidiffusion_with_other_tiles_is_refused(multi_step, scene):
    other = tile_explicitly(multi_step.load(), grid_of(*SIZE, side=12))
    with pytest.raises(ValueError, match=r"made for 2 tiles of 16x16 .*, the model for 6 tiles of 12x12"):
        run_guider(other, scene)


def test_conditioning_for_tiles_is_refused_by_a_model_that_knows_none(multi_step, scene):
    """As of a MODEL from another loader: taken for untiled, it would restore with no features at all."""
    from comfy.patcher_extension import WrappersMP

    from realisr.host.tiling.sampling import KEY

    model = multi_step.load()
    for kind in (WrappersMP.CALC_COND_BATCH, WrappersMP.PREPARE_SAMPLING, WrappersMP.SAMPLER_SAMPLE):
        model.remove_wrappers_with_key(kind, KEY)
    with pytest.raises(ValueError, match="was made for tiles"):
        run_guider(model, scene)


def test_too_little_memory_halves_the_tiles_run_together(multi_step):
    from comfy.patcher_extension import WrappersMP

    model = multi_step.load()
    scene = Scene.random(multi_step.config, (28, 40), grid=grid_of(28, 40))
    tried = []

    def short_of_memory(executor, x, *args):
        tried.append(x.shape[0])
        if x.shape[0] > 4:
            raise torch.OutOfMemoryError("no room")
        return executor(x, *args)

    short = model.clone()
    short.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "short", short_of_memory)
    assert relative_error(run_guider(short, scene, steps=2), run_guider(model, scene, steps=2)) < 1e-5
    # Two branches of 6 tiles, then of 3; from then on one by one.
    assert tried == [12, 6] + [2] * 6 * 2


@pytest.mark.parametrize("size", [(14, 24), (24, 14)])
def test_a_latent_that_is_not_square_is_tiled_in_squares(multi_step, size):
    """Also where the tile asked for would hold all of it: the network was trained on squares."""
    from realisr.host.vosr.conditioning import SquareTiles

    grid = SquareTiles(512, 4).grid(*size, 8)
    scene, recorder = Scene.random(multi_step.config, size, grid=grid), Recorder()
    result = run_guider(recorder.watch(multi_step.load()), scene)
    assert {forward.size for forward in recorder.forwards} == {(14, 14)}
    assert relative_error(result, plain_run(multi_step, scene)) < 1e-5
    assert SquareTiles(0, 0).grid(*size, 8) is None, "off stays the whole image"


# --- the model's own weak strength -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stronger(host) -> TinyVOSR:
    """Trained, as its args.json says, with weak strengths of 0.1 to 0.5."""
    tiny = TinyVOSR.create(host, "tiny_stronger", seed=6)
    args = vosr_args(tiny.config) | {"weak_cond_strength_aelq_list": [0.1, 0.5]}
    (tiny.folder / "args.json").write_text(json.dumps(args))
    return tiny


def test_weak_strength_is_the_models_own_unless_it_is_given(stronger, multi_step):
    scene = Scene.random(stronger.config)
    own = scene.wire(None, torch.zeros_like(scene.features[:, :1]))
    result = run_guider(stronger.load(), scene, weak=own)
    assert torch.equal(result, run_guider(stronger.load(), replace(scene, weak_strength=0.3)))
    assert relative_error(result, run_guider(stronger.load(), scene)) > 1e-3, "a given 0.15 stays 0.15"
    # Another model, and the same conditioning means another strength.
    assert torch.equal(run_guider(multi_step.load(), scene, weak=own), run_guider(multi_step.load(), scene))


# --- nodes -----------------------------------------------------------------------------------------------------------


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(height))


@pytest.fixture(scope="module")
def vae(host):
    from harness.autoencoders import sd21_vae
    from realisr.host.vosr.vae import load_vosr_vae

    return load_vosr_vae(host.save_model("vae", "tiles_sd21.safetensors", sd21_vae()))


@pytest.fixture(scope="module")
def vision(host):
    from realisr.host.vosr.vision import load_vision_encoder

    return load_vision_encoder(host.save_model("clip_vision", "tiles_dinov2.safetensors", dinov2()))


@pytest.fixture(scope="module")
def nano_vae(host):
    from realisr.host.vosr.vae import PIXEL_UNSHUFFLE, load_vosr_vae

    return load_vosr_vae(PIXEL_UNSHUFFLE)


def condition(vae, image, vision=None, **widgets):
    from realisr.nodes.vosr import VOSRConditioning

    defaults = {"weak_strength": 0.15, "tile_size": 0, "tile_overlap": 0, "posterior": "mean", "seed": 0}
    inputs = defaults | {"vae_tile_size": 0} | widgets
    return InProcessHost.run(VOSRConditioning, image=image, vae=vae, vision_encoder=vision, **inputs)


def layout(height: int, width: int, tile: int, overlap: int, align: int = 2):
    from realisr.models.tiles.layout import TileLayout

    return TileLayout.fitted(height, width, tile, overlap, align)


def own_features(conditioning) -> list[torch.Tensor]:
    from realisr.host.tiling.conditions import tile_options

    own = tile_options(conditioning[0][1])
    return [] if own is None else [options["cross_attn"] for options in own.options]


def test_a_tile_grid_takes_the_place_of_the_widgets(vae, vision):
    from realisr.host.tiling.conditions import tile_options

    image = picture(128, 224)
    square = condition(vae, image, vision, tile_size=128, tile_overlap=32)
    given = condition(vae, image, vision, tile_grid=layout(128, 224, 128, 32))
    assert len(own_features(square[0])) == len(own_features(given[0])) == 2
    for first, second in zip(own_features(square[0]), own_features(given[0]), strict=True):
        assert torch.equal(first, second)
    # Both branches bring the tiles: either may be sampled alone.
    for branch in (0, 1):
        grids = [tile_options(made[branch][0][1]).grid for made in (square, given)]
        assert grids[0].boxes == grids[1].boxes
    single = condition(vae, image, vision, tile_grid=layout(128, 224, 512, 32))
    assert own_features(single[0]) == [] or len(own_features(single[0])) == 2


def test_a_tile_grid_counts_in_pixels_whatever_the_latent(nano_vae):
    """Pixel unshuffle has cells of 2 pixels: tiles lie over the same pixels as they do for cells of 8."""
    from realisr.host.tiling.conditions import tile_options

    made = condition(nano_vae, picture(64, 96), tile_grid=layout(64, 96, 64, 16))
    grid = tile_options(made[0][0][1]).grid
    assert [(box.top, box.left, box.height, box.width) for box in grid.boxes] == [(0, 0, 32, 32), (0, 16, 32, 32)]


def test_a_tile_grid_of_another_image_is_refused(vae):
    with pytest.raises(ValueError, match=r"VOSR Conditioning: the tile grid is for 224x128 .*is 128x128.*multiples"):
        condition(vae, picture(128, 128), tile_grid=layout(128, 224, 128, 32))
    with pytest.raises(ValueError, match=r"is for 136x128 .*is 144x128, padded"):
        condition(vae, picture(128, 136), tile_grid=layout(128, 136, 64, 16))


def test_tiles_that_cut_patches_are_refused(vae):
    with pytest.raises(ValueError, match=r"sides and starts that are multiples of 2 .*align of Tile Grid to 2"):
        condition(vae, picture(128, 224), tile_grid=layout(128, 224, 120, 32, align=1))


def test_the_whole_method_takes_a_tile_grid(host, multi_step, vae, vision):
    from realisr.nodes.vosr import RestorationCFGSampler

    def restore(tiling, **wires):
        recorder = Recorder()
        (image,) = host.run(
            RestorationCFGSampler,
            model=recorder.watch(multi_step.load()),
            vae=vae,
            image=picture(64, 112),
            vision_encoder=vision,
            resize={"resize": "scale factor", "scale": 2.0},
            steps=2,
            restoration_scale=0.5,
            seed=3,
            color_alignment="none",
            tiling=tiling,
            weak_strength=-1.0,
            guidance_start=0.0,
            guidance_end=1.0,
            posterior="mean",
            vae_tile_size=0,
            **wires,
        )
        return image, {forward.size for forward in recorder.forwards}

    by_widget, sizes = restore({"tiling": "custom", "tile_size": 128, "tile_overlap": 32})
    by_grid, grid_sizes = restore({"tiling": "off"}, tile_grid=layout(128, 224, 128, 32))
    assert sizes == grid_sizes == {(16, 16)}
    assert torch.equal(by_widget, by_grid)
    with pytest.raises(ValueError, match="Restoration-CFG Sampler: the tile grid is for 112x64"):
        restore({"tiling": "off"}, tile_grid=layout(64, 112, 64, 16))


def test_weak_strength_of_the_widget(vae):
    from realisr.host.vosr.conditioning import STRENGTH
    from realisr.nodes.vosr import VOSRConditioning

    for value, expected in ((-1.0, None), (0.0, 0.0), (0.15, 0.15)):
        assert condition(vae, picture(16, 16), weak_strength=value)[1][0][1][STRENGTH] == expected
    assert "between 0 and 1, or -1 for the model's own, got -0.5" in VOSRConditioning.validate_inputs(
        weak_strength=-0.5
    )
    assert VOSRConditioning.validate_inputs(tile_size=512, tile_overlap=64, weak_strength=-1.0) is True

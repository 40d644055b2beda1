"""Tiled MultiDiffusion on real networks, against the same tiles run one by one through the plain model."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from harness import dreamsr, tiled, vicr
from harness.checkpoints import flux
from harness.host import InProcessHost
from harness.tiled import by_hand, evaluate, randn, text
from harness.vosr import Scene

SIZE = (12, 18)
"""Of the canvas in cells: 6 tiles of 8 x 8."""


@pytest.fixture(scope="module")
def flux_model(host: InProcessHost):
    return dreamsr.load_flux(host, "multidiffusion_flux.safetensors", flux(**tiled.FLUX))


@pytest.fixture(scope="module")
def fill_model(host: InProcessHost):
    return vicr.load_fill(host, "multidiffusion_fill", flux(fill_model=True, **tiled.FLUX))


@pytest.fixture(scope="module")
def unet(host: InProcessHost):
    return tiled.unet_model()


@pytest.fixture(scope="module")
def models(flux_model, fill_model, unet, multi_step):
    return {"flux": flux_model, "fill": fill_model, "unet": unet, "vosr": multi_step.load()}


SIGMA = {"flux": 0.7, "fill": 0.7, "vosr": 0.7, "unet": 3.0}


def layout(size=SIZE, tile=8, overlap=2, align=2):
    from realisr.models.tiles.layout import TileLayout

    return TileLayout.fitted(size[0] * 8, size[1] * 8, tile * 8, overlap * 8, align)


def tile_model(model, grid_layout=None, patch_prompts=None, positive=None, **widgets):
    """Outputs of the node: (model, positive)."""
    from realisr.nodes.tiles import TiledMultiDiffusion

    given = {"weights": "uniform", "tiles_per_batch": 4, "true_positions": False, "patch_prompt_reader": "auto"}
    wires = {} if positive is None else {"positive": positive}
    wires |= {} if patch_prompts is None else {"patch_prompts": patch_prompts}
    return InProcessHost.run(
        TiledMultiDiffusion,
        **tiled.node_lists(model=model, tile_grid=grid_layout or layout(), **given | widgets, **wires),
    )


def scene(kind: str, models, multi_step, batch: int = 2, size=SIZE):
    """(noisy latent, condition of a box or of the canvas, the negative's) for a model; conditions as on the wire."""
    channels = {"unet": 4, "vosr": 4}.get(kind, 16)
    x = randn(batch, channels, *size, seed=1)

    if kind == "vosr":
        made = Scene.random(multi_step.config, size, batch)

        def vosr(box, strength):
            latent = made.latent if box is None else box.crop(made.latent)
            features = made.features if strength == 1.0 else torch.zeros_like(made.features[:, :1])
            return [[features, {"concat_latent_image": latent, "vosr_lq_strength": strength}]]

        return x, lambda box: vosr(box, 1.0), lambda box: vosr(box, 0.15)

    image, mask = randn(batch, 16, *size, seed=2), (randn(1, 1, size[0] * 8, size[1] * 8, seed=3) > 0).float()
    references = [randn(1, 16, *size, seed=4), randn(1, 16, 4, 6, seed=5)]

    def options(box):
        crop = (lambda field, scale=1: field) if box is None else (lambda field, scale=1: box.crop(field, scale))
        own = {}
        if kind == "fill":
            own |= {"concat_latent_image": crop(image), "concat_mask": crop(mask, 8)}
        if kind == "flux":
            own |= {"reference_latents": [crop(references[0]), references[1]], "guidance": 3.0}
        return own

    return x, lambda box: text(10, **options(box)), lambda box: text(20, **options(box))


@pytest.mark.parametrize("weights", ["uniform", "gaussian", "linear"])
@pytest.mark.parametrize("kind", ["flux", "fill", "unet", "vosr"])
def test_tiles_are_what_the_model_makes_of_each_alone(models, multi_step, kind, weights):
    from realisr.models.tiles.weights import tile_weight

    x, positive, negative = scene(kind, models, multi_step)
    model, sigma = models[kind], SIGMA[kind]
    patched, _ = tile_model(model, weights=weights)
    out = evaluate(patched, x, sigma, positive(None), negative(None), cfg=2.5)
    grid = layout().grid
    expected = by_hand(
        grid,
        x,
        lambda _, box, crop: evaluate(model, crop, sigma, positive(box), negative(box), cfg=2.5),
        tile_weight(weights, 8, 8)[0, 0],
    )
    assert len(grid) == 6
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out, evaluate(model, x, sigma, positive(None), negative(None), cfg=2.5), atol=1e-2)


@pytest.mark.parametrize("kind", ["flux", "fill", "unet", "vosr"])
def test_one_tile_is_the_untiled_model_to_the_bit(models, multi_step, kind):
    """Whatever the sampler: here Euler, with guidance, a batch, and a prompt for a part of the canvas."""
    x, positive, negative = scene(kind, models, multi_step, size=(8, 10))
    wire = positive(None)
    if kind != "vosr":
        wire = wire + text(30, area=(6, 8, 2, 0), strength=0.7) + text(40, mask=torch.rand(1, 64, 80))
    patched, _ = tile_model(models[kind], layout((8, 10), tile=16), weights="gaussian")
    sigmas = torch.tensor([SIGMA[kind], SIGMA[kind] / 2, 0.0])
    both = [sample(model, x, wire, negative(None), sigmas) for model in (patched, models[kind])]
    assert torch.equal(*both)


def sample(model, noise, positive, negative, sigmas, sampler="euler", latent=None, mask=None, cfg=2.5):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    raw = torch.zeros_like(noise) if latent is None else latent
    with torch.inference_mode():
        return guider.sample(
            noise, raw, comfy.samplers.sampler_object(sampler), sigmas, denoise_mask=mask, disable_pbar=True, seed=1
        )


@pytest.mark.parametrize("kind", ["flux", "unet"])
def test_a_run_is_euler_steps_of_merged_tiles(models, multi_step, kind):
    x, positive, negative = scene(kind, models, multi_step)
    model, sigmas = models[kind], [SIGMA[kind], SIGMA[kind] / 2, 0.0]
    patched, _ = tile_model(model)
    out = sample(patched, x, positive(None), negative(None), torch.tensor(sigmas))
    state = x * sigmas[0]
    for start, end in itertools.pairwise(sigmas):
        denoised = by_hand(
            layout().grid,
            state,
            lambda _, box, crop, t=start: evaluate(model, crop, t, positive(box), negative(box), cfg=2.5),
        )
        state = denoised + (state - denoised) * end / start
    torch.testing.assert_close(out, model.model.process_latent_out(state), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("patch", [False, True])
def test_an_inpainting_unet_reads_the_crop_of_mask_and_masked_image(host, patch):
    """The mask of the latent (noise_mask) is also the model's input; patch prompts change the text alone."""
    model = tiled.unet_model(in_channels=9)
    x, latent = randn(1, 4, *SIZE, seed=1), randn(1, 4, *SIZE, seed=2)
    mask = (randn(1, 1, *SIZE, seed=3) > 0).float()
    grid = layout().grid
    prompts = [text(50 + index) if patch else text(10) for index in range(len(grid))]
    patched, positive = tile_model(model, positive=text(10), patch_prompts=prompts if patch else None)
    out = evaluate(patched, x, 3.0, positive, latent=latent, mask=mask)
    expected = by_hand(
        grid,
        x,
        lambda index, box, crop: evaluate(
            model,
            crop,
            3.0,
            prompts[index],
            latent=box.crop(latent).contiguous(),
            mask=box.crop(mask).contiguous(),
        ),
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["flux", "fill", "unet"])
def test_patch_prompts_are_read_by_the_model_where_there_is_no_control(models, multi_step, kind):
    x, positive, negative = scene(kind, models, multi_step)
    grid = layout().grid
    prompts = [text(50 + 2 * index, tokens=4 if index < 4 else 6) for index in range(len(grid))]
    patched, wire = tile_model(models[kind], positive=positive(None), patch_prompts=prompts)
    out = evaluate(patched, x, SIGMA[kind], wire, negative(None), cfg=2.0)

    def alone(index, box, crop):
        own = [[prompts[index][0][0], {**positive(box)[0][1], **prompts[index][0][1]}]]
        return evaluate(models[kind], crop, SIGMA[kind], own, negative(box), cfg=2.0)

    torch.testing.assert_close(out, by_hand(grid, x, alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["flux", "unet"])
def test_one_patch_prompt_for_one_tile_replaces_the_global_one(models, multi_step, kind):
    x, positive, _ = scene(kind, models, multi_step, size=(8, 8))
    patched, wire = tile_model(models[kind], layout((8, 8)), positive=positive(None), patch_prompts=[text(50)])
    own = [[text(50)[0][0], {**positive(None)[0][1], **text(50)[0][1]}]]
    assert torch.equal(evaluate(patched, x, 0.5, wire), evaluate(models[kind], x, 0.5, own))


def test_masked_parts_of_the_latent_stay(models, multi_step):
    x, positive, negative = scene("flux", models, multi_step)
    latent, mask = randn(2, 16, *SIZE, seed=8), torch.zeros(1, 1, *SIZE)
    mask[..., 5:] = 1.0
    patched, _ = tile_model(models["flux"])
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    out = sample(patched, x, positive(None), negative(None), sigmas, latent=latent, mask=mask)
    torch.testing.assert_close(out[..., :5], latent[..., :5], rtol=1e-5, atol=1e-5)
    assert (out[..., 5:] - latent[..., 5:]).abs().mean() > 0.1


def test_areas_fade_at_their_borders_as_the_host_has_it(models):
    """A model that works cell by cell, so that it gives the same in tiles wherever weights are the same."""

    def rule(apply_model, args):
        return args["input"] * 0.5 + args["c"]["c_crossattn"].mean(dim=(1, 2))[:, None, None, None]

    model = models["flux"].clone()
    model.set_model_unet_function_wrapper(rule)
    wire = text(1, area=(8, 9, 2, 3)) + text(2, area=(4, 18, 0, 0), strength=0.6) + text(3, strength=0.2)
    x = randn(2, 16, *SIZE, seed=1)
    torch.testing.assert_close(
        evaluate(tile_model(model)[0], x, 0.5, wire), evaluate(model, x, 0.5, wire), rtol=1e-5, atol=1e-5
    )


def test_prompts_run_only_on_tiles_their_area_meets(models):
    sizes: list[list[int]] = []
    model = tiled.calls_of(models["flux"], sizes)
    patched, _ = tile_model(model, tiles_per_batch=1)
    evaluate(patched, randn(1, 16, *SIZE, seed=1), 0.5, text(1) + text(2, area=(8, 4, 0, 0)))
    # Of six tiles the two on the left see the area: its text is as long as the other's, so both share a forward.
    assert sorted(size[0] for size in sizes) == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("size", [(13, 17), (11, 8)])
@pytest.mark.parametrize("kind", ["flux", "unet"])
def test_odd_sizes(models, multi_step, kind, size):
    x, positive, negative = scene(kind, models, multi_step, size=size)
    patched, _ = tile_model(models[kind], layout(size))
    out = evaluate(patched, x, SIGMA[kind], positive(None), negative(None), cfg=2.0)
    expected = by_hand(
        layout(size).grid,
        x,
        lambda _, box, crop: evaluate(models[kind], crop, SIGMA[kind], positive(box), negative(box), cfg=2.0),
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_true_positions_are_those_of_the_whole_canvas(flux_model):
    """Against the network called with the crops of the image ids that the host makes for the canvas."""
    network = flux_model.model.diffusion_model
    x, wire, grid = randn(2, 16, *SIZE, seed=1), text(10), layout().grid
    patched, _ = tile_model(flux_model, true_positions=True, tiles_per_batch=0)
    out = evaluate(patched, x, 0.7, wire)
    _, ids = network.process_img(x)
    ids = ids.unflatten(1, (SIZE[0] // 2, SIZE[1] // 2))

    def alone(_, box, crop):
        img, _ = network.process_img(crop)
        rows, columns = slice(box.top // 2, box.top // 2 + 4), slice(box.left // 2, box.left // 2 + 4)
        tokens, pooled = (value.expand(2, *value.shape[1:]) for value in (wire[0][0], wire[0][1]["pooled_output"]))
        with torch.inference_mode():
            velocity = network.forward_orig(
                img,
                ids[:, rows, columns].flatten(1, 2),
                tokens,
                torch.zeros(2, tokens.shape[1], 3),
                torch.full((2,), 0.7),
                pooled,
                torch.full((2,), 3.5),
            )
        folded = velocity.unflatten(1, (4, 4)).unflatten(-1, (16, 2, 2))
        return crop - 0.7 * folded.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    torch.testing.assert_close(out, by_hand(grid, x, alone), rtol=1e-4, atol=1e-4)
    counted_from_0 = evaluate(tile_model(flux_model)[0], x, 0.7, wire)
    assert (out - counted_from_0).abs().max() > 1e-3


def test_true_positions_of_a_single_tile_change_nothing(flux_model):
    x, wire = randn(1, 16, 8, 8, seed=1), text(10)
    patched, _ = tile_model(flux_model, layout((8, 8)), true_positions=True)
    assert torch.equal(evaluate(patched, x, 0.7, wire), evaluate(flux_model, x, 0.7, wire))


def seam_ratio(field: torch.Tensor, grid, margin: int = 4) -> float:
    """How far the steepness of a tile border is from that of other lines, as a ratio of at least 1.

    The field is one that rises evenly, so that all its lines are equally steep, save those within `margin` of the
    image's own border.
    """
    ratios = []
    for dim, starts, side in ((-1, grid.columns, grid.tile_width), (-2, grid.rows, grid.tile_height)):
        lines = field.diff(dim=dim).abs().movedim(dim, 0)[..., margin:-margin].flatten(1).mean(1)
        borders = {edge for start in starts for edge in (start, start + side)} - {0, field.shape[dim]}
        near = {edge + step for edge in borders for step in (-2, -1, 0)}
        others = [line for number, line in enumerate(lines[:-margin]) if number >= margin and number not in near]
        typical = torch.stack(others).mean()
        ratios += [max((lines[line] / typical).item(), (typical / lines[line]).item()) for line in near]
    return max(ratios)


def cell_by_cell(x: torch.Tensor) -> torch.Tensor:
    return 0.7 * x + 2.0


def blurred(x: torch.Tensor) -> torch.Tensor:
    """Reads the neighbours of a cell, and is wrong where the tile has none."""
    kernel = torch.tensor([0.08, 0.84, 0.08])
    padded = F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, (kernel[:, None] * kernel)[None, None]).view_as(x)


@pytest.mark.parametrize(
    ("network", "weights", "overlap", "seamless"),
    [
        (cell_by_cell, "uniform", 16, True),
        (cell_by_cell, "gaussian", 16, True),
        (cell_by_cell, "linear", 0, True),
        (blurred, "linear", 16, True),
        (blurred, "uniform", 0, False),
    ],
)
def test_a_translation_equivariant_model_gives_no_seam(flux_model, network, weights, overlap, seamless):
    size = (64, 80)
    model = flux_model.clone()
    model.set_model_unet_function_wrapper(lambda apply_model, args: network(args["input"]))
    placed = layout(size, tile=32, overlap=overlap)
    ramp = torch.arange(size[0])[:, None] + torch.arange(size[1])[None]
    patched, _ = tile_model(model, placed, weights=weights)
    out = evaluate(patched, ramp.float().expand(1, 16, *size).contiguous(), 0.7, text(1))
    ratio = seam_ratio(out, placed.grid)
    assert (ratio <= 1.01) is seamless, ratio


def test_weights_are_summed_once_a_run(flux_model, monkeypatch):
    from realisr.host.tiling import sampling

    sums, summed = [], sampling.sum_of_weights
    monkeypatch.setattr(sampling, "sum_of_weights", lambda *given: sums.append(given) or summed(*given))
    patched, _ = tile_model(flux_model, weights="gaussian")
    x, sigmas = randn(1, 16, *SIZE, seed=1), torch.tensor([1.0, 0.7, 0.4, 0.0])
    for runs in (1, 2):
        sample(patched, x, text(3), text(5), sigmas)
        assert len(sums) == runs

"""Diptych Tiles: from a canvas to what a sampler takes, on a tiny FLUX Fill."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness import vicr
from harness.checkpoints import flux, taesd, vision_context_bridge
from harness.host import InProcessHost

TEXT_WIDTH, POOLED_WIDTH = 16, 24


@dataclass(frozen=True)
class Models:
    fill: Any
    vae: Any


@pytest.fixture(scope="module")
def models(host: InProcessHost) -> Models:
    import nodes

    weights = flux(
        3,
        fill_model=True,
        heads=1,
        double_blocks=1,
        single_blocks=1,
        context_width=TEXT_WIDTH,
        pooled_width=POOLED_WIDTH,
    )
    host.save_model("vae", "tiles_taef1.safetensors", taesd())
    (vae,) = host.run(nodes.VAELoader, vae_name="tiles_taef1.safetensors")
    return Models(vicr.load_fill(host, "tiles_fill", weights), vae)


def image(width: int, height: int, batch: int = 1) -> torch.Tensor:
    coarse = torch.rand(batch, 3, 6, 6)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)


def text(seed: int = 0, tokens: int = 4, **options: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, POOLED_WIDTH, generator=generator)
    options = {"pooled_output": pooled, "guidance": 30.0, **options}
    return [[torch.randn(1, tokens, TEXT_WIDTH, generator=generator), options]]


def build(width: int, height: int, batch: int = 1, layout: str = "side by side"):
    from realisr.models.vicr.diptych import build_diptych

    return build_diptych(image(width, height, batch), width, height, layout)


def tile(models: Models, built, positive=None, **inputs: Any) -> SimpleNamespace:
    """Outputs of the node."""
    from realisr.nodes.vicr_tiles import DiptychTiles

    widgets = {"tile_size": 64, "tile_overlap": 32, "weights": "gaussian", "tiles_per_batch": 2}
    given = {
        "model": models.fill,
        "positive": positive or text(),
        "vae": models.vae,
        "canvas": built.canvas,
        "diptych": built.diptych,
    }
    prompts = inputs.pop("tile_prompts", None)
    lists = {name: [value] for name, value in (given | widgets | inputs).items()}
    out = InProcessHost.run(DiptychTiles, **lists, tile_prompts=prompts)
    names = ("model", "positive", "negative", "latent", "tile_latent", "tiles")
    return SimpleNamespace(**dict(zip(names, out, strict=True)))


def untiled(models: Models, built, positive=None) -> SimpleNamespace:
    """The same through the host's InpaintModelConditioning."""
    import nodes

    positive = positive or text()
    zero = InProcessHost.run(nodes.ConditioningZeroOut, conditioning=positive)[0]
    positive, negative, latent = InProcessHost.run(
        nodes.InpaintModelConditioning,
        positive=positive,
        negative=zero,
        pixels=built.canvas,
        vae=models.vae,
        mask=built.mask,
        noise_mask=False,
    )
    latent = {"samples": torch.zeros_like(latent["samples"])}
    return SimpleNamespace(model=models.fill, positive=positive, negative=negative, latent=latent, tile_latent=latent)


def sample(wires, steps: int = 3, noise: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """Raw latent by SamplerCustomAdvanced."""
    sigmas = vicr.Scene.sigmas(SimpleNamespace(empty=wires.tile_latent), steps)
    shape = wires.latent["samples"].shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5)) if noise is None else noise
    return vicr.sample(
        wires.model, SimpleNamespace(noise=noise, empty=wires.latent, wire=wires.positive), sigmas, **options
    )


def ksampler(wires, cfg: float) -> torch.Tensor:
    import nodes

    (latent,) = InProcessHost.run(
        nodes.KSampler,
        model=wires.model,
        seed=3,
        steps=2,
        cfg=cfg,
        sampler_name="dpmpp_2m",
        scheduler="simple",
        positive=wires.positive,
        negative=wires.negative,
        latent_image=wires.latent,
        denoise=1.0,
    )
    return latent["samples"]


@pytest.mark.parametrize(
    ("width", "height", "batch", "layout"),
    [(64, 64, 1, "side by side"), (90, 40, 2, "side by side"), (80, 48, 1, "stacked")],
)
def test_one_tile_is_the_untiled_method_to_the_bit(models, width, height, batch, layout):
    """Also for a tile larger than the image: it is cut to the image, padding and all."""
    built = build(width, height, batch, layout)
    tiled, plain = tile(models, built, tile_size=max(96, width)), untiled(models, built)
    assert tiled.tiles == 1
    assert torch.equal(tiled.latent["samples"], plain.latent["samples"])
    assert torch.equal(sample(tiled), sample(plain))
    assert torch.equal(ksampler(tiled, cfg=2.0), ksampler(plain, cfg=2.0))


def test_the_masked_pixels_are_the_hosts_to_the_bit(models):
    """What the VAE is given, where rounding shows most: in the darks."""
    from realisr.models.vicr.diptych import build_diptych

    seen = []
    vae = SimpleNamespace(encode=lambda pixels: (seen.append(pixels.clone()), models.vae.encode(pixels))[1])
    built = build_diptych(0.1 * torch.rand(1, 48, 64, 3), 64, 48, "side by side")
    for make in (untiled, tile):
        make(Models(models.fill, vae), built)
    assert torch.equal(seen[-1], seen[0])
    assert not torch.equal(seen[-1], built.canvas)


@pytest.mark.parametrize(
    ("width", "height", "layout", "tiles", "tile_hw"),
    [
        (96, 112, "side by side", 2 * 3, (64, 64)),
        (90, 40, "side by side", 2, (48, 64)),
        (112, 96, "stacked", 3 * 2, (64, 64)),
    ],
)
def test_wires_have_the_sizes_the_sampler_and_the_schedule_need(models, width, height, layout, tiles, tile_hw):
    built = build(width, height, 2, layout)
    out = tile(models, built)
    assert out.tiles == tiles
    assert tuple(out.latent["samples"].shape) == (2, 16, built.canvas.shape[1] // 8, built.canvas.shape[2] // 8)
    panes = (2, 1) if layout == "stacked" else (1, 2)
    expected = (2, 16, *(side * count // 8 for side, count in zip(tile_hw, panes, strict=True)))
    assert tuple(out.tile_latent["samples"].shape) == expected
    assert sample(out, steps=1).isfinite().all()


@pytest.mark.parametrize("layout", ["side by side", "stacked"])
def test_a_step_merges_the_tiles_run_one_by_one(models, layout):
    """One evaluation equals the untiled model run on every tile's own diptych, each half averaged over its panel."""
    from realisr.models.tiles.grid import TileGrid
    from realisr.models.vicr.diptych import Diptych, DiptychImages, empty_target, join, split, target_mask

    built = build(96, 80, 1, layout)
    out = tile(models, built, weights="uniform")
    noise = torch.randn(out.latent["samples"].shape)
    merged = sample(out, steps=1, noise=noise)
    lq_noise, target_noise = split(noise, layout)
    lq = split(built.canvas.movedim(-1, 1), layout)[0]
    totals = [torch.zeros_like(lq_noise) for _ in range(2)]
    counts = torch.zeros_like(lq_noise)
    for box in TileGrid(10, 12, 8, 8, 4, 2).boxes:
        panel = box.crop(lq, 8)
        canvas = empty_target(panel, layout).movedim(1, -1)
        alone = untiled(models, DiptychImages(canvas, target_mask(64, 64, layout), panel, Diptych(64, 64, layout)))
        result = sample(alone, steps=1, noise=join(box.crop(lq_noise), box.crop(target_noise), layout))
        for total, half in zip(totals, split(result, layout), strict=True):
            box.crop(total).add_(half)
        box.crop(counts).add_(1)
    torch.testing.assert_close(merged, join(*(total / counts for total in totals), layout), rtol=1e-4, atol=1e-4)


def test_an_image_of_a_batch_is_what_it_is_alone(models):
    from realisr.models.vicr.diptych import build_diptych

    images = image(96, 64, 2)
    noise = torch.randn(2, 16, 8, 24)
    together = sample(tile(models, build_diptych(images, 96, 64, "side by side")), noise=noise)
    for index in range(2):
        alone = tile(models, build_diptych(images[index : index + 1], 96, 64, "side by side"))
        result = sample(alone, noise=noise[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], result, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tiles_per_batch", [0, 1, 4])
def test_tiles_run_together_change_nothing(models, tiles_per_batch):
    built = build(96, 96)
    reference = sample(tile(models, built))
    together = sample(tile(models, built, tiles_per_batch=tiles_per_batch))
    torch.testing.assert_close(together, reference, rtol=1e-4, atol=1e-4)


def test_guidance_by_a_negative_prompt(models):
    """cfg above 1: the negative's tiles have the same images; unconnected it is a text of zeros."""
    import nodes

    built, negative = build(96, 64), text(9)
    zero = InProcessHost.run(nodes.ConditioningZeroOut, conditioning=text())[0]
    unconnected = ksampler(tile(models, built), cfg=3.0)
    torch.testing.assert_close(unconnected, ksampler(tile(models, built, negative=zero), cfg=3.0))
    assert not torch.allclose(unconnected, ksampler(tile(models, built, negative=negative), cfg=3.0), atol=1e-2)


def test_a_tiles_prompt_changes_its_tile_alone(models):
    """One step: cells outside the box, in both panels, keep their values exactly."""
    built = build(96, 96)
    changed = 2
    prompts = [text(1)] * 4
    before = sample(tile(models, built, tile_prompts=prompts), steps=1)
    prompts = [text(8) if index == changed else prompt for index, prompt in enumerate(prompts)]
    after = sample(tile(models, built, tile_prompts=prompts), steps=1)
    inside = torch.zeros(12, 24, dtype=torch.bool)
    inside[4:, 0:8] = inside[4:, 12:20] = True
    differs = (before != after).any(dim=1)[0]
    assert torch.equal(differs, inside)


def test_equal_tile_prompts_are_the_prompt(models):
    """One conditioning of four entries does as well as a list of four; guidance stays the positive's."""
    built, prompt = build(96, 96), text(4)
    bare = [[prompt[0][0], {"pooled_output": prompt[0][1]["pooled_output"]}]]
    shared = sample(tile(models, built, positive=prompt))
    for tile_prompts in ([bare] * 4, [bare * 4]):
        made = sample(tile(models, built, positive=text(6), tile_prompts=tile_prompts))
        assert torch.equal(made, shared)


def test_tile_prompts_keep_the_bridges_vector_and_may_bring_their_own_guidance(models):
    prompt = text()
    tail = torch.arange(5.0)[None]
    prompt[0][1]["pooled_output"] = torch.cat([prompt[0][1]["pooled_output"], tail], dim=-1)
    own = text(2, guidance=7.0)
    out = tile(models, build(96, 64), positive=prompt, tile_prompts=[text(1), own])
    first, second = out.positive[0][1]["model_conds"]["realisr_tile_options"].options
    assert torch.equal(first["pooled_output"][:, POOLED_WIDTH:], tail)
    assert torch.equal(second["pooled_output"][:, :POOLED_WIDTH], own[0][1]["pooled_output"])
    assert second["guidance"] == 7.0


@pytest.mark.parametrize("bridge_first", [True, False])
def test_prompts_with_the_bridge_and_negatives_without_share_forwards(host, models, bridge_first):
    """Whether the bridge was put on the model before the tiles or after: both ways it sees the tiles' conditions."""
    bridge = vicr.load_bridge(host, "tiles_bridge", vision_context_bridge(1, width=128))
    embeds = torch.randn(1, 768)
    batches = []

    def counted(apply_model, args):
        batches.append(args["input"].shape[0])
        return apply_model(args["input"], args["timestep"], **args["c"])

    fill = models.fill.clone()
    fill.set_model_unet_function_wrapper(counted)
    bridged, positive = vicr.bridged(fill, text(), bridge, embeds)
    built, negative = build(96, 64), text(2)
    out = tile(models, built, positive, negative=negative, model=bridged if bridge_first else fill)
    if not bridge_first:
        out.model, _ = vicr.bridged(out.model, text(), bridge, embeds)
    with_bridge = ksampler(out, cfg=2.0)
    assert batches == [4, 4]
    assert not torch.allclose(with_bridge, ksampler(tile(models, built, negative=negative), cfg=2.0), atol=1e-3)


def test_tile_images_are_the_tiles_left_sides():
    from realisr.nodes.vicr_tiles import DiptychTileImages

    built = build(90, 72, 2)
    images, count = InProcessHost.run(
        DiptychTileImages, canvas=built.canvas, diptych=built.diptych, tile_size=64, tile_overlap=32
    )
    assert count == len(images) == 4
    assert torch.equal(images[0], built.canvas[:, :64, :64])
    assert torch.equal(images[3], built.canvas[:, 16:80, 32:96])


@pytest.mark.parametrize("count", [1, 3, 5])
def test_another_number_of_prompts_is_refused(models, count):
    with pytest.raises(ValueError, match=f"got {count} tile prompts for 4 tiles"):
        tile(models, build(96, 96), tile_prompts=[text()] * count)


def test_prompts_that_speak_of_the_canvas_are_refused(models):
    built = build(96, 64)
    with pytest.raises(ValueError, match="prompt of tile 2 carries area"):
        tile(models, built, tile_prompts=[text(), text(area=(8, 8, 0, 0))])
    with pytest.raises(ValueError, match="restricted to an area"):
        tile(models, built, positive=text(area=(8, 8, 0, 0)))
    with pytest.raises(ValueError, match=r"prompts of tiles \[2\] are not one prompt each"):
        tile(models, built, tile_prompts=[text(), text() + text()])
    with pytest.raises(ValueError, match="combines 2 prompts"):
        tile(models, built, positive=text() + text(1), tile_prompts=[text(), text()])


def test_lists_are_for_prompts(models):
    from realisr.nodes.inputs import only

    assert only("Diptych Tiles", "canvas", None) is None
    with pytest.raises(ValueError, match=r"Diptych Tiles: canvas got a list of 2\. Only tile_prompts"):
        only("Diptych Tiles", "canvas", [1, 2], several="tile_prompts")


def test_canvas_and_record_belong_together(models):
    built, other = build(96, 64), build(64, 64)
    with pytest.raises(ValueError, match=r"the canvas is \[1, 64, 192, 3\], its record says 64x128"):
        tile(models, SimpleNamespace(canvas=built.canvas, diptych=other.diptych))


def test_the_wrong_wires_are_named(models):
    """Model from before the node, conditioning from elsewhere, the tile's latent: none runs, all say what to do."""
    out = tile(models, build(96, 64))
    wires = {name: getattr(out, name) for name in ("model", "positive", "latent", "tile_latent")}
    with pytest.raises(ValueError, match="with the model output of the node that made it"):
        sample(SimpleNamespace(**wires | {"model": models.fill}), steps=1)
    with pytest.raises(ValueError, match="did not come through Diptych Tiles"):
        sample(SimpleNamespace(**wires | {"positive": text()}), steps=1)
    with pytest.raises(ValueError, match="over a latent of 8x24 cells"):
        sample(SimpleNamespace(**wires | {"latent": out.tile_latent}), steps=1)


def test_models_and_vaes_that_cannot_do_it_are_named(host, models):
    plain = vicr.load_fill(host, "tiles_flux", flux(heads=1, double_blocks=1, single_blocks=1))
    with pytest.raises(ValueError, match=r"reads no masked image.*FLUX\.1-Fill"):
        tile(Models(plain, models.vae), build(96, 64))
    narrow = SimpleNamespace(encode=lambda pixels: torch.zeros(1, 4, pixels.shape[1] // 8, pixels.shape[2] // 8))
    with pytest.raises(ValueError, match=r"makes latents \[1, 4, 8, 16\] of a tile, the model reads 16 channels"):
        tile(Models(models.fill, narrow), build(96, 64))


@pytest.mark.parametrize(
    ("size", "overlap", "message"), [(64, 64, "smaller than the tile size"), (8, 0, "at least 16")]
)
def test_impossible_tiles_are_refused_before_the_run(models, size, overlap, message):
    from realisr.nodes.vicr_tiles import DiptychTiles

    assert message in DiptychTiles.validate_inputs(tile_size=[size], tile_overlap=[overlap])
    assert DiptychTiles.validate_inputs(tile_size=[512], tile_overlap=None) is True
    with pytest.raises(ValueError, match=message):
        tile(models, build(96, 64), tile_size=size, tile_overlap=overlap)


def test_cancel_while_tiles_are_encoded(models):
    import comfy.model_management

    seen = []

    def encode(pixels):
        seen.append(pixels.shape)
        comfy.model_management.interrupt_current_processing()
        return models.vae.encode(pixels)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tile(Models(models.fill, SimpleNamespace(encode=encode)), build(96, 96))
    assert len(seen) == 1

"""ControlNets under Tiled MultiDiffusion: each tile's control looks at the tile's part of the hint."""

from __future__ import annotations

import pytest
import torch

from harness import dreamsr, tiled
from harness.checkpoints import flux
from harness.host import InProcessHost
from harness.tiled import by_hand, evaluate, randn, text

SIZE = (12, 18)


@pytest.fixture(scope="module")
def flux_model(host: InProcessHost):
    return dreamsr.load_flux(host, "controls_flux.safetensors", flux(**tiled.FLUX))


@pytest.fixture(scope="module")
def unet(host: InProcessHost):
    return tiled.unet_model()


@pytest.fixture(scope="module")
def vae(host: InProcessHost):
    return tiled.light_vae(host)


def layout(size=SIZE):
    from realisr.models.tiles.layout import TileLayout

    return TileLayout.fitted(size[0] * 8, size[1] * 8, 64, 16, 2)


GRID_TILES = 6


def picture(seed: int, size=SIZE) -> torch.Tensor:
    return torch.rand(1, size[0] * 8, size[1] * 8, 3, generator=torch.Generator().manual_seed(seed))


def apply_control(control, positive, negative, image, vae=None, strength=0.8, start=0.0, end=1.0):
    import nodes

    return InProcessHost.run(
        nodes.ControlNetApplyAdvanced,
        positive=positive,
        negative=negative,
        control_net=control,
        image=image,
        strength=strength,
        start_percent=start,
        end_percent=end,
        vae=vae,
    )


def tile_model(model, positive=None, prompts=None, **widgets):
    from realisr.nodes.tiles import TiledMultiDiffusion

    given = {"weights": "uniform", "tiles_per_batch": 4, "true_positions": False, "patch_prompt_reader": "auto"}
    wires = {name: value for name, value in (("positive", positive), ("patch_prompts", prompts)) if value is not None}
    return InProcessHost.run(
        TiledMultiDiffusion, **tiled.node_lists(model=model, tile_grid=layout(), **given | widgets, **wires)
    )


def crop_image(box, image):
    return image[:, box.top * 8 : (box.top + box.height) * 8, box.left * 8 : (box.left + box.width) * 8]


class Case:
    """A model with its ControlNet. wires(image of box): both conditionings, controlled."""

    def __init__(self, model, control, sigma, vae=None, channels=16):
        self.model, self.control, self.sigma, self.vae = model, control, sigma, vae
        self.x = randn(2, channels, *SIZE, seed=1)

    def wires(self, image, **options):
        return apply_control(self.control, text(10, **options), text(20), image, self.vae)

    def plain(self, positive, negative, x):
        return evaluate(self.model, x, self.sigma, positive, negative, cfg=2.0)

    def tiled(self, positive, negative, **widgets):
        patched, wire = tile_model(self.model, positive, **widgets)
        return evaluate(patched, self.x, self.sigma, wire, negative, cfg=2.0)


@pytest.fixture(params=["flux", "flux with VAE", "unet", "adapter"])
def case(request, flux_model, unet, vae):
    return {
        "flux": lambda: Case(flux_model, tiled.flux_controlnet(), 0.7),
        "flux with VAE": lambda: Case(flux_model, tiled.flux_controlnet(latent=True), 0.7, vae),
        "unet": lambda: Case(unet, tiled.unet_controlnet(), 3.0, channels=4),
        "adapter": lambda: Case(unet, tiled.t2i_adapter(), 3.0, channels=4),
    }[request.param]()


def test_the_hint_is_cropped_with_the_tile(case):
    image = picture(1)
    out = case.tiled(*case.wires(image))
    expected = by_hand(
        layout().grid, case.x, lambda _, box, crop: case.plain(*case.wires(crop_image(box, image)), crop)
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    without = by_hand(layout().grid, case.x, lambda _, box, crop: case.plain(text(10), text(20), crop))
    assert (out - without).abs().max() > 1e-2, "the control has to show"


def test_a_hint_of_another_size_is_scaled_as_the_host_would_for_the_canvas(case):
    import comfy.utils

    small = picture(2, (5, 8))
    scaled = comfy.utils.common_upscale(
        small.movedim(-1, 1), SIZE[1] * 8, SIZE[0] * 8, case.control.upscale_algorithm, "center"
    ).movedim(1, -1)
    out = case.tiled(*case.wires(small))
    expected = by_hand(
        layout().grid, case.x, lambda _, box, crop: case.plain(*case.wires(crop_image(box, scaled)), crop)
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_patch_prompts_are_the_text_of_the_control_alone(case):
    """The model keeps the global prompt; what its ControlNet reads is the tile's."""
    image, grid = picture(1), layout().grid
    prompts = [text(50 + 2 * index) for index in range(GRID_TILES)]
    out = case.tiled(*case.wires(image), prompts=prompts)

    def alone(index, box, crop):
        return case.plain(*case.wires(crop_image(box, image), cross_attn_controlnet=prompts[index][0][0]), crop)

    torch.testing.assert_close(out, by_hand(grid, case.x, alone), rtol=1e-4, atol=1e-4)


def test_control_and_guidance_share_a_forward(case):
    """The host batches conditions only when their control is one object."""
    sizes: list[list[int]] = []
    case.model = tiled.calls_of(case.model, sizes)
    case.tiled(*case.wires(picture(1)))
    # 6 tiles as 4 and 2, both images, both conditions.
    assert [size[0] for size in sizes] == [4 * 2 * 2, 2 * 2 * 2]


def test_a_chain_of_controls_is_cropped_link_by_link(flux_model, vae):
    first, second = tiled.flux_controlnet(), tiled.flux_controlnet(seed=9, latent=True)
    images, x = (picture(1), picture(3)), randn(2, 16, *SIZE, seed=1)

    def wires(images):
        positive, negative = apply_control(first, text(10), text(20), images[0])
        return apply_control(second, positive, negative, images[1], vae, strength=0.5)

    def plain(wire, x, sigma=0.7):
        return evaluate(flux_model, x, sigma, *wire, cfg=2.0)

    patched, positive = tile_model(flux_model, wires(images)[0])
    out = evaluate(patched, x, 0.7, positive, wires(images)[1], cfg=2.0)
    expected = by_hand(
        layout().grid, x, lambda _, box, crop: plain(wires([crop_image(box, image) for image in images]), crop)
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    alone = by_hand(
        layout().grid,
        x,
        lambda _, box, crop: plain(apply_control(first, text(10), text(20), crop_image(box, images[0])), crop),
    )
    assert (out - alone).abs().max() > 1e-2


def test_a_hint_is_encoded_once_a_run(flux_model, vae, monkeypatch):
    """Latents of the tiles' hints are kept from step to step; they are as large as the canvas's latent."""
    import comfy.samplers

    shapes = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: (shapes.append(tuple(pixels.shape)), encode(pixels))[1])
    positive, negative = apply_control(tiled.flux_controlnet(latent=True), text(10), text(20), picture(1), vae)
    patched, positive = tile_model(flux_model, positive, tiles_per_batch=2)
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(positive, negative)
    guider.set_cfg(2.0)
    x = randn(1, 16, *SIZE, seed=1)
    for run in (1, 2):
        with torch.inference_mode():
            guider.sample(
                x,
                torch.zeros_like(x),
                comfy.samplers.sampler_object("euler"),
                torch.tensor([1.0, 0.7, 0.4, 0.0]),
                disable_pbar=True,
                seed=1,
            )
        assert shapes == [(2, 64, 64, 3)] * 3 * run


@pytest.mark.parametrize(("start", "end", "acts"), [(0.0, 0.2, False), (0.2, 1.0, True), (0.0, 1.0, True)])
def test_start_and_end_hold(flux_model, start, end, acts):
    """At sigma 0.7, 30 % of the way."""
    x, image = randn(1, 16, *SIZE, seed=1), picture(1)
    wire, _ = apply_control(tiled.flux_controlnet(), text(10), text(20), image, start=start, end=end)
    out = evaluate(tile_model(flux_model)[0], x, 0.7, wire)
    without = evaluate(tile_model(flux_model)[0], x, 0.7, text(10))
    assert torch.equal(out, without) is not acts


@pytest.mark.parametrize("reader", ["auto", "control", "both"])
def test_an_mm_controlnet_reads_the_patch_prompts(host, reader):
    """The latent of the control is cropped with the tile; with `both` the model reads the tile's text as well."""
    weights = flux(context_width=dreamsr.TEXT_WIDTH, pooled_width=dreamsr.POOLED_WIDTH)
    model = dreamsr.load_flux(host, "controls_mm_flux.safetensors", weights)
    control = dreamsr.load_control(host, "controls_mm.safetensors", dreamsr.control_weights())
    scene = dreamsr.Scene.random(SIZE, batch=2)
    prompts = [text(50 + 2 * i, width=dreamsr.TEXT_WIDTH, pooled=dreamsr.POOLED_WIDTH) for i in range(GRID_TILES)]
    applied, positive, _ = dreamsr.apply_control(model, control, scene)
    patched, wire = tile_model(applied, positive, prompts, patch_prompt_reader=reader)
    out = evaluate(patched, scene.z_t, 0.7, wire)
    from comfy.latent_formats import Flux

    def alone(index, box, crop):
        latent = {"samples": Flux().process_out(box.crop(scene.z_lq))}
        text_of_model = scene.positive
        if reader == "both":
            text_of_model = [[prompts[index][0][0], {**scene.positive[0][1], **prompts[index][0][1]}]]
        own, positive, _ = dreamsr.apply_control(
            model, control, scene, latent=latent, local=prompts[index], positive=text_of_model
        )
        return evaluate(own, crop, 0.7, positive)

    torch.testing.assert_close(out, by_hand(layout().grid, scene.z_t, alone), rtol=1e-4, atol=1e-4)


def test_patch_prompts_for_a_control_that_is_not_there(flux_model):
    with pytest.raises(ValueError, match=r"Tiled MultiDiffusion: .*carries none"):
        tile_model(flux_model, text(10), [text(50)] * GRID_TILES, patch_prompt_reader="control")

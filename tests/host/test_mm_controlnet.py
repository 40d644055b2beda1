"""Apply MM-ControlNet on a tiny FLUX: the equations, and everything else the host does to a MODEL at the same time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.checkpoints import flux
from harness.dreamsr import (
    POOLED_WIDTH,
    TEXT_WIDTH,
    BlockRecorder,
    Scene,
    apply_control,
    control_weights,
    load_control,
    load_flux,
    sample,
    velocity,
)
from harness.straight_line_flux import flux_velocity
from harness.vosr import CountedCalls, relative_error


@pytest.fixture(scope="module")
def flux_weights() -> dict[str, Tensor]:
    return flux(1, context_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH, single_blocks=1)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return control_weights()


@pytest.fixture(scope="module")
def model(host, flux_weights):
    return load_flux(host, "tiny_flux.safetensors", flux_weights)


@pytest.fixture(scope="module")
def control(host, weights):
    return load_control(host, "tiny_control.safetensors", weights, {"dit_blocks": [0, 2], "text_residual": True})


@pytest.fixture
def scene() -> Scene:
    return Scene.random((4, 6))


def plain(model: Any, scene: Scene) -> Tensor:
    return velocity(model, scene.positive, scene)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("blocks", [(0, 1), (0, 2)])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_equals_the_straight_line(host, model, flux_weights, weights, scene, residual, blocks, strength):
    stated = {"dit_blocks": list(blocks), "text_residual": residual}
    control = load_control(host, "straight.safetensors", weights, stated)
    patched, positive, _ = apply_control(model, control, scene, strength=strength)
    reference = flux_velocity(flux_weights, scene, weights, blocks, residual, strength)
    assert (velocity(patched, positive, scene) - reference).abs().max() <= 1e-5
    assert relative_error(plain(model, scene), reference) > 0.05


def test_strength_zero_is_plain_flux(model, control, scene):
    positive = scene.positive
    patched, same, negative = apply_control(model, control, scene, positive=positive, strength=0.0)
    assert patched is model and same is positive and negative == []


def test_local_prompt_defaults_to_the_global_one(model, control, scene):
    patched, positive, _ = apply_control(model, control, scene, local=None)
    explicit, with_it, _ = apply_control(model, control, scene, local=scene.positive)
    other, local, _ = apply_control(model, control, scene)
    result = velocity(patched, positive, scene)
    assert torch.equal(result, velocity(explicit, with_it, scene))
    assert relative_error(velocity(other, local, scene), result) > 0.01


def test_prompt_without_pooled_text(model, control, scene):
    """As in FLUX, zeros stand for it."""
    bare, zero = [[scene.local_text, {}]], [[scene.local_text, {"pooled_output": torch.zeros(1, POOLED_WIDTH)}]]
    results = [velocity(*apply_control(model, control, scene, local=local)[:2], scene) for local in (bare, zero)]
    assert torch.equal(*results)


@pytest.mark.parametrize("images", [1, 3])
def test_batches_equal_their_items(model, control, images):
    """One latent for all, or one each."""
    many = Scene.random((4, 6), batch=3)
    many.z_lq = many.z_lq[:images]
    together = velocity(*apply_control(model, control, many)[:2], many)
    for index in range(3):
        one = Scene(**{**vars(many), "z_t": many.z_t[index : index + 1], "z_lq": many.z_lq[index % images][None]})
        alone = velocity(*apply_control(model, control, one)[:2], one)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("controlled", [True, False])
def test_guidance_with_and_without_a_controlled_negative(model, control, scene, controlled):
    negative = scene.negative if controlled else None
    patched, positive, against = apply_control(model, control, scene, negative=negative)
    against = against or scene.negative
    both = [velocity(patched, positive, scene), velocity(patched if controlled else model, against, scene)]
    guided = velocity(patched, positive, scene, against, cfg=3.0)
    torch.testing.assert_close(guided, both[1] + 3.0 * (both[0] - both[1]), atol=2e-5, rtol=1e-5)
    if controlled:
        assert relative_error(both[1], velocity(model, scene.negative, scene)) > 0.05


def test_both_guidance_branches_run_in_one_forward(model, control, scene):
    patched, positive, negative = apply_control(model, control, scene, negative=scene.negative)
    # The host batches conditions of equal shape; a local prompt longer than the global one is no equal.
    same_length = [[scene.text + 1, {"pooled_output": scene.pooled}]]
    alike, level, against = apply_control(model, control, scene, local=same_length, negative=scene.negative)
    for run, expected in (((patched, positive, negative), 2), ((alike, level, against), 1)):
        with CountedCalls(control.network, "forward") as calls:
            velocity(run[0], run[1], scene, run[2], cfg=3.0)
        assert calls.count == expected


def test_regional_prompts_see_their_region(model, control, scene):
    """The latent is cropped with the area a condition is restricted to."""
    patched, positive, _ = apply_control(model, control, scene)
    area = [[positive[0][0], {**positive[0][1], "area": (4, 4, 0, 2)}]]
    part = Scene(**{**vars(scene), "z_t": scene.z_t[..., 2:], "z_lq": scene.z_lq[..., 2:]})
    inside = velocity(*apply_control(model, control, part)[:2], part)
    torch.testing.assert_close(velocity(patched, area, scene)[..., 2:], inside, atol=1e-5, rtol=1e-5)


def test_odd_sides(model, control):
    odd = Scene.random((5, 7))
    result = velocity(*apply_control(model, control, odd)[:2], odd)
    assert result.shape == odd.z_t.shape and relative_error(result, plain(model, odd)) > 0.05


def test_reference_latents_stay_uncontrolled(model, control, scene):
    """FLUX Kontext appends their tokens to the image's; the control has none for them."""
    entry = [[scene.text, {**scene.positive[0][1], "reference_latents": [scene.latent["samples"]]}]]
    recorder = BlockRecorder()
    watched = recorder.watch(model)
    before = velocity(watched, entry, scene)
    streams = dict(recorder.streams[0])
    patched, positive, _ = apply_control(watched, control, scene, positive=entry)
    after = velocity(patched, positive, scene)
    tokens = scene.z_t.shape[-1] * scene.z_t.shape[-2] // 4
    assert streams["img"].shape[1] == 2 * tokens
    assert torch.equal(recorder.streams[0]["img"][:, tokens:], streams["img"][:, tokens:])
    assert relative_error(recorder.streams[0]["img"][:, :tokens], streams["img"][:, :tokens]) > 0.01
    assert relative_error(after, before) > 0.05


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)])
def test_range_of_steps(model, control, scene, start, end):
    import comfy.samplers

    patched, positive, _ = apply_control(model, control, scene, start=start, end=end)
    sampling = model.get_model_object("model_sampling")
    # The range counts from pure noise, whatever steps are taken in it, as that of ControlNets does.
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 8)[:-1]
    inside = (sigmas <= sampling.percent_to_sigma(start)) & (sigmas >= sampling.percent_to_sigma(end))
    with CountedCalls(control.network, "forward") as calls:
        result = sample(patched, positive, scene, steps=8)
    assert calls.count == inside.sum() and 0 < calls.count < 8
    assert relative_error(result, sample(model, scene.positive, scene, steps=8)) > 0.01


def test_previous_block_patch_is_kept(model, control, scene):
    """Before or after Apply MM-ControlNet, another patch of the same block runs, and its outcome is controlled."""

    def doubled(args, extra):
        out = extra["original_block"](args)
        return {"img": 2 * out["img"], "txt": out["txt"]}

    def patch(model):
        clone = model.clone()
        clone.set_model_patch_replace(doubled, "dit", "double_block", 2)
        return clone

    before, positive, _ = apply_control(patch(model), control, scene)
    after = patch(apply_control(model, control, scene)[0])
    results = [velocity(each, positive, scene) for each in (before, after)]
    assert torch.equal(*results)
    assert relative_error(results[0], velocity(patch(model), scene.positive, scene)) > 0.05
    assert relative_error(results[0], velocity(apply_control(model, control, scene)[0], positive, scene)) > 0.05


def block_0(model: Any, positive: Any, scene: Scene) -> Tensor:
    recorder = BlockRecorder()
    velocity(recorder.watch(model), positive, scene)
    return recorder.streams[0]["img"]


def test_with_an_ordinary_controlnet(host, model, control, scene):
    """Residuals of both are added to the first block's output; the ordinary one reads the global prompt still."""
    import nodes
    from diffusers import FluxControlNetModel

    torch.manual_seed(4)
    tiny = FluxControlNetModel(
        num_layers=1,
        num_single_layers=0,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=True,
    )
    state = {name: torch.randn_like(value) * 0.05 for name, value in tiny.state_dict().items()}
    host.save_model("controlnet", "instantx.safetensors", state)
    (ordinary,) = host.run(nodes.ControlNetLoader, control_net_name="instantx.safetensors")
    hint = torch.rand(1, 32, 48, 3)

    class Encoder:
        """The host wants a VAE for this kind; the latent itself is not what is tested."""

        def encode(self, pixels):
            return scene.latent["samples"]

        spacial_compression_encode = staticmethod(lambda: 8)

    def with_hint(positive):
        apply = nodes.ControlNetApplyAdvanced
        run = {"control_net": ordinary, "image": hint, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
        return host.run(apply, positive=positive, negative=positive, vae=Encoder(), **run)[0]

    patched, positive, _ = apply_control(model, control, scene)
    base, mine = block_0(model, scene.positive, scene), block_0(patched, positive, scene)
    theirs = block_0(model, with_hint(scene.positive), scene)
    both = block_0(patched, with_hint(positive), scene)
    assert (theirs - base).abs().max() > 0.01
    torch.testing.assert_close(both - base, (mine - base) + (theirs - base), atol=1e-4, rtol=1e-4)


def test_two_controls_on_one_model(host, model, control, scene):
    other = load_control(host, "other.safetensors", control_weights(seed=9), {"dit_blocks": [0, 1]})
    first, positive, _ = apply_control(model, control, scene)
    both, doubly, _ = apply_control(first, other, scene, positive=positive, latent={"samples": torch.ones(1, 16, 4, 6)})
    alone, single, _ = apply_control(model, other, scene, latent={"samples": torch.ones(1, 16, 4, 6)})
    base = block_0(model, scene.positive, scene)
    added = [block_0(*run, scene) - base for run in ((first, positive), (alone, single))]
    torch.testing.assert_close(block_0(both, doubly, scene) - base, sum(added), atol=1e-4, rtol=1e-4)
    assert all(part.abs().max() > 0.01 for part in added)


def test_the_model_that_went_in_stays_as_it_was(model, control, scene):
    before = plain(model, scene)
    patched, positive, _ = apply_control(model, control, scene)
    copy = patched.clone()
    result = velocity(patched, positive, scene)
    assert torch.equal(velocity(copy, positive, scene), result)
    assert torch.equal(plain(model, scene), before)
    assert not model.wrappers.get("diffusion_model") and not model.additional_models


def test_prompt_of_a_tile(model, control, scene):
    """What a tiled sampler does to the conditions of a tile."""
    from realisr.host.dreamsr.control.conditioning import LocalPrompt, with_local_prompt

    patched, positive, _ = apply_control(model, control, scene, local=None)
    prompt = LocalPrompt(scene.local_text, scene.local_pooled)
    whole = positive[0][1]["model_conds"]
    tile = [[positive[0][0], {**positive[0][1], "model_conds": with_local_prompt(whole, prompt)}]]
    expected, local, _ = apply_control(model, control, scene)
    assert torch.equal(velocity(patched, tile, scene), velocity(expected, local, scene))


def test_tiles(model, control, scene):
    """Under the pack's tiling, the control of a tile sees its crop of the latent: as a canvas of a tile's size does."""
    from realisr.host.tiling.sampling import Tiling
    from realisr.models.tiles.grid import TileGrid

    patched, positive, _ = apply_control(model, control, scene)
    tiled = Tiling(TileGrid(4, 6, 4, 4, overlap=2, align=2)).apply(patched)
    result = velocity(tiled, positive, scene)
    parts = [
        velocity(*apply_control(model, control, part)[:2], part)
        for part in (
            Scene(**{**vars(scene), "z_t": scene.z_t[..., at], "z_lq": scene.z_lq[..., at]})
            for at in (slice(0, 4), slice(2, 6))
        )
    ]
    middle = (parts[0][..., 2:] + parts[1][..., :2]) / 2
    expected = torch.cat([parts[0][..., :2], middle, parts[1][..., 2:]], dim=-1)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

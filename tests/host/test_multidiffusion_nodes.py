"""Tile Grid, the tiled sampling nodes and Encode Patch Prompts: widgets, lists, messages."""

from __future__ import annotations

import logging

import pytest
import torch

from harness import dreamsr, tiled
from harness.checkpoints import flux
from harness.host import InProcessHost
from harness.tiled import evaluate, node_lists, randn, text
from harness.vosr import CountedCalls

WIDGETS = {"weights": "uniform", "tiles_per_batch": 4, "true_positions": False, "patch_prompt_reader": "auto"}
SIZE = (12, 18)


@pytest.fixture(scope="module")
def model(host: InProcessHost):
    return dreamsr.load_flux(host, "nodes_flux.safetensors", flux(**tiled.FLUX))


def grid_of(size_of, tile_size=64, overlap=16, align=2, **wires):
    """(tile grid, preview, number of tiles)."""
    from realisr.nodes.tiles import TileGridNode

    return InProcessHost.run(TileGridNode, size_of=size_of, tile_size=tile_size, overlap=overlap, align=align, **wires)


def latent(*size: int) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(1, 16, *size)}


def multidiffusion(**inputs):
    from realisr.nodes.tiles import TiledMultiDiffusion

    return InProcessHost.run(TiledMultiDiffusion, **node_lists(**WIDGETS | inputs))


def guider_of(**inputs):
    from realisr.nodes.tiles import TiledMultiDiffusionGuider

    return InProcessHost.run(TiledMultiDiffusionGuider, **node_lists(**WIDGETS | inputs))[0]


@pytest.fixture
def layout(host):
    return grid_of(latent(*SIZE))[0]


# --- Tile Grid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_of", [torch.rand(2, 100, 150, 4), latent(*SIZE), latent(1, *SIZE)])
def test_an_image_and_its_latent_give_one_grid(host, size_of):
    made, preview, count = grid_of(size_of)
    assert made.image_size == (96, 144)
    assert count == len(made) == 6 and preview.shape == (1, 96, 144, 3)


def test_no_overlap_is_allowed_and_warned_of(host, caplog):
    with caplog.at_level(logging.WARNING):
        grid_of(latent(*SIZE), overlap=16)
        grid_of(latent(8, 8), overlap=0)
        assert not caplog.records
        assert grid_of(latent(*SIZE), overlap=0)[2] == 6
    assert "no overlap" in caplog.text


def test_the_automatic_tile_is_the_largest_that_fits_the_memory(model, monkeypatch):
    import comfy.model_management

    need = {side: model.model.memory_required([1, 16, side, side]) * 1.5 for side in (64, 96, 128)}
    weights = max(model.model_size() - model.loaded_size(), 0)
    chosen = {}
    for name, room in {"a": need[128] * 1.01, "b": need[128] * 0.99, "c": need[96] * 0.99, "d": 0.0}.items():
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, room=room: weights + room)
        chosen[name] = grid_of(latent(200, 300), 0, model=model)[0].grid.tile_height
    assert chosen == {"a": 128, "b": 96, "c": 64, "d": 64}


def test_the_automatic_tile_needs_the_model(host):
    with pytest.raises(ValueError, match=r"tile_size 0 .* model must be connected"):
        grid_of(latent(*SIZE), 0)


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"tile_size": 512, "overlap": 512, "align": 2}, "smaller than the tile size 512 px, got 512 px"),
        ({"tile_size": 48, "overlap": 0, "align": 8}, r"at least 64 px \(align 8\), got 48 px"),
        ({"tile_size": 0, "overlap": 600, "align": 2}, None),
        ({"tile_size": 512, "overlap": None, "align": None}, None),
    ],
)
def test_widgets_are_checked_before_the_run(host, widgets, message):
    import re

    from realisr.nodes.tiles import TileGridNode

    found = TileGridNode.validate_inputs(**widgets)
    assert found is True if message is None else re.search(message, found)


def test_an_overlap_too_large_for_the_automatic_tile_is_refused(model):
    with pytest.raises(ValueError, match="smaller than the tile size"):
        grid_of(latent(200, 300), 0, 1024, model=model)


# --- sampling --------------------------------------------------------------------------------------------------------


def test_the_guider_is_the_model_under_a_guider(model, layout):
    import comfy.samplers

    x, positive, negative = randn(1, 16, *SIZE, seed=1), text(10), text(20)
    prompts = [text(50 + index) for index in range(6)]
    patched, wire = multidiffusion(model=model, tile_grid=layout, positive=positive, patch_prompts=prompts)
    plain = comfy.samplers.CFGGuider(patched)
    plain.set_conds(wire, negative)
    plain.set_cfg(2.0)
    ours = guider_of(
        model=model, tile_grid=layout, positive=positive, negative=negative, cfg=2.0, patch_prompts=prompts
    )
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    with torch.inference_mode():
        both = [
            guider.sample(
                x, torch.zeros_like(x), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1
            )
            for guider in (ours, plain)
        ]
    assert torch.equal(*both)


def test_the_guider_runs_without_a_negative_at_cfg_1_only(model, layout):
    import comfy.samplers

    sizes: list[list[int]] = []
    made = guider_of(model=tiled.calls_of(model, sizes), tile_grid=layout, positive=text(10), cfg=1.0)
    x = randn(1, 16, *SIZE, seed=1)
    with torch.inference_mode():
        made.sample(
            x,
            torch.zeros_like(x),
            comfy.samplers.sampler_object("euler"),
            torch.tensor([1.0, 0.0]),
            disable_pbar=True,
            seed=1,
        )
    assert [size[0] for size in sizes] == [4, 2]
    with pytest.raises(ValueError, match="cfg 2 needs a negative prompt"):
        guider_of(model=model, tile_grid=layout, positive=text(10), cfg=2.0)


def test_positive_passes_through(model, layout):
    positive = text(10)
    assert multidiffusion(model=model, tile_grid=layout, positive=positive)[1] is positive


def test_a_positive_that_is_not_there_says_so_where_it_is_used(model, layout):
    from comfy_execution.graph_utils import ExecutionBlocker

    missing = multidiffusion(model=model, tile_grid=layout)[1]
    assert isinstance(missing, ExecutionBlocker) and "positive input is not connected" in missing.message


def test_prompts_may_come_combined(model, layout):
    x, positive = randn(1, 16, *SIZE, seed=1), text(10)
    prompts = [text(50 + index) for index in range(6)]
    combined = [[entry for prompt in prompts for entry in prompt]]
    both = [
        evaluate(
            *reversed_arguments(
                multidiffusion(model=model, tile_grid=layout, positive=positive, patch_prompts=given), x
            )
        )
        for given in (prompts, combined)
    ]
    assert torch.equal(*both)


def reversed_arguments(made, x):
    patched, wire = made
    return patched, x, 0.7, wire


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"patch_prompts": [text(1)] * 5, "positive": text(10)}, "got 5 tile prompts for 6 tiles"),
        ({"patch_prompts": [text(1)] * 6}, "need positive"),
        ({"patch_prompts": [text(1)] * 6, "positive": text(10) + text(11)}, "combines 2 prompts"),
        (
            {"patch_prompts": [text(1)] * 5 + [text(1) * 2], "positive": text(10)},
            r"tiles \[6\] are not one prompt each",
        ),
        (
            {"patch_prompts": [text(1)] * 5 + [text(1, area=(2, 2, 0, 0))], "positive": text(10)},
            "prompt of tile 6 carries area",
        ),
    ],
)
def test_prompts_that_do_not_fit_are_refused(model, layout, inputs, message):
    with pytest.raises(ValueError, match=f"Tiled MultiDiffusion: .*{message}"):
        multidiffusion(model=model, tile_grid=layout, **inputs)


def test_a_list_where_one_is_meant_is_refused(model, layout):
    from realisr.nodes.tiles import TiledMultiDiffusion

    inputs = node_lists(**WIDGETS, model=model, tile_grid=layout) | {"model": [model, model]}
    with pytest.raises(ValueError, match="model got a list of 2"):
        InProcessHost.run(TiledMultiDiffusion, **inputs)


def test_a_model_is_tiled_once(model, layout):
    patched, _ = multidiffusion(model=model, tile_grid=layout)
    with pytest.raises(ValueError, match=r"already works in tiles.* Tiled MultiDiffusion Guider"):
        guider_of(model=patched, tile_grid=layout, positive=text(10), cfg=1.0)


def test_a_latent_of_another_size_is_refused(model, layout):
    patched, _ = multidiffusion(model=model, tile_grid=layout)
    with pytest.raises(ValueError, match=r"Tiled MultiDiffusion laid its tiles over a latent of 12x18 .*1, 16, 12, 20"):
        evaluate(patched, randn(1, 16, 12, 20, seed=1), 0.7, text(10))


def test_positions_are_shifted_only_where_the_host_can(host, layout):
    with pytest.raises(ValueError, match=r"cannot shift the positions of this model .*for FLUX and Lumina"):
        multidiffusion(model=tiled.unet_model(), tile_grid=layout, true_positions=True)


def test_what_covers_the_whole_canvas_and_cannot_be_cropped_is_refused(model, layout):
    patched, _ = multidiffusion(model=model, tile_grid=layout)
    for option, what in (
        ({"gligen": ("position", model, [])}, "GLIGEN"),
        ({"attention_mask": torch.zeros(1, 58, 58), "attention_mask_img_shape": (6, 9)}, "attention bias"),
    ):
        with pytest.raises(ValueError, match=f"carries .*{what}.* cannot be tiled"):
            evaluate(patched, randn(1, 16, *SIZE, seed=1), 0.7, text(10, **option))


def test_a_vosr_conditioning_needs_the_same_tiles(multi_step, layout):
    """However they were asked for: here with one overlap for both axes, and no alignment."""
    from harness.vosr import Scene, relative_error, run_guider
    from realisr.models.tiles.grid import TileGrid

    model = multi_step.load()
    patched, _ = multidiffusion(model=model, tile_grid=layout, weights="narrow gaussian")
    scene = Scene.random(multi_step.config, SIZE, grid=TileGrid(*SIZE, 8, 8, 2))
    assert relative_error(run_guider(patched, scene), run_guider(model, scene)) < 1e-5
    other = Scene.random(multi_step.config, SIZE, grid=TileGrid(*SIZE, 8, 8, 4))
    with pytest.raises(ValueError, match=r"made for 8 tiles of 8x8 cells .*, the model for 6 tiles of 8x8"):
        run_guider(patched, other)


# --- Encode Patch Prompts --------------------------------------------------------------------------------------------


def test_identical_texts_are_encoded_once(host):
    import nodes

    from realisr.nodes.patch_prompts import EncodePatchPrompts

    clip = tiled.small_clip()
    prompts = ["a red roof", "", "grass", "a red roof", "grass", "a red roof"]
    with CountedCalls(clip, "encode_from_tokens_scheduled") as calls:
        (encoded,) = host.run(EncodePatchPrompts, clip=[clip], prompts=prompts)
    assert calls.count == 3
    assert len(encoded) == 6
    for prompt, conditioning in zip(prompts, encoded, strict=True):
        (expected,) = host.run(nodes.CLIPTextEncode, clip=clip, text=prompt)
        assert torch.equal(conditioning[0][0], expected[0][0])
        assert torch.equal(conditioning[0][1]["pooled_output"], expected[0][1]["pooled_output"])
    assert not torch.equal(encoded[0][0][0], encoded[2][0][0])


def test_encoded_prompts_are_what_the_sampler_takes(host, layout):
    from realisr.nodes.patch_prompts import EncodePatchPrompts

    model, clip = tiled.unet_model(), tiled.small_clip()
    (prompts,) = host.run(EncodePatchPrompts, clip=[clip], prompts=[f"tile {index}" for index in range(6)])
    patched, wire = multidiffusion(model=model, tile_grid=layout, positive=text(10), patch_prompts=prompts)
    out = evaluate(patched, randn(1, 4, *SIZE, seed=1), 3.0, wire)
    assert out.isfinite().all()


def test_encoding_can_be_stopped_and_needs_a_text_encoder(host):
    import comfy.model_management

    from realisr.nodes.patch_prompts import EncodePatchPrompts

    with pytest.raises(ValueError, match="no text encoder"):
        host.run(EncodePatchPrompts, clip=[None], prompts=["a"])
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        host.run(EncodePatchPrompts, clip=[tiled.small_clip()], prompts=["a"])

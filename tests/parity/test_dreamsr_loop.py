"""DreamSR in tiles, each with its own prompt, against the reference: degradation removal and the texture stage."""

from __future__ import annotations

import pytest
import torch

from _pack import load_pack
from harness.dreamsr import Scene, apply_control, load_control, load_flux, velocity

from . import golden

load_pack()

TOLERANCE, RAW_TOLERANCE = 5e-5, 1e-4

LOOPS = golden.cases("dreamsr_loop", "flux")
REMOVALS = golden.cases("dreamsr_removal", "flux")


def inputs(case) -> golden.Case:
    return golden.Case(case.path, case.parameters.get("inputs", f"{case.name}/").split("/")[0], {})


@pytest.fixture(scope="module")
def flux(host):
    return load_flux(host, "golden_flux_dev.safetensors", golden.weights("flux_dev", "flux")[1])


def tile_scene(given: golden.Case, latent: torch.Tensor, tile: int, t: float = 0.9) -> Scene:
    own = slice(tile, tile + 1)
    return Scene(
        latent, latent, given["in/txt_global"], given["in/pooled_global"], given["in/txt_tiles"][own],
        given["in/pooled_tiles"][own], t,
    )


def tiled(case, flux, control, latent):
    """The FLUX model in the case's tiles, each with its own local prompt, and its conditioning."""
    from realisr.host.dreamsr.patch_prompts import with_patch_prompts
    from realisr.host.tiling.sampling import Tiling
    from realisr.models.tiling import TileGrid

    parameters, given = case.parameters, inputs(case)
    grid = TileGrid(*parameters["latent_hw"], parameters["tile"], parameters["tile"], parameters["overlap"], 2)
    tiling = Tiling(grid, weights=parameters["weights"])
    scene = tile_scene(given, latent, 0)
    if not parameters["control"]:
        return tiling.apply(flux), scene.positive
    branch = parameters.get("text_branch", True)
    model, positive, _ = apply_control(flux, control, scene, local=None, text_branch=branch)
    prompts = [tile_scene(given, latent, tile).local for tile in range(len(grid))]
    return tiling.apply(model), with_patch_prompts(positive, grid, prompts, "control")


def load_case_control(host, case):
    stated = {name: case.parameters[name] for name in ("dit_blocks", "text_residual")}
    weights = golden.weights("mm_controlnet", "flux")[1]
    return load_control(host, f"golden_{case.name}.safetensors", weights, stated)


@pytest.mark.parametrize("case", REMOVALS[:1])
def test_controlled_tiles(host, flux, case):
    """Tiles each equal to a canvas of their own."""
    control, z = load_case_control(host, case), case["in/z_lq"]
    model, positive = tiled(case, flux, control, z)
    result = velocity(model, positive, tile_scene(case, z, 0))
    total, count = torch.zeros_like(z), torch.zeros_like(z)
    for tile, (top, bottom, left, right) in enumerate(case.parameters["boxes"]):
        place = (..., slice(top, bottom), slice(left, right))
        alone = tile_scene(case, z[place], tile)
        total[place] += velocity(*apply_control(flux, control, alone)[:2], alone)
        count[place] += 1
    golden.assert_within(result, total / count, 1e-5)


@pytest.mark.parametrize("case", LOOPS)
def test_texture_stage(host, flux, case):
    import comfy.samplers
    from comfy.latent_formats import Flux

    given, z_dr = inputs(case), case["mid/z_dr"]
    model, positive = tiled(case, flux, load_case_control(host, case), z_dr)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    with torch.inference_mode():
        raw = guider.sample(
            given["in/noise"].clone(), Flux().process_out(z_dr), comfy.samplers.sampler_object("euler"),
            given["in/sigmas"], disable_pbar=True, seed=0,
        )
    golden.assert_within(raw, case["out/latent_raw"], RAW_TOLERANCE)
    golden.assert_within(Flux().process_in(raw), case["out/latent"], TOLERANCE)


@pytest.mark.parametrize("case", [case for case in REMOVALS if not case.id.endswith("one_tile")])
def test_degradation_removal(host, flux, case):
    import comfy.samplers
    from comfy.latent_formats import Flux

    from realisr.host.dreamsr.acceleration import remove_degradation
    from realisr.host.dreamsr.forward_lora import with_forward_lora

    z_lq = inputs(case)["in/z_lq"]
    model, positive = tiled(case, flux, load_case_control(host, case), z_lq)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    lora = golden.weights("dreamsr_ra_lora", "flux")[1]
    with torch.inference_mode():
        patched = with_forward_lora(model, lora, 1.0, "golden")
        raw = remove_degradation(guider, patched, Flux().process_out(z_lq), case.parameters["t_s"])
    golden.assert_within(Flux().process_in(raw), case["out/z_dr"], TOLERANCE)

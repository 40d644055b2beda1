"""DreamSR's two stages against the reference, on the host's FLUX: one tiled forward with the LoRA, then 16 steps."""

from __future__ import annotations

import pytest
import torch

from harness.dreamsr import load_control, load_flux
from parity import flux_oracle, golden
from parity.flux_oracle import file_parameters
from parity.flux_oracle import inputs as given

LATENT_TOLERANCE, RAW_TOLERANCE = 5e-5, 1e-4

pytestmark = pytest.mark.slow


def weights(case, part: str):
    """Of the case's `model`, `control` or `lora`, by the name that its file gives."""
    return golden.weights(file_parameters(case)[part], "flux")[1]


@pytest.fixture
def flux(host, case):
    return load_flux(host, f"golden_{file_parameters(case)['model']}.safetensors", weights(case, "model"))


def entry(text, pooled, guidance: float | None = None):
    return [[text, {"pooled_output": pooled} | ({} if guidance is None else {"guidance": guidance})]]


def method(host, flux, case):
    """The method and the tiles as the case has them."""
    from realisr.host.dreamsr.control.conditioning import ApplyOptions
    from realisr.host.dreamsr.lora import AccelerationLoRA
    from realisr.host.dreamsr.restore import DreamSR
    from realisr.models.tiles.grid import TileGrid

    inputs, stated = given(case), case.parameters
    control = None
    if stated.get("control", True):
        told = {name: stated[name] for name in ("dit_blocks", "text_residual")}
        control = load_control(host, "golden_stages.safetensors", weights(case, "control"), told)
    grid = TileGrid.fitted(tuple(stated["latent_hw"]), (stated["tile"],) * 2, (stated["overlap"],) * 2, 2)
    assert [[b.top, b.top + b.height, b.left, b.left + b.width] for b in grid.boxes] == stated["boxes"]
    texts, pooled = inputs["in/txt_tiles"], inputs["in/pooled_tiles"]
    patches = [entry(texts[i : i + 1], pooled[i : i + 1]) for i in range(len(grid))]
    made = DreamSR(
        model=flux,
        positive=entry(inputs["in/txt_global"], inputs["in/pooled_global"], stated["guidance"]),
        control=control,
        control_options=ApplyOptions(text_branch=stated.get("text_branch", True)),
        lora=AccelerationLoRA(weights(case, "lora"), "golden"),
        patch_prompts=patches if control is not None else None,
        removal_time=stated.get("t_s", 1.0),
        texture_start=stated.get("t", 0.8),
        texture_steps=len(inputs["in/sigmas"]) - 1 if "in/sigmas" in inputs else 1,
        weights=stated.get("weights", "uniform"),
    )
    return made, grid


REMOVAL = golden.cases("dreamsr_removal", "flux")


@pytest.mark.parametrize("case", REMOVAL)
def test_degradation_removal(host, flux, case):
    from realisr.host.dreamsr.restore import clean_latent

    inputs, formats = given(case), flux.model.latent_format
    latent = inputs["in/z_lq"]
    made, grid = method(host, flux, case)
    if "box" in case.parameters:
        from dataclasses import replace

        from realisr.models.tiles.grid import TileGrid

        top, bottom, left, right = case.parameters["box"]
        latent = latent[..., top:bottom, left:right].contiguous()
        grid = TileGrid(bottom - top, right - left, bottom - top, right - left, 0, 2)
        made = replace(made, patch_prompts=made.patch_prompts[:1])
    with torch.inference_mode():
        clean = clean_latent(made, grid, formats.process_out(latent))
    flux_oracle.dreamsr(case).check("z_dr", formats.process_in(clean), case["out/z_dr"], LATENT_TOLERANCE)


LOOP = golden.cases("dreamsr_loop", "flux")


@pytest.mark.slow
@pytest.mark.parametrize("case", LOOP)
def test_one_and_sixteen(host, flux, case):
    from realisr.host.dreamsr.restore import add_texture, clean_latent

    inputs, formats = given(case), flux.model.latent_format
    made, grid = method(host, flux, case)
    with torch.inference_mode():
        clean = clean_latent(made, grid, formats.process_out(inputs["in/z_lq"]))
        restored = add_texture(made, grid, clean, inputs["in/noise"], 0)
    judge = flux_oracle.dreamsr(case)
    judge.check("z_dr", formats.process_in(clean), case.get("mid/z_dr"), RAW_TOLERANCE)
    judge.check("latent_raw", restored, case["out/latent_raw"], RAW_TOLERANCE)
    judge.check("latent", formats.process_in(restored), case["out/latent"], LATENT_TOLERANCE)


@pytest.mark.parametrize("case", LOOP[:1])
def test_the_schedule(case):
    from realisr.models.dreamsr.schedule import texture_sigmas

    sigmas = given(case)["in/sigmas"]
    golden.assert_within(texture_sigmas(len(sigmas) - 1, case.parameters["t"]), sigmas, 1e-6)

"""VOSR's samplers, whole and tiled, against the reference, in plain torch."""

from __future__ import annotations

import pytest
import torch

from oracles import vosr as oracle
from parity import golden
from parity.test_vosr_dit import load_network
from realisr.models.tiles.grid import tile_starts, vosr_tile_grid
from realisr.models.tiles.weights import gaussian_weight
from realisr.models.vosr import sampling

SAMPLE_TOLERANCE = 3e-5
MASK_TOLERANCE = 1e-6


def velocity_of(case) -> oracle.Velocity:
    scale = case.parameters.get("cfg_scale")
    guidance = sampling.RestorationGuidance(1.0)
    if scale is not None:
        start, end = case.parameters.get("t_start", 0.0), case.parameters.get("t_end", 1.0)
        guidance = sampling.RestorationGuidance(scale, start, end)
    return oracle.Velocity(load_network(case.parameters["model"]), guidance)


def weak_strength(case) -> float:
    return sampling.weak_strength_from_args({"weak_cond_strength_aelq_list": case.parameters.get("weak_list")})


@pytest.mark.parametrize("case", golden.cases("sample_*"))
def test_sampler(case):
    condition = oracle.Condition(case["in/lq"], case["in/z"], weak_strength(case))
    times = sampling.euler_times(case.parameters["n_steps"], case.parameters.get("schedule", "linear"))
    if "mid/t" in case:
        golden.assert_within(times[:-1], case["mid/t"], 1e-6, "times")
    result = oracle.sample(velocity_of(case), case["in/noise"], condition, times)
    golden.assert_within(result, case["out/x0"], SAMPLE_TOLERANCE)


@pytest.mark.parametrize("case", golden.cases("tiled"))
def test_tiled_sampler(case):
    height, width = case.parameters["latent"]
    grid = vosr_tile_grid(height, width, case.parameters["tile_size"], case.parameters["tile_overlap"])
    derived = case.parameters["derived"]
    assert (grid is None) == derived["untiled_fast_path"]
    features = case["in/tile_z"]
    if grid is not None:
        assert (grid.tile_height, grid.overlap) == (derived["lt_size"], derived["lt_overlap"])
        assert (grid.rows, grid.columns) == (derived["h_starts"], derived["w_starts"])
        if "mid/crops_hw_top_left" in case:
            crops = torch.tensor([[8 * v for v in (b.height, b.width, b.top, b.left)] for b in grid.boxes])
            assert torch.equal(crops, case["mid/crops_hw_top_left"])
        features = list(features.split(1))
    condition = oracle.Condition(case["in/lq_latent"], features, weak_strength(case))
    times = sampling.euler_times(case.parameters["n_steps"])
    result = oracle.sample(velocity_of(case), case["in/noise"], condition, times, grid)
    golden.assert_within(result, case["out/x0"], SAMPLE_TOLERANCE)


@pytest.mark.parametrize("case", golden.cases("tile_helpers"))
def test_tile_helpers(case):
    starts = case.keys("grid_*/out/starts")
    masks = case.keys("mask_*/out/w")
    assert starts or masks
    for key in starts:
        length, tile, overlap = map(int, key.split("/")[0].split("_")[1:])
        assert tile_starts(length, tile, overlap) == case[key].tolist(), key
    for key in masks:
        height, width = map(int, key.split("/")[0].removeprefix("mask_").split("x"))
        golden.assert_within(gaussian_weight(height, width), case[key], MASK_TOLERANCE, key)

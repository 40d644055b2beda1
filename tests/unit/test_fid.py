"""FID of scripts/evaluate.py: its sums against NumPy's and SciPy's, its pictures against pyiqa's clean-fid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

import evaluate
from evaluation.fid import Gaussian, features, frechet_distance, patches, prepared
from evaluation.judge import Judge, Settings, features_file
from evaluation.pairs import pair_up
from evaluation.protocols import PROTOCOLS
from evaluation.report import Report
from evaluation.run import fid_of
from harness import quality
from harness.evaluation import picture, save_set
from realisr.services.iqa.offline import exchanged, importable


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 100) -> Gaussian:
    made = Gaussian()
    made.count, made.mean, made._scatter = count, mean, covariance * (count - 1)
    return made


def test_sums_part_by_part_are_numpys():
    rows = np.random.default_rng(0).normal(3, 2, (57, 6)).astype(np.float32)
    found = Gaussian.of([rows[:1], rows[1:20], rows[20:20], rows[20:]])
    assert found.count == 57
    assert np.allclose(found.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-12)
    assert np.allclose(found.covariance, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-12)


def test_the_distance_of_two_diagonal_gaussians_by_hand():
    """(1 - 3)^2 + (2 - 3)^2 + (5 - 4)^2 for means 1 and 3 and deviations 2, 3 and 5, 4."""
    first = gaussian(np.array([1.0, 0.0]), np.diag([4.0, 25.0]))
    second = gaussian(np.array([3.0, 0.0]), np.diag([9.0, 16.0]))
    assert frechet_distance(first, second) == pytest.approx(4 + 1 + 1, abs=1e-9)


def test_the_distance_is_scipys():
    rng = np.random.default_rng(1)
    sets = [rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8)) + rng.normal(size=8) for _ in range(2)]
    (m1, c1), (m2, c2) = ((each.mean(axis=0), np.cov(each, rowvar=False)) for each in sets)
    expected = np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    found = frechet_distance(*(Gaussian.of([each]) for each in sets))
    assert found == pytest.approx(expected, rel=1e-8)


def test_fewer_images_than_features_are_exact():
    """tr sqrt(C1 C2) is also the sum of singular values of the centred features' product."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(5, 40)), rng.normal(size=(7, 40))
    centred = [each - each.mean(axis=0) for each in (first, second)]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / np.sqrt(4 * 6)
    expected = np.square(first.mean(axis=0) - second.mean(axis=0)).sum() - 2 * cross
    expected += (np.square(centred[0]).sum() / 4) + (np.square(centred[1]).sum() / 6)
    assert frechet_distance(Gaussian.of([first]), Gaussian.of([second])) == pytest.approx(expected, rel=1e-6)


def test_a_set_of_one_has_no_distance():
    with pytest.raises(ValueError, match="two images"):
        frechet_distance(Gaussian.of([np.ones((1, 4))]), Gaussian.of([np.ones((3, 4))]))


def test_patches_tile_an_image():
    image = np.arange(7 * 9 * 3).reshape(7, 9, 3)
    assert [each.tolist() for each in patches(image, 0)] == [image.tolist()]
    found = list(patches(image, 3))
    assert len(found) == 6
    assert np.array_equal(found[4], image[3:6, 3:6])
    assert list(patches(image, 8)) == []


def test_pictures_are_clean_fids(tmp_path: Path):
    with importable():
        from pyiqa.archs.fid_arch import ResizeDataset
    for seed, size in enumerate(((64, 80), (310, 400))):
        Image.fromarray(picture(seed, *size)).save(tmp_path / f"{seed}.png")
    for seed, theirs in enumerate(ResizeDataset([tmp_path / "0.png", tmp_path / "1.png"], "clean")):
        ours = prepared(np.asarray(Image.open(tmp_path / f"{seed}.png")))
        assert torch.allclose(ours, (theirs - 128) / 128, atol=1e-6)
        if seed:
            break


@pytest.mark.slow
def test_fid_from_inceptions_file(tmp_path: Path):
    """Every image's features are kept: a second run computes none, and one more method costs its own alone."""
    weights = tmp_path / "weights"
    weights.mkdir()
    state_dict = quality.save_inception(weights)
    save_set(tmp_path, (("near", 3.0), ("far", 60.0)), side=(40, 40))
    settings = Settings(PROTOCOLS["osediff"], ("fid",), weights, "cpu", tmp_path / "kept", has_reference=True)
    judge = Judge(settings)
    pairs = {method: pair_up(tmp_path / method, tmp_path / "reference") for method in ("near", "far")}

    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in settings.features.rglob("*.npy")}

    for pair in pairs["near"] * 2:
        assert judge.row("near", pair).scores == {}
    before = kept()
    assert len(before) == 6
    for pair in pairs["far"]:
        judge.row("far", pair)
    assert len(kept()) == 9 and before.items() <= kept().items()
    near, far = (fid_of(settings, method, pairs[method]) for method in ("near", "far"))
    assert 0 < near < far

    with importable():
        from pyiqa.archs import inception
    with exchanged(inception, "load_pretrained_network", lambda net, *_: net.load_state_dict(state_dict)):
        theirs = inception.InceptionV3(output_blocks=[inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    image = np.asarray(Image.open(tmp_path / "near" / "lake.png"))
    with torch.inference_mode():
        expected = theirs(prepared(image)[None], False, False)[0].flatten(1).numpy()
        assert np.array_equal(features(theirs, image, 41, torch.device("cpu")), np.empty((0, 2048)))
    (path,) = (settings.features / "near").glob("lake.*.npy")
    assert np.allclose(np.load(path), expected, rtol=1e-3, atol=1e-4)


def test_one_image_has_no_fid_and_that_is_a_gap(tmp_path: Path):
    save_set(tmp_path, (("good", 3.0),), names=["lake"])
    pairs = {"good": pair_up(tmp_path / "good", tmp_path / "reference")}
    settings = Settings(PROTOCOLS["osediff"], ("fid",), tmp_path, "cpu", tmp_path / "kept", has_reference=True)
    for whose, path in (("good", pairs["good"][0].result), ("reference", pairs["good"][0].reference)):
        assert path is not None
        (settings.features / whose).mkdir(parents=True)
        np.save(features_file(settings.features, whose, "lake", path), np.ones((1, 8), np.float32))
    found = Report(PROTOCOLS["osediff"], {}, {})
    assert evaluate.fids(settings, pairs, found) == {}
    assert found.gaps == {"fid of good": "FID compares sets; two images (or patches) at least are needed"}

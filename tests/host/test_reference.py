"""Evaluate Against Reference in the host."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from harness import quality


@pytest.fixture(autouse=True)
def _unload(host) -> Iterator[None]:
    yield
    import comfy.model_management

    comfy.model_management.unload_all_models()


def pictures(count: int = 1, height: int = 48, width: int = 40, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)


def noisy(images: torch.Tensor, sigma: float = 0.05) -> torch.Tensor:
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def evaluated(images, reference, **inputs):
    """The node's whole output, its ui too."""
    from realisr.nodes.reference import EvaluateAgainstReference

    given = {"metrics": "psnr, ssim", "channel": "Y of YCbCr", "crop_border": 0} | inputs
    with torch.inference_mode():
        return EvaluateAgainstReference.execute(images=images, reference=reference, **given)


@pytest.mark.parametrize(("channel", "name"), [("Y of YCbCr", "y"), ("RGB", "rgb")])
def test_scores_are_those_of_the_8_bit_images(host, channel: str, name: str):
    from realisr.models.fidelity import psnr, ssim

    reference = pictures(2)
    images = noisy(reference)
    table, scores = evaluated(images, reference, channel=channel, crop_border=3).result
    saved = [(each.clamp(0, 1) * 255).round().movedim(-1, 1) / 255 for each in (images, reference)]
    expected = torch.stack([psnr(*saved, name, 3), ssim(*saved, name, 3)], dim=1).flatten()
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert table.splitlines()[0].split() == ["index", "psnr", "↑", "ssim", "↑"]
    assert len(table.splitlines()) == 3


def test_one_reference_serves_all_images_and_alpha_is_left_out(host):
    reference = pictures(1)
    images = torch.cat([noisy(reference, sigma) for sigma in (0.02, 0.1)])
    _, scores = evaluated(images, reference).result
    with_alpha = torch.cat((images, torch.rand(2, 48, 40, 1)), dim=-1)
    assert evaluated(with_alpha, reference.expand(2, -1, -1, -1)).result[1] == scores
    assert scores[0] > scores[2] and scores[1] > scores[3]


def test_a_baseline_shows_the_gain(host):
    reference = pictures(2)
    images, baseline = noisy(reference, 0.02), noisy(reference, 0.1)
    output = evaluated(images, reference, baseline=baseline)
    sections = output.ui["score_table"][0]["sections"]
    assert [section["title"] for section in sections] == ["images", "baseline", "images minus baseline"]
    ours, theirs, gain = ([row["scores"] for row in section["rows"]] for section in sections)
    assert output.result[1] == [value for row in ours for value in row]
    for row in range(2):
        assert gain[row] == pytest.approx([a - b for a, b in zip(ours[row], theirs[row], strict=True)])
        assert gain[row][0] > 10


def test_it_works_without_pyiqa(host, monkeypatch: pytest.MonkeyPatch):
    from realisr.nodes.reference import EvaluateAgainstReference

    monkeypatch.setitem(sys.modules, "pyiqa", None)
    reference = pictures()
    assert EvaluateAgainstReference.validate_inputs("psnr, ssim") is True
    assert len(evaluated(noisy(reference), reference).result[1]) == 2
    assert "pyiqa" in EvaluateAgainstReference.validate_inputs("psnr, lpips")


def test_lpips_runs_on_the_hosts_device_management(host):
    import comfy.model_management

    folder = host.models / "classifiers" / "pyiqa"
    folder.mkdir(parents=True, exist_ok=True)
    quality.save_lpips(folder)
    try:
        reference = pictures(2, 64, 64)
        images = torch.cat((reference[:1], noisy(reference[1:], 0.08)))
        _, scores = evaluated(images, reference, metrics="lpips, psnr").result
        assert scores[0] == pytest.approx(0, abs=1e-6) and scores[1] == pytest.approx(80)
        assert scores[2] > 0
        names = {type(entry.model.model.network.net).__name__ for entry in comfy.model_management.current_loaded_models}
        assert names == {"LPIPS"}
    finally:
        for name in (quality.LPIPS, quality.ALEXNET):
            (folder / name).unlink()


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("psnr, ssim", None),
        ("psnr, lpipz", "Did you mean lpips"),
        ("musiq", "does not compare with a reference"),
        ("dists", "vgg16-397923af.pth from https://download.pytorch.org"),
        (None, None),
    ],
)
def test_the_metrics_are_checked_before_the_run(host, metrics, message):
    from realisr.nodes.reference import EvaluateAgainstReference

    answer = EvaluateAgainstReference.validate_inputs(metrics)
    assert answer is True if message is None else message in answer


@pytest.mark.parametrize(
    ("images", "reference", "inputs", "message"),
    [
        ((1, 48, 40), (1, 48, 41), {}, "images are 40 x 48 and the reference is 41 x 48 pixels.*nothing is resized"),
        ((3, 48, 40), (2, 48, 40), {}, "3 images and 2 references"),
        ((1, 48, 40), (1, 48, 40), {"crop_border": 15}, "crop_border 15 nothing to compare is left of 40 x 48"),
        ((2, 48, 40), (1, 48, 40), {"baseline": (1, 48, 40)}, "2 images and 1 in the baseline"),
        ((1, 48, 40), (1, 48, 40), {"baseline": (1, 24, 20)}, "baseline are 20 x 24 and the reference is 40 x 48"),
    ],
)
def test_what_cannot_be_compared(host, images, reference, inputs, message: str):
    given = {name: pictures(*value) if name == "baseline" else value for name, value in inputs.items()}
    with pytest.raises(ValueError, match=message):
        evaluated(pictures(*images), pictures(*reference), **given)

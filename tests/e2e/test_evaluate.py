"""scripts/evaluate.py --restore: the LQ folder through a real server first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import evaluate
from harness.evaluation import picture

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["1", 0], "upscale_method": "nearest-exact", "scale_by": 3.0},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "restored"}},
}


def test_a_workflow_is_restored_and_measured(server, capsys, tmp_path: Path):
    """Nearest-exact by 2 is what the references are: nothing is lost."""
    for folder in ("lq", "reference"):
        (tmp_path / folder).mkdir()
    for seed, name in enumerate(("a_LR2", "b_LR2")):
        image = Image.fromarray(picture(seed))
        image.save(tmp_path / "lq" / f"{name}.png")
        image.resize((40, 48), Image.Resampling.NEAREST).save(tmp_path / "reference" / f"{name[0]}_HR.png")
    workflow = tmp_path / "twice.json"
    workflow.write_text(json.dumps(GRAPH), encoding="utf-8")
    arguments = ["--restore", str(workflow), "--server", server.url, "--set", "ImageScaleBy.scale_by=2"]
    arguments += ["--lq", str(tmp_path / "lq"), "--reference", str(tmp_path / "reference")]
    arguments += ["--metrics", "psnr,ssim", "--out", str(tmp_path / "out")]
    assert evaluate.main(arguments) == 0, capsys.readouterr().err
    method = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))["methods"]["twice"]
    assert method["images"].keys() == {"a_LR2", "b_LR2"}
    assert method["mean"] == {"psnr": pytest.approx(80), "ssim": pytest.approx(1)}
    assert (tmp_path / "out" / "worst_twice.png").is_file()
    # Other settings do not find the results of these.
    arguments[arguments.index("ImageScaleBy.scale_by=2")] = "ImageScaleBy.scale_by=4"
    assert evaluate.main(arguments) == 2
    assert "80 x 96 pixels, but 40 x 48" in capsys.readouterr().err


def test_a_restoration_that_fails_stops_the_evaluation(server, capsys, tmp_path: Path):
    (tmp_path / "lq").mkdir()
    (tmp_path / "lq" / "a.png").write_bytes(b"no image")
    workflow = tmp_path / "twice.json"
    workflow.write_text(json.dumps(GRAPH), encoding="utf-8")
    arguments = ["--restore", str(workflow), "--server", server.url, "--lq", str(tmp_path / "lq")]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "restoring with" in capsys.readouterr().err

"""The fixed validation images, the sidecar of crop prompts, and settings of the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from realisr.training.data.config import DataSettings
from realisr.training.data.crop_prompts import CropPrompts, read_crop_prompts
from realisr.training.data.crops import Crop
from realisr.training.data.photos import Photos
from realisr.training.data.reading import PhotoError
from realisr.training.data.validation import validation_batch
from realisr.training.engine.config import RunConfig, ValidationSettings, read_config

SIDE = 24


def write(path: Path, number: int, width: int = 50, height: int = 34) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def data(**values) -> DataSettings:
    return DataSettings.model_validate({"sources": [{"builtin": True}], "crop": SIDE, **values})


def images(*paths: Path, count: int = 4) -> ValidationSettings:
    return ValidationSettings.model_validate({"images": [str(path) for path in paths], "count": count})


def test_validation_images_are_the_middles_and_always_degraded_alike(tmp_path):
    pixels = [write(tmp_path / "set" / f"{number}.png", number) for number in range(3)]
    extra = write(tmp_path / "extra.png", 9)
    (tmp_path / "set" / "1.txt").write_text("one\n")
    batch = validation_batch(data(), images(tmp_path / "set", tmp_path / "extra.png"))
    assert batch is not None
    assert batch["name"] == ["0.png", "1.png", "2.png", "extra.png"] and batch["prompt"] == ["", "one", "", ""]
    for found, whole in zip(batch["hq"], [*pixels, extra], strict=True):
        assert np.array_equal((found * 255).round().numpy(), whole[5:29, 13:37].transpose(2, 0, 1))
    assert batch["lq"].shape == (4, 3, SIDE, SIDE) and not torch.equal(batch["lq"], batch["hq"])
    again = validation_batch(data(), images(tmp_path / "set", count=2))
    assert again is not None and torch.equal(again["lq"], batch["lq"][:2])
    other = validation_batch(data(degradation=[{"kind": "camera"}]), images(tmp_path / "set", count=2))
    assert other is not None and not torch.equal(other["lq"], again["lq"])


def test_no_images_no_validation():
    assert validation_batch(data(), ValidationSettings()) is None


def test_a_validation_image_that_cannot_be_used_is_an_error(tmp_path):
    write(tmp_path / "small.png", 0, 50, 20)
    with pytest.raises(ValueError, match=r"small\.png: it is 50x20 pixels, smaller"):
        validation_batch(data(), images(tmp_path / "small.png"))
    assert validation_batch(data(enlarge=True), images(tmp_path / "small.png")) is not None
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"torn\.jpg: it cannot be read"):
        validation_batch(data(), images(tmp_path / "torn.jpg"))
    with pytest.raises(FileNotFoundError, match=r"there is no .*gone\.png"):
        validation_batch(data(), images(tmp_path / "gone.png"))
    write(tmp_path / "fine.png", 1)
    with pytest.raises(ValueError, match=r"fine\.txt is missing or empty"):
        validation_batch(data(), images(tmp_path / "fine.png"), needs_prompt=True)


def prompts_of(*crops: Crop) -> CropPrompts:
    return CropPrompts("the whole", [(crop, f"crop {number}") for number, crop in enumerate(crops)])


def test_crops_with_prompts_are_cut_where_the_sidecar_has_them(tmp_path):
    pixels = write(tmp_path / "photo.png", 0, 90, 60)
    crops = (Crop(90, 60, 3, 7, SIDE), Crop(45, 30, 0, 6, SIDE), Crop(90, 60, 0, 0, 48))
    (tmp_path / "photo.crops.json").write_text(prompts_of(*crops).text(), encoding="utf-8")
    run = DataSettings.model_validate({"sources": [{"folder": str(tmp_path)}], "crop": SIDE})
    photos = Photos(run, seed=0, needs_crop_prompts=True)
    assert photos.repeats
    shown = {}
    for number in range(30):
        item = photos[number]
        assert item["prompt"] == "the whole"
        shown[item["crop_prompt"]] = item["hq"]
        assert item["name"] == f"{tmp_path}/photo.png#{crops[int(item['crop_prompt'][-1])]}"
    assert shown.keys() == {"crop 0", "crop 1"}
    expected = [
        pixels[7 : 7 + SIDE, 3 : 3 + SIDE],
        np.asarray(Image.fromarray(pixels).resize((45, 30), Image.Resampling.BICUBIC))[6:30, :24],
    ]
    for number, whole in enumerate(expected):
        assert np.abs(shown[f"crop {number}"].numpy() * 255 - whole.transpose(2, 0, 1)).max() <= 1.01


def test_crop_prompts_that_do_not_fit_are_counted(tmp_path):
    for number, text in enumerate(
        [
            prompts_of(Crop(50, 34, 1, 1, SIDE)).text(),
            prompts_of(Crop(70, 34, 1, 1, SIDE)).text(),
            prompts_of(Crop(50, 34, 1, 1, 30)).text(),
            "a prompt",
            json.dumps(
                {
                    "prompt": "x",
                    "crops": [{"width": 50, "height": 34, "left": 40, "top": 0, "side": SIDE, "prompt": "p"}],
                }
            ),
            json.dumps({"prompt": "x", "crops": [{"width": 50.5}]}),
            json.dumps({"prompt": " ", "crops": [{**vars(Crop(50, 34, 0, 0, SIDE)), "prompt": "p"}]}),
            json.dumps([1, 2]),
            None,
        ]
    ):
        write(tmp_path / f"{number}.png", number)
        if text is not None:
            (tmp_path / f"{number}.crops.json").write_text(text)
    run = DataSettings.model_validate({"sources": [{"folder": str(tmp_path)}], "crop": SIDE})
    photos = Photos(run, seed=0, needs_crop_prompts=True)
    items = [photos[number] for number in range(36)]
    assert all("/0.png#" in item["name"] for item in items)
    skipped = {Path(name).stem: reason for name, reason in photos.skipped().items()}
    assert skipped.keys() == set("12345678")
    assert "not for a photo of 50x34" in skipped["1"]
    assert "only for [30]" in skipped["2"]
    assert all("documented form" in skipped[name] for name in "3457")
    assert "empty" in skipped["6"] and "missing" in skipped["8"]


def test_crop_prompts_survive_writing_and_reading():
    written = CropPrompts("Straße, 夜", [(Crop(100, 80, 3, 5, 64), 'a "wall"'), (Crop(64, 64, 0, 0, 64), "sky")])
    found = read_crop_prompts(written.text(), 64)
    assert found.prompt == written.prompt and list(found.crops) == list(written.crops)
    with pytest.raises(PhotoError, match="no crop prompt"):
        read_crop_prompts(CropPrompts("x", []).text(), 64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": []}, "at least 1 item"),
        ({"sources": [{}]}, "needs one of folder"),
        ({"sources": [{"folder": "a", "tars": "b"}]}, "here are folder and tars"),
        ({"sources": [{"builtin": True, "weight": 0}]}, "greater than 0"),
        ({"resize": {"chance": 0.2}}, "needs short_side or factor"),
        ({"resize": {"chance": 0.2, "short_side": 9, "factor": [0.5, 1]}}, "not both"),
        ({"resize": {"chance": 0.2, "factor": [0.5, 1.5]}}, "enlarges"),
        ({"resize": {"chance": 0.2, "short_side": 20}}, "smaller than the crop"),
        ({"degradation": []}, "at least 1 item"),
        ({"croop": 3}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_errors(values, message):
    with pytest.raises(ValidationError, match=message):
        data(**values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "sources: [{folder: x, wieght: 2}]",
            "data.sources.0.wieght: there is no such setting; did you mean 'weight'?",
        ),
        (
            "{sources: [{builtin: true}], degradation: [{kind: simple}, {kind: real_world, first: {gausian: [1, 2]}}]}",
            "data.degradation.1.real_world.first.gausian: there is no such setting; did you mean 'gaussian'?",
        ),
        (
            "{sources: [{builtin: true}], degradation: [{kind: camera, roud_chance: 1}]}",
            "data.degradation.0.camera.roud_chance: there is no such setting; did you mean 'round_chance'?",
        ),
        ("sources: []", "data.sources: tuple should have at least 1 item after validation, not 0, not []"),
    ],
)
def test_a_mistake_in_a_list_is_one_line_with_the_nearest_key_of_its_kind(tmp_path, text, said):
    class Run(RunConfig):
        data: DataSettings

    path = tmp_path / "run.yaml"
    path.write_text(f"out: x\nsteps: 1\ndata: {text if text.startswith('{') else '{' + text + '}'}\n")
    with pytest.raises(ValueError) as error:
        read_config(path, [], Run)
    assert str(error.value).splitlines()[1:] == [f"  {said}"]

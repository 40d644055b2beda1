"""Photos by number: the same whatever was read before, cut from the right place, and never lost without a word."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from realisr.training.data.config import DataSettings
from realisr.training.data.order import Order
from realisr.training.data.photos import Photos
from realisr.training.engine.batches import SampleError, unchanged

SIDE = 24


def pixels(number: int, width: int = 40, height: int = 32) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(7):
        write(tmp_path / "photos" / f"part{number % 2}" / f"{number}.png", pixels(number), f"photo {number}")
    return tmp_path / "photos"


def settings(*sources: dict, **others) -> DataSettings:
    return DataSettings.model_validate({"sources": sources, "crop": SIDE, **others})


def one_folder(folder: Path, **others) -> DataSettings:
    return settings({"folder": str(folder)}, **others)


def same(one: dict, other: dict) -> bool:
    texts = [key for key in one if key != "hq"]
    return torch.equal(one["hq"], other["hq"]) and all(one[key] == other[key] for key in texts)


EVERYTHING = {
    "resize": {"chance": 0.5, "factor": [0.75, 1]},
    "augment": {"flip": True, "rotate": True, "channels": True, "recolour": True},
}


def mixed(folder: Path) -> DataSettings:
    sources = ({"folder": str(folder), "weight": 2}, {"procedural": {"count": 3, "side": 96}})
    return settings(*sources, **EVERYTHING, enlarge=True)


def test_a_sample_is_the_same_whatever_was_read_before(folder):
    photos = Photos(mixed(folder), seed=5)
    numbers = [0, 3, 40, 1, 3, 17, 0]
    once = [photos[number] for number in numbers]
    assert same(once[0], once[-1]) and same(once[1], once[4]) and not torch.equal(once[0]["hq"], once[1]["hq"])
    for number, item in zip(numbers, once, strict=True):
        assert item["number"] == number
        assert same(Photos(mixed(folder), seed=5)[number], item)
        assert same(pickle.loads(pickle.dumps(photos))[number], item)
    assert any(not torch.equal(Photos(mixed(folder), seed=6)[n]["hq"], item["hq"]) for n, item in enumerate(once))


def test_reading_processes_change_nothing_and_a_run_goes_on_where_it_was(folder):
    photos = Photos(mixed(folder), seed=1)
    alone = [photos[number] for number in range(12)]
    for first in (0, 5):
        loader = DataLoader(photos, batch_size=None, sampler=range(first, 12), num_workers=2, collate_fn=unchanged)
        assert all(same(read, item) for read, item in zip(loader, alone[first:], strict=True))


def test_a_crop_is_the_photos_own_pixels_at_the_place_in_its_name(folder):
    photos = Photos(one_folder(folder), seed=0)
    places = set()
    for number in range(30):
        item = photos[number]
        path, _, crop = item["name"].partition("#")
        size, left, top = crop.removesuffix(f":{SIDE}").split("+")
        assert size == "40x32"
        whole = pixels(int(Path(path).stem))
        cut = whole[int(top) : int(top) + SIDE, int(left) : int(left) + SIDE]
        assert item["hq"].dtype == torch.float32 and item["hq"].shape == (3, SIDE, SIDE)
        assert np.array_equal(item["hq"].numpy(), cut.transpose(2, 0, 1).astype(np.float32) / 255)
        assert item["prompt"] == f"photo {Path(path).stem}"
        places.add((left, top))
    assert len(places) > 15


def test_an_epoch_has_every_photo_once(folder):
    photos = Photos(one_folder(folder), seed=3)
    assert len(photos) == 7
    for epoch in range(3):
        names = [photos[number]["prompt"] for number in range(7 * epoch, 7 * epoch + 7)]
        assert sorted(names) == [f"photo {number}" for number in range(7)]
    orders = [[photos[number]["prompt"] for number in range(7 * epoch, 7 * epoch + 7)] for epoch in range(4)]
    assert len(set(map(tuple, orders))) > 1


def test_sources_share_the_samples_by_their_weights(tmp_path):
    for number in range(10):
        write(tmp_path / "many" / f"{number}.png", pixels(number), "many")
    for number in range(2):
        write(tmp_path / "few" / f"{number}.png", pixels(number), "few")
    photos = Photos(
        settings({"folder": str(tmp_path / "many"), "weight": 1}, {"folder": str(tmp_path / "few"), "weight": 3}), 0
    )
    assert len(photos) == 12
    items = [photos[number] for number in range(120)]
    assert Counter(item["prompt"] for item in items) == {"many": 30, "few": 90}
    shown = Counter(item["name"].partition("#")[0] for item in items)
    assert len(shown) == 12
    for kind in ("many", "few"):
        counts = [count for path, count in shown.items() if Path(path).parent.name == kind]
        assert max(counts) - min(counts) <= 1


def test_an_order_of_many_sources():
    sizes, weights = [3, 1, 7, 2, 5, 4, 1, 1, 6, 2, 2, 3], [1, 1, 2, 1, 1, 3, 1, 1, 0.5, 1, 1, 1]
    order = Order(sizes, weights, seed=3)
    epochs = [[order.place(n) for n in range(e * len(order), (e + 1) * len(order))] for e in range(6)]
    for epoch in epochs:
        counts = Counter(source for source, _ in epoch)
        for source, weight in enumerate(weights):
            assert abs(counts[source] - weight / sum(weights) * sum(sizes)) <= 0.5 or counts[source] == 1
    shown = Counter(place for epoch in epochs for place in epoch)
    for source, size in enumerate(sizes):
        times = [shown[source, index] for index in range(size)]
        assert max(times) - min(times) <= 1
    assert [Order(sizes, weights, seed=3).place(n) for n in reversed(range(30))][::-1] == epochs[0][:30]


@pytest.mark.parametrize("chance", [0.0, 0.2, 1.0])
def test_some_photos_are_shrunk_to_a_shorter_side_before(tmp_path, chance):
    write(tmp_path / "photo.png", pixels(0, 90, 60))
    photos = Photos(one_folder(tmp_path, resize={"short_side": 30, "chance": chance}), 0)
    names = [photos[number]["name"].partition("#")[2].partition("+")[0] for number in range(300)]
    counts = Counter(names)
    assert set(counts) <= {"45x30", "90x60"}
    assert abs(counts["45x30"] / 300 - chance) < 0.08


def test_a_shrunk_crop_is_a_crop_of_the_shrunk_photo(tmp_path):
    smooth = np.asarray(Image.fromarray(pixels(0, 20, 14)).resize((100, 70), Image.Resampling.BICUBIC))
    write(tmp_path / "photo.png", smooth)
    photos = Photos(one_folder(tmp_path, resize={"factor": [0.4, 0.9], "chance": 1.0}), 0)
    for number in range(20):
        item = photos[number]
        size, left, top = item["name"].partition("#")[2].partition(":")[0].split("+")
        width, height = map(int, size.split("x"))
        assert 40 <= width <= 90
        whole = np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)).astype(float)
        expected = whole[int(top) : int(top) + SIDE, int(left) : int(left) + SIDE].transpose(2, 0, 1)
        assert np.abs(item["hq"].numpy() * 255 - expected).max() <= 1.01


def test_photos_are_not_enlarged_unless_asked(tmp_path):
    write(tmp_path / "small.png", pixels(0, 30, 12))
    write(tmp_path / "large.png", pixels(1))
    photos = Photos(one_folder(tmp_path, resize={"short_side": 30, "chance": 0.5}), 0)
    items = [photos[number] for number in range(10)]
    assert all("large.png" in item["name"] for item in items)
    (reason,) = {reason for item in items for _, reason in item["skipped"]}
    assert "30x12" in reason and "24" in reason
    assert list(photos.skipped()) == [str(tmp_path / "small.png")]
    enlarged = Photos(one_folder(tmp_path, enlarge=True), 0)
    names = {enlarged[number]["name"].partition("+")[0] for number in range(10)}
    assert names == {f"{tmp_path}/small.png#60x24", f"{tmp_path}/large.png#40x32"}


def test_what_cannot_be_used_is_skipped_with_the_reason(folder):
    whole = io.BytesIO()
    Image.fromarray(pixels(9, 200, 200)).save(whole, "JPEG")
    (folder / "a_torn.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "b_empty.png").write_bytes(b"")
    (folder / "c_text.png").write_text("this is no picture")
    for name in ("a_torn", "b_empty", "c_text"):
        (folder / f"{name}.txt").write_text("a prompt")
    write(folder / "d_without.png", pixels(10))
    write(folder / "e_blank.png", pixels(11), " \n")
    write(folder / "f_latin.png", pixels(12)).with_suffix(".txt").write_bytes("Stra\xdfe".encode("latin-1"))
    Image.fromarray(np.dstack([pixels(13), np.full((32, 40), 200, np.uint8)])).save(folder / "g_glass.png")
    (folder / "g_glass.txt").write_text("a window")
    photos = Photos(one_folder(folder), seed=2, needs_prompt=True)
    items = [photos[number] for number in range(3 * len(photos))]
    assert {item["prompt"] for item in items} == {f"photo {number}" for number in range(7)}
    skipped = {Path(name).name: reason for item in items for name, reason in item["skipped"]}
    assert skipped == {Path(name).name: reason for name, reason in photos.skipped().items()}
    expected = {
        "a_torn.jpg": "cannot be read",
        "b_empty.png": "cannot be read",
        "c_text.png": "cannot be read",
        "d_without.png": ".txt) is missing",
        "e_blank.png": ".txt) is empty",
        "f_latin.png": "no UTF-8",
        "g_glass.png": "transparent",
    }
    assert skipped.keys() == expected.keys()
    assert all(expected[name] in skipped[name] for name in expected)
    # Without the need of a prompt, photos without one are as good as any.
    without = Photos(one_folder(folder), seed=2)
    assert {"d_without.png", "e_blank.png"} <= {
        Path(without[number]["name"].partition("#")[0]).name for number in range(3 * len(without))
    }


def test_a_skipped_sample_is_again_the_same_for_everyone(folder):
    (folder / "part0" / "0.png").write_bytes(b"broken")
    photos = Photos(one_folder(folder), seed=4)
    alone = [photos[number] for number in range(14)]
    assert sum(bool(item["skipped"]) for item in alone) >= 2
    loader = DataLoader(photos, batch_size=None, sampler=range(14), num_workers=2, collate_fn=unchanged)
    assert all(same(read, item) for read, item in zip(loader, alone, strict=True))


def test_photos_that_all_fail_are_an_error(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(SampleError, match=r"100 photos in a row .* 3 different .*cannot be read"):
        Photos(one_folder(tmp_path), 0)[0]


def test_places_without_photos_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image file .*empty"):
        Photos(one_folder(tmp_path / "empty"), 0)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        Photos(one_folder(tmp_path / "nowhere"), 0)


def test_hidden_files_are_no_photos(folder):
    write(folder / ".thumbnails" / "0.png", pixels(0))
    (folder / "._0.png").write_bytes(b"resource fork")
    assert len(Photos(one_folder(folder), 0)) == 7


def test_fixed_crops_come_again_and_random_ones_do_not(folder):
    fixed = Photos(one_folder(folder, fixed_crops=2), seed=0)
    assert fixed.repeats
    by_name: dict[str, torch.Tensor] = {}
    for number in range(70):
        item = fixed[number]
        assert torch.equal(by_name.setdefault(item["name"], item["hq"]), item["hq"])
    assert Counter(name.partition("#")[0] for name in by_name).most_common(1)[0][1] == 2
    free = Photos(one_folder(folder), seed=0)
    assert not free.repeats
    assert len({free[number]["name"] for number in range(70)}) > 50
    assert not Photos(one_folder(folder, fixed_crops=2, augment={"flip": True}), seed=0).repeats


def test_names_of_changed_crops_are_those_of_equal_pixels(folder):
    photos = Photos(one_folder(folder, fixed_crops=1, augment={"flip": True}), seed=0)
    by_name: dict[str, torch.Tensor] = {}
    for number in range(70):
        item = photos[number]
        assert torch.equal(by_name.setdefault(item["name"], item["hq"]), item["hq"])
    assert len(by_name) == 14


def test_turning_and_mirroring_keep_the_pixels(folder):
    plain = Photos(one_folder(folder, fixed_crops=1), seed=0)
    turned = Photos(one_folder(folder, fixed_crops=1, augment={"flip": True, "rotate": True}), seed=0)
    shown = set()
    for number in range(60):
        original, changed = plain[number]["hq"], turned[number]["hq"]
        forms = [torch.rot90(form, k, (1, 2)) for form in (original, original.flip(2)) for k in range(4)]
        (which,) = [k for k, form in enumerate(forms) if torch.equal(form, changed)]
        shown.add(which)
    assert shown == set(range(8))


def test_the_memory_keeps_what_fits(folder):
    photos = Photos(one_folder(folder, memory=0), seed=0)
    kept = Photos(one_folder(folder), seed=0)
    assert all(same(photos[number], kept[number]) for number in range(14))
    assert photos.pictures.used == 0
    assert kept.pictures.used == 7 * 4 * 40 * 32


def test_built_in_photos_leave_out_those_for_measuring():
    from realisr.training.data.builtin import EVALUATION_PHOTOS, TRAINING_PHOTOS, VALIDATION_PHOTOS

    photos = Photos(settings({"builtin": True}), seed=0)
    names = {Path(photos[number]["name"].partition("#")[0]).name for number in range(len(photos))}
    assert names == set(TRAINING_PHOTOS)
    assert not names & {*EVALUATION_PHOTOS, *VALIDATION_PHOTOS}

"""What scripts/restore.py is made of, without a host: photos, scheduler on a virtual clock, pictures, workflows."""

from __future__ import annotations

import heapq
import io
import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from harness.fleet import CALM, Fleet, Weather
from restoring import NoPhotos, RestoreError, pictures
from restoring.attempt import PartialFiles, Recipe
from restoring.graph import Job, read_job, workflow_file, workflow_names
from restoring.ledger import Ledger
from restoring.manifest import Entry, Manifest
from restoring.pictures import PictureError, check_picture, encoded, photograph
from restoring.progress import Lines
from restoring.scheduler import Attempt, Scheduler
from restoring.sources import Photo, find_photos, separator
from restoring.target import LocalTarget
from restoring.watching import Arrivals


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("a.png", "b/c.JPG", "b/d/e.tif", ".hidden/f.png", "b/._c.jpg", "notes.txt", "out/g.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def named(photos) -> list[str]:
    return [photo.name for photo in photos]


def test_sources(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = folder / "out"
    assert named(find_photos([str(folder)], out)) == ["a", "b/c", "b/d/e"]
    assert named(find_photos([str(folder)], out, recursive=False)) == ["a"]
    assert named(find_photos([f"{folder}/**/*.[jJ]*"], out)) == ["b/c"]
    assert named(find_photos([str(folder / "b" / "d"), str(folder / "a.png")], out)) == ["a", "e"]
    (tmp_path / "list.txt").write_text(f"{folder / 'a.png'}\n\n{folder / 'b' / 'c.JPG'}\n", encoding="utf-8")
    assert named(find_photos([f"@{tmp_path / 'list.txt'}"], out)) == ["a", "b/c"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder / 'b' / 'c.JPG'}\n"))
    assert named(find_photos(["-"], out)) == ["c"]
    with pytest.raises(NoPhotos, match="no image matches"):
        find_photos([f"{folder}/*.webp"], out)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jpg").write_bytes(b"x")
    with pytest.raises(RestoreError, match=r"one result: a\."):
        find_photos([str(folder), str(folder / "a.png"), str(tmp_path / "more")], out)
    with pytest.raises(RestoreError, match="would lie beside it"):
        find_photos([str(folder / "a.png")], folder)


def test_names_of_a_batch_keep_clear_of_other_photos():
    assert separator("photo", {"photo"}) == "_"
    assert separator("photo", {"photo", "photo_2"}) == "__"
    assert separator("photo", {"photo", "photo_2", "photo__7"}) == "___"


def test_a_folder_is_watched_until_files_stand_still(folder: Path):
    arrivals = Arrivals(lambda: find_photos([str(folder)], folder / "out"), [], 1, lambda new: None, print)
    assert arrivals.look() == []
    (folder / "a.png").write_bytes(b"more")
    assert named(arrivals.look()) == ["b/c", "b/d/e"]
    assert named(arrivals.look()) == ["a"]
    assert arrivals.look() == []


def test_claims_of_a_killed_client_are_free(tmp_path: Path):
    target = LocalTarget(tmp_path)
    one, two = Manifest(target), Manifest(target)
    assert one.claim("a", None) is None
    taken = two.claim("a", None)
    assert taken is not None
    assert taken.owner == one.client
    # What the system does when a process is killed.
    assert one._presence is not None
    one._presence.close()
    assert two.claim("a", None) is None
    partial = two.partial()
    partial.write_bytes(b"result")
    two.done("a", Entry("", host="h", seed={"1.seed": 3}), {"a.png": 6}, lambda: target.put(partial, "a.png"))
    other = two.partial()
    other.write_bytes(b"other")
    with pytest.raises(FileExistsError, match="the result of another photo, a"):
        two.done("b", Entry(""), {"a.png": 5}, lambda: target.put(other, "a.png"))
    assert (tmp_path / "a.png").read_bytes() == b"result"
    assert two.entries()["a"].seed == {"1.seed": 3}
    one.close()
    two.close()


def simulate(hosts: dict[str, float], photos: int, seed: int, failing: float = 0.0) -> tuple[float, Scheduler]:
    """The makespan of photos over hosts of the given seconds a photo, by the scheduler's own code."""
    scheduler = Scheduler(hosts, jobs=1, retries=1000, seed=seed)
    chance = random.Random(seed)
    for url in hosts:
        scheduler.up(url, 0)
    for photo in range(photos):
        scheduler.add(str(photo))
    now, order, gone = 0.0, 0, set()
    events: list[tuple[float, int, Attempt]] = []
    while scheduler.remaining:
        while (attempt := scheduler.next(now)) is not None:
            order += 1
            heapq.heappush(events, (now + hosts[attempt.host.url], order, attempt))
        if not events or scheduler.wake(now) < events[0][0]:
            now = scheduler.wake(now)
            continue
        now, _, attempt = heapq.heappop(events)
        if attempt in gone:
            scheduler.withdrawn(attempt)
        elif chance.random() < failing:
            scheduler.host_failed(attempt, now, counts=False)
        else:
            gone.update(scheduler.finished(attempt, now))
    return now, scheduler


def test_scheduler_keeps_hosts_busy():
    """The best that can be is photos over the sum of the hosts' rates; a photo more on the slowest is allowed."""
    hosts = {"fast": 1.0, "middle": 2.0, "slow": 5.0}
    seconds, scheduler = simulate(hosts, 300, seed=1)
    bound = 300 / sum(1 / each for each in hosts.values())
    assert seconds <= bound + 5.0
    finished = {url: host.finished for url, host in scheduler.hosts.items()}
    assert sum(finished.values()) == 300
    assert finished["fast"] > finished["middle"] > finished["slow"] > 0


def test_scheduler_gets_through_failures_and_stragglers():
    hosts = {f"host{index}": 10.0 for index in range(50)} | {"straggler": 100_000.0}
    seconds, _ = simulate(hosts, 1000, seed=2, failing=0.05)
    assert seconds < 3 * 1000 * 10 / 50


def test_scheduler_sets_a_photo_aside():
    scheduler = Scheduler(["one", "two"], retries=3)
    scheduler.up("one", 0)
    scheduler.up("two", 7)
    scheduler.add("photo")
    first = scheduler.next(0)
    assert first is not None
    assert first.host.url == "one", "the other has more to do"
    assert not scheduler.photo_failed(first, 1, "node 3")
    assert scheduler.next(1) is None
    second = scheduler.next(scheduler.wake(1))
    assert second is not None
    assert second.host.url == "two"
    assert scheduler.photo_failed(second, 5, "node 3"), "the same twice, on two hosts"


def test_a_copy_that_gives_way_to_one_that_fails_is_begun_again():
    """The first holds the results when the second comes with them, and then cannot write its own."""
    scheduler = Scheduler(["one", "two"], jobs=1)
    scheduler.up("one", 0)
    scheduler.add("before")
    before = scheduler.next(0)
    assert before is not None
    scheduler.finished(before, 1)
    scheduler.add("photo")
    first = scheduler.next(1)
    scheduler.up("two", 0)
    second = scheduler.next(100)
    assert first is not None
    assert second is not None
    assert first.photo == second.photo
    assert not scheduler.photo_failed(first, 101, "cannot be written")
    scheduler.withdrawn(second)
    third = scheduler.next(101)
    assert third is not None
    assert third.photo == "photo"
    scheduler.finished(third, 102)
    assert (scheduler.remaining, scheduler.next(200)) == (0, None)


def test_photos_come_while_the_names_of_a_batch_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a watched folder, from another thread: here with each look at a name."""
    target, photo = LocalTarget(tmp_path), Photo(tmp_path / "photo.png", "photo")
    manifest = Manifest(target)
    ledger = Ledger(Recipe(Job({}, "1", "3")), target, manifest, Lines())
    ledger.photos["photo"] = photo

    def name(_: Photo) -> str:
        ledger.photos[f"new{len(ledger.photos)}"] = photo
        return "photo"

    monkeypatch.setattr(Photo, "name", property(name), raising=False)
    results = PartialFiles([], [3, 4])
    assert ledger.sizes("photo", results) == {"photo_1.png": 3, "photo_2.png": 4}
    manifest.close()


def test_a_host_that_failed_rests_longer_each_time():
    scheduler = Scheduler(["one"], retries=100)
    scheduler.up("one", 0)
    scheduler.add("photo")
    now, rests = 0.0, []
    for _ in range(8):
        attempt = scheduler.next(now)
        assert attempt is not None
        scheduler.host_failed(attempt, now, counts=True)
        rests.append(attempt.host.rests_until - now)
        now += 200
    assert all(0.75 * 2**index <= rest <= 1.25 * 2**index for index, rest in enumerate(rests[:6]))
    assert max(rests) <= 75


def png(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("cut", [0, 1, 8, 20, 40, -1, -5, -12])
def test_a_picture_that_is_cut_is_none(cut: int):
    whole = png(Image.effect_noise((20, 20), 50))
    check_picture(whole)
    with pytest.raises(PictureError):
        check_picture(whole[:cut])
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    with pytest.raises(PictureError, match="damaged"):
        check_picture(bytes(damaged))


def camera_photo(form: str, **options) -> tuple[bytes, bytes]:
    """A photo taken sideways, with a profile; and the profile."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    exif.get_ifd(0x8769)[0xA002] = 10
    exif.get_ifd(0x8769)[0x829A] = 0.01
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, exif=exif, icc_profile=icc, **options)
    return file.getvalue(), icc


@pytest.mark.parametrize("source", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("form", list(pictures.SUFFIX_OF))
def test_what_a_photo_carries_is_kept(source: str, form: str):
    content, icc = camera_photo(source)
    photo = photograph(content, ".x")
    with Image.open(io.BytesIO(photo.upload)) as upright:
        assert upright.size == (6, 10)
        assert upright.getexif().get(0x0112, 1) == 1
        doubled = upright.convert("RGB").resize((12, 20), Image.Resampling.NEAREST)
    result, note = encoded(png(doubled), photo, form, 95)
    check_picture(result)
    assert note == ""
    with Image.open(io.BytesIO(result)) as opened:
        assert opened.format == form.upper()
        exif = opened.getexif()
        assert (exif.get(0x0112, 1), exif[0x010F]) == (1, "Camera")
        if source != "TIFF":  # Pillow writes no such block into one
            assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(0.01)
        assert 0xA002 not in exif.get_ifd(0x8769)
        assert opened.info["icc_profile"] == icc
        assert opened.size == (12, 20)


@pytest.mark.parametrize("form", list(pictures.SUFFIX_OF))
def test_transparency_is_kept(form: str):
    alpha = np.random.default_rng(1).integers(0, 256, (6, 10), np.uint8)
    image = Image.new("RGB", (10, 6), (200, 40, 30))
    image.putalpha(Image.fromarray(alpha))
    photo = photograph(png(image), ".png")
    assert photo.upload == png(image)
    result, note = encoded(png(Image.new("RGB", (10, 6), (200, 40, 30))), photo, form, 100)
    if form == "jpeg":
        assert note == "JPEG has no transparency"
        return
    pixels = (
        tifffile.imread(io.BytesIO(result)) // 257 if form == "tiff" else np.asarray(Image.open(io.BytesIO(result)))
    )
    assert np.array_equal(pixels[..., 3], alpha)
    assert (pixels[..., :3] == (200, 40, 30)).all()


def sixteen_bits(values: np.ndarray) -> bytes:
    """A PNG file of 16 bits, `[height, width, 3]` in uint16; Pillow writes none."""
    import zlib

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = [struct.pack(">I", len(data)) + kind + data for kind, data in [*parts, (b"IEND", b"")]]
    return pictures.PNG + b"".join(chunk + struct.pack(">I", zlib.crc32(chunk[4:])) for chunk in chunks)


def test_sixteen_bits_come_through():
    values = np.random.default_rng(2).integers(0, 65536, (150, 31, 3), np.uint16)
    photo = photograph(camera_photo("JPEG")[0], ".jpg")
    result, _ = encoded(sixteen_bits(values), photo, "tiff", 95)
    assert np.array_equal(tifffile.imread(io.BytesIO(result)), values)
    kept, _ = encoded(sixteen_bits(values), photo, "png", 95)
    assert kept[24] == 16, "bits in the header"
    assert np.array_equal(tifffile.imread(io.BytesIO(encoded(kept, photo, "tiff", 95)[0])), values)


def test_a_result_without_anything_to_keep_stays_byte_for_byte():
    result = png(Image.effect_noise((9, 9), 30).convert("RGB"))
    assert encoded(result, photograph(png(Image.new("RGB", (3, 3))), ".png"), "png", 95) == (result, "")


def test_print_colours_become_srgb():
    file = io.BytesIO()
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(file, "JPEG")
    photo = photograph(file.getvalue(), ".jpg")
    with Image.open(io.BytesIO(photo.upload)) as opened:
        assert opened.mode == "RGB"
        red, green, blue = opened.getpixel((0, 0))
    assert red > 200
    assert max(green, blue) < 60


def test_a_workflow_by_name_with_a_preset_and_sixteen_bits():
    assert "vosr_one_step" in workflow_names()
    job = read_job(workflow_file("vosr_one_step"), [], "LoadImage", "SaveImage", "faithful")
    assert [node["inputs"]["preset"] for node in job.graph.values() if "preset" in node["inputs"]] == ["faithful"]
    assert job.seeds
    deep = job.in_sixteen_bits()
    assert deep.graph[deep.save_node]["inputs"]["format.bit_depth"] == "16-bit"
    assert job.save_class == "SaveImage"
    assert deep.digest != job.digest


def test_a_preset_where_there_is_none(tmp_path: Path):
    nodes = {"1": {"class_type": "LoadImage", "inputs": {}}, "3": {"class_type": "SaveImage", "inputs": {}}}
    (tmp_path / "w.json").write_text(json.dumps(nodes), encoding="utf-8")
    with pytest.raises(RestoreError, match="no node of this workflow has presets"):
        read_job(tmp_path / "w.json", [], "LoadImage", "SaveImage", "faithful")


def test_a_fleet_that_dies_and_hangs():
    """A hundred hosts on a virtual clock: every photo once, and no later than what was lost explains."""
    weather = Weather(between_deaths=1200.0, away=200.0, hanging=0.01, slow_hosts=0.1)
    story = Fleet(hosts=100, photos=5000, weather=weather, seed=3).run()
    assert (story.lost, story.doubled, story.failed) == (0, 0, 0)
    assert story.deaths > 20
    assert story.copies > 0
    # A slow host's two photos, begun just before the end, and a fifth for what hung and died.
    assert story.bound < story.makespan <= 1.2 * story.bound + 2 * weather.photo_seconds / 0.2


def test_a_fleet_without_accidents_reaches_the_bound():
    story = Fleet(hosts=100, photos=5000, weather=CALM, seed=0).run()
    assert (story.lost, story.doubled, story.copies) == (0, 0, 0)
    assert story.makespan == pytest.approx(story.bound)

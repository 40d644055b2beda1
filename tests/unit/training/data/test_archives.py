"""WebDataset shards and parquet tables, against the libraries that write and read them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
import webdataset
from PIL import Image
from pyarrow import parquet

from realisr.training.data.config import DataSettings
from realisr.training.data.photos import Photos
from realisr.training.data.tars import TarPhotos
from realisr.training.engine.batches import SampleError

SIDE = 16


def png(number: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"shard-{shard}.tar")) as writer:
            for number in range(4 * shard, 4 * shard + 4):
                writer.write({"__key__": f"photos/{number:03}", "png": png(number), "txt": f"photo {number} ä"})
    return tmp_path


def settings(tars: object, **others) -> DataSettings:
    return DataSettings.model_validate({"sources": [{"tars": str(tars)}], "crop": SIDE, **others})


def everything(photos: Photos) -> dict[str, torch.Tensor]:
    return {photos[number]["prompt"]: photos[number]["hq"] for number in range(len(photos))}


def test_shards_hold_what_webdataset_reads_from_them(shards):
    found = everything(Photos(settings(shards), seed=0, needs_prompt=True))
    files = [str(path) for path in sorted(shards.glob("*.tar"))]
    expected = {
        sample["txt"]: torch.from_numpy(sample["png"]).permute(2, 0, 1)
        for sample in webdataset.WebDataset(files, shardshuffle=False).decode("rgb")
    }
    assert found.keys() == expected.keys() and len(found) == 8
    assert all(torch.allclose(found[prompt], expected[prompt], atol=1e-6) for prompt in found)


def test_names_with_braces_and_stars(shards):
    assert len(Photos(settings(f"{shards}/shard-{{0..1}}.tar"), 0)) == 8
    assert len(Photos(settings(f"{shards}/*-1.tar"), 0)) == 4
    assert len(Photos(settings(shards / "shard-0.tar"), 0)) == 4
    with pytest.raises(FileNotFoundError, match=r"shard-2\.tar"):
        Photos(settings(f"{shards}/shard-{{0..2}}.tar"), 0)
    with pytest.raises(FileNotFoundError, match="there is no archive"):
        Photos(settings(shards / "none"), 0)


@pytest.mark.parametrize("part", np.linspace(0.05, 0.999, 12))
def test_an_archive_that_breaks_off_gives_what_is_whole(shards, part):
    archive = shards / "shard-0.tar"
    content = archive.read_bytes()
    cut = int(len(content.rstrip(b"\0")) * part)
    archive.write_bytes(content[:cut])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        whole = {entry.name for entry in tar if entry.offset_data + entry.size <= cut}
    noted: dict[str, str] = {}
    found = TarPhotos(str(shards), noted.__setitem__)
    expected = {f"{archive}/{name.removesuffix('.png')}" for name in whole if name.endswith(".png")}
    names = {found.name(index) for index in range(len(found))}
    assert {name for name in names if name.startswith(str(archive))} == expected
    assert "breaks off" in noted[str(archive)]
    assert len(names) == len(expected) + 4
    for index in range(len(found)):
        assert found.picture(index).size == (SIDE, SIDE)


@pytest.mark.parametrize("length", [0, 100, 512, 700])
def test_an_archive_with_nothing_whole_is_noted(shards, length):
    archive = shards / "shard-0.tar"
    archive.write_bytes(archive.read_bytes()[:length])
    photos = Photos(settings(shards), 0)
    assert len(photos) == 4 and "breaks off" in photos.skipped()[str(archive)]


def test_a_cut_archive_is_reported_by_every_sample_and_stops_nothing(shards):
    archive = shards / "shard-0.tar"
    archive.write_bytes(archive.read_bytes()[:3000])
    photos = Photos(settings(shards), seed=0, needs_prompt=True)
    items = [photos[number] for number in range(20)]
    assert all(
        (str(archive), reason) in item["skipped"] for item in items for reason in [photos.skipped()[str(archive)]]
    )
    assert {item["prompt"] for item in items} >= {f"photo {number} ä" for number in range(4, 8)}


def test_an_archive_that_shrinks_while_it_is_used(shards):
    photos = Photos(settings(shards / "shard-0.tar", memory=0), seed=0)
    archive = shards / "shard-0.tar"
    archive.write_bytes(archive.read_bytes()[:1500])
    with pytest.raises(SampleError, match="ends before the file does"):
        photos[0]


def test_files_that_are_no_archives_and_archives_without_photos(shards):
    (shards / "shard-9.tar").write_bytes(b"a letter, not an archive" * 100)
    with pytest.raises(ValueError, match=r"shard-9\.tar is no uncompressed tar"):
        Photos(settings(shards), 0)
    with tarfile.open(shards / "shard-9.tar", "w:gz") as tar:
        tar.add(shards / "shard-0.tar", "0.png")
    with pytest.raises(ValueError, match=r"shard-9\.tar is no uncompressed tar"):
        Photos(settings(shards), 0)
    with webdataset.TarWriter(str(shards / "shard-9.tar")) as writer:
        writer.write({"__key__": "a", "txt": "words"})
        writer.write({"__key__": "b", "txt": "words"})
    with pytest.raises(ValueError, match="no photo in the archives"):
        Photos(settings(shards / "shard-9.tar"), 0)
    photos = Photos(settings(shards), 0)
    assert photos.skipped() == {
        f"{shards / 'shard-9.tar'}/a": "there is no image in this sample, nor in 1 others of its archive"
    }


def test_a_missing_prompt_in_an_archive(shards):
    with webdataset.TarWriter(str(shards / "shard-2.tar")) as writer:
        writer.write({"__key__": "bare", "png": png(20)})
        writer.write({"__key__": "latin", "png": png(21), "txt": "Stra\xdfe".encode("latin-1")})
    photos = Photos(settings(shards), seed=0, needs_prompt=True)
    skipped = dict(entry for number in range(30) for entry in photos[number]["skipped"])
    assert {Path(name).name: reason for name, reason in skipped.items()} == {
        "bare": "its prompt (.txt) is missing: scripts/caption.py writes it",
        "latin": "its .txt is no UTF-8 text",
    }


def table(path: Path, columns: dict) -> DataSettings:
    parquet.write_table(pyarrow.table(columns), path)
    return DataSettings.model_validate({"sources": [{"parquet": str(path)}], "crop": SIDE})


def test_a_table_names_photos_and_their_prompts(tmp_path):
    (tmp_path / "inside").mkdir()
    for number in range(3):
        (tmp_path / "inside" / f"{number}.png").write_bytes(png(number))
    paths = ["inside/0.png", str(tmp_path / "inside" / "1.png"), "inside/2.png", "inside/gone.png"]
    run = table(
        tmp_path / "list.parquet",
        {"image_path": paths, "prompt": ["zero", "one", None, "gone"], "other": [1, 2, 3, 4]},
    )
    photos = Photos(run, seed=0, needs_prompt=True)
    items = [photos[number] for number in range(12)]
    for item in items:
        number = int(Path(item["name"].partition("#")[0]).stem)
        assert item["prompt"] == ("zero", "one")[number]
        expected = np.asarray(Image.open(io.BytesIO(png(number)))).transpose(2, 0, 1)
        assert np.array_equal((item["hq"] * 255).round().numpy(), expected)
    reasons = {Path(name).name: reason for item in items for name, reason in item["skipped"]}
    assert reasons == {
        "2.png": "its prompt (.txt) is missing: scripts/caption.py writes it",
        "gone.png": "there is no such file",
    }


def test_tables_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no table"):
        Photos(DataSettings.model_validate({"sources": [{"parquet": str(tmp_path / "no.parquet")}]}), 0)
    with pytest.raises(ValueError, match=r"no column image_path, only path, prompt"):
        Photos(table(tmp_path / "a.parquet", {"path": ["x"], "prompt": ["y"]}), 0)
    with pytest.raises(ValueError, match="needs rows with a path"):
        Photos(table(tmp_path / "b.parquet", {"image_path": ["x", None]}), 0)
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"c\.parquet is no parquet table"):
        Photos(DataSettings.model_validate({"sources": [{"parquet": str(tmp_path / "c.parquet")}]}), 0)

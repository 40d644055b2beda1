"""scripts/restore.py over a real server, and what it says when something is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import restore
from _pack import ROOT
from restoring.graph import DEFAULT_WORKFLOW, find_nodes, read_job

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": "Load Image"}},
    "2": {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["1", 0], "upscale_method": "nearest-exact", "scale_by": 2},
        "_meta": {"title": "Upscale Image. By"},
    },
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "restored"}},
}


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(GRAPH), encoding="utf-8")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    folder.mkdir()
    Image.new("RGB", (6, 4), (200, 10, 30)).save(folder / "red ä.png")
    Image.new("RGB", (5, 9), (10, 20, 240)).save(folder / "blue.jpg", quality=95)
    (folder / "notes.txt").write_text("not an image", encoding="utf-8")
    return folder


def run(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    status = restore.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def names(folder: Path) -> set[str]:
    """What a person sees in a folder."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_restores_a_folder_and_goes_on_where_it_was(server, capsys, workflow: Path, photos: Path, tmp_path: Path):
    target = tmp_path / "results" / "deep"
    arguments = (photos, target, "--server", f"{server.url}/", "--workflow", workflow)
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    assert names(target) == {"red ä.png", "blue.png"}
    assert Image.open(target / "blue.png").size == (10, 18)
    red = Image.open(target / "red ä.png")
    assert (red.size, red.getpixel((3, 3))) == ((12, 8), (200, 10, 30))
    assert "[2/2] red ä.png" in out

    (target / "blue.png").unlink()
    kept = (target / "red ä.png").stat().st_mtime_ns
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "is there already" in out
    assert (target / "blue.png").is_file()
    assert (target / "red ä.png").stat().st_mtime_ns == kept


def test_a_setting_reaches_the_workflow(server, capsys, workflow: Path, photos: Path, tmp_path: Path):
    arguments = (photos, tmp_path / "out", "--server", server.url, "--workflow", workflow)
    assert run(capsys, *arguments, "--set", "Upscale Image. By.scale_by=3")[0] == 0
    assert Image.open(tmp_path / "out" / "blue.png").size == (15, 27)


def test_one_bad_image_does_not_stop_the_rest(server, capsys, workflow: Path, photos: Path, tmp_path: Path):
    (photos / "a_broken.png").write_bytes(b"this is no picture")
    status, _, err = run(capsys, photos, tmp_path / "out", "--server", server.url, "--workflow", workflow)
    assert status == 1
    assert "a_broken.png: failed" in err
    assert "1 of 3 images failed" in err
    assert names(tmp_path / "out") == {"red ä.png", "blue.png"}


def test_a_batch_becomes_numbered_files(server, capsys, tmp_path: Path, photos: Path):
    graph = {
        **GRAPH,
        "4": {"class_type": "RepeatImageBatch", "inputs": {"image": ["2", 0], "amount": 2}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "restored"}},
    }
    (tmp_path / "batch.json").write_text(json.dumps(graph), encoding="utf-8")
    arguments = (photos, tmp_path / "out", "--server", server.url, "--workflow", tmp_path / "batch.json")
    assert run(capsys, *arguments)[0] == 0
    assert {path.name for path in (tmp_path / "out").glob("blue*")} == {"blue_1.png", "blue_2.png"}
    assert run(capsys, *arguments)[1].count("is there already") == 2


def test_a_run_that_is_given_up_leaves_the_servers_queue(server, capsys, tmp_path: Path, photos: Path):
    graph = {
        "1": GRAPH["1"],
        "2": {"class_type": "RealISRTest_Wait", "inputs": {"seconds": 60.0}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    (tmp_path / "wait.json").write_text(json.dumps(graph), encoding="utf-8")
    arguments = (photos, tmp_path / "out", "--server", server.url, "--workflow", tmp_path / "wait.json")
    status, _, err = run(capsys, *arguments, "--timeout", "0.2", "--retries", "1")
    assert status == 1
    assert err.count("after 0.2 s") == 2
    queue = server.client.get("/queue")
    assert queue["queue_pending"] == []
    (tmp_path / "follow_up.json").write_text(json.dumps(GRAPH), encoding="utf-8")
    assert run(capsys, *arguments[:-1], tmp_path / "follow_up.json")[0] == 0


def test_it_needs_nothing_but_python(tmp_path: Path):
    """An interpreter without installed packages runs it: -S leaves out site-packages, -E the environment."""
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(ROOT / "scripts" / "restore.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (json.dumps({"nodes": [], "links": []}), r"the form ComfyUI's editor saves.*Export \(API\)"),
        (json.dumps({"a": 1}), "is not a workflow in API form"),
        (json.dumps({"3": GRAPH["3"]}), "0 nodes 'LoadImage'"),
        (json.dumps({**GRAPH, "7": GRAPH["1"]}), r"2 nodes 'LoadImage'.*--input-node: 1 \(LoadImage\), 7 "),
    ],
)
def test_a_workflow_that_cannot_be_used(capsys, photos: Path, tmp_path: Path, content: str, message: str):
    path = tmp_path / "workflow.json"
    path.write_text(content, encoding="utf-8")
    status, _, err = run(capsys, photos, tmp_path / "out", "--workflow", path)
    assert status == 2
    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("2.scale_by", "expected NODE.INPUT=VALUE"),
        ("nosuch.scale_by=2", "expected NODE.INPUT=VALUE; the nodes are 1 "),
        ("2.image=x", "no widget 'image', only upscale_method, scale_by"),
        ("2.scale_by=big", "expected a number"),
    ],
)
def test_a_setting_that_cannot_be_made(capsys, photos: Path, workflow: Path, setting: str, message: str):
    status, _, err = run(capsys, photos, photos.parent / "out", "--workflow", workflow, "--set", setting)
    assert status == 2
    assert message in err


def test_folders_that_cannot_be_used(capsys, workflow: Path, photos: Path, tmp_path: Path):
    assert "there is no folder" in run(capsys, tmp_path / "nowhere", tmp_path, "--workflow", workflow)[2]
    (tmp_path / "empty").mkdir()
    assert "has no images" in run(capsys, tmp_path / "empty", tmp_path, "--workflow", workflow)[2]
    assert "are the same" in run(capsys, photos, photos, "--workflow", workflow)[2]
    Image.new("RGB", (2, 2)).save(photos / "blue.png")
    assert "one result: blue" in run(capsys, photos, tmp_path / "out", "--workflow", workflow)[2]


def test_a_server_that_is_not_there(capsys, photos: Path, workflow: Path, tmp_path: Path):
    arguments = (photos, tmp_path / "out", "--workflow", workflow, "--server", "http://127.0.0.1:9")
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "no ComfyUI answers at http://127.0.0.1:9" in err
    assert not (tmp_path / "out").exists()


def test_the_default_workflow_is_shipped():
    setting = "RealISR_RestorationCFGSampler.resize.scale=4"
    job = read_job(DEFAULT_WORKFLOW, [setting], "LoadImage", "SaveImage")
    (sampler,) = find_nodes(job.graph, "RealISR_RestorationCFGSampler")
    assert job.graph[sampler]["inputs"]["resize.scale"] == 4


def test_a_server_and_a_client_that_are_killed(server, start_server, workflow: Path, tmp_path: Path):
    """Nothing is lost or doubled, and every result is what one server makes."""
    photos = tmp_path / "many"
    photos.mkdir()
    for index in range(12):
        Image.effect_noise((16 + index, 12), 60).convert("RGB").save(photos / f"{index:02}.png")
    assert restore.main([str(photos), str(tmp_path / "one"), "--server", server.url, "--workflow", str(workflow)]) == 0
    with start_server() as other:
        arguments = [str(photos), str(tmp_path / "out"), "--workflow", str(workflow), "--jobs", "1"]
        arguments += ["--server", other.url, "--server", server.url]
        script = str(ROOT / "scripts" / "restore.py")
        with subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert "[" in client.stdout.readline()
            client.kill()
        assert other.process is not None
        other.process.kill()
        other.process.wait()
        assert restore.main(arguments) == 0
    assert names(tmp_path / "out") == names(tmp_path / "one")
    for name in names(tmp_path / "one"):
        assert pixels(tmp_path / "out" / name) == pixels(tmp_path / "one" / name)
    assert list((tmp_path / "out" / ".realisr").glob("*.partial")) == []


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_sixteen_bits_of_a_real_server(server, capsys, workflow: Path, photos: Path, tmp_path: Path):
    """A slope that is enlarged has values between those of 8 bits."""
    Image.linear_gradient("L").resize((5, 9)).convert("RGB").save(photos / "blue.jpg", quality=95)
    arguments = (photos, tmp_path / "out", "--server", server.url, "--workflow", workflow, "--format", "tiff")
    status, _, err = run(capsys, *arguments, "--set", "2.upscale_method=bilinear")
    assert (status, err) == (0, "")
    values = tifffile.imread(tmp_path / "out" / "blue.tif")
    assert (values.shape, values.dtype) == ((18, 10, 3), np.uint16)
    assert (values % 257 != 0).any()


def test_scores_go_into_the_report(server, capsys, workflow: Path, photos: Path, tmp_path: Path):
    """Nearest-exact by 2 is what the originals are, and of a metric without its file the report says so."""
    originals = tmp_path / "originals"
    originals.mkdir()
    for path in photos.glob("*.*g"):
        size = (60, 40) if path.suffix == ".png" else (50, 90)
        image = Image.effect_noise(size, 50).convert("RGB")
        image.resize((size[0] // 2, size[1] // 2), Image.Resampling.NEAREST).save(photos / f"{path.stem}.png")
        with Image.open(photos / f"{path.stem}.png") as small:
            small.resize(size, Image.Resampling.NEAREST).save(originals / f"{path.stem}.png")
    (photos / "blue.jpg").unlink()
    Image.new("RGB", (30, 30)).save(photos / "without.png")
    (tmp_path / "no weights").mkdir()
    arguments = [photos, tmp_path / "out", "--server", server.url, "--workflow", workflow]
    arguments += ["--scores", "psnr,musiq", "--reference", originals, "--weights", tmp_path / "no weights"]
    with pytest.raises(SystemExit):
        run(capsys, *arguments)
    assert "--scores needs --report" in capsys.readouterr().err
    status, _, err = run(capsys, *arguments, "--report", tmp_path / "report.json")
    assert status == 0, err
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["scores"]["metrics"] == ["psnr"]
    assert "musiq" in report["scores"]["gaps"]
    scores = {name: values for row in report["photos"] for name, values in row["scores"].items()}
    assert scores["blue.png"] == {"psnr": pytest.approx(80)}
    assert scores["red ä.png"] == {"psnr": pytest.approx(80)}
    assert "has no original" in scores["without.png"]["error"]
    assert run(capsys, *arguments, "--report", tmp_path / "report.json", "--scores", "nosuch")[0] == 2

"""scripts/evaluate.py on folders of small pictures: scores, gaps, resuming, and files that cannot be compared."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import evaluate
from evaluation import judge, plots, published
from evaluation.pairs import EvaluateError, check_files, pair_up
from evaluation.protocols import PROTOCOLS
from evaluation.run import in_order
from evaluation.store import Scores
from harness import quality
from harness.evaluation import NAMES, picture, save_png_16_bit, save_set
from realisr.services.iqa.reference import find_metric

METHODS = (("good", 4.0), ("bad", 16.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_set(tmp_path, METHODS)
    return tmp_path


def run(capsys, folder: Path, *arguments: str | Path, results: tuple[str, ...] = ("good", "bad")) -> tuple[int, str]:
    """Exit status, and what was printed on both streams."""
    given = [str(folder / name) for name in results]
    given += ["--reference", str(folder / "reference"), "--out", str(folder / "out"), "--weights", str(folder / "none")]
    status = evaluate.main([*given, *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "per_image.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "scores.json").read_text(encoding="utf-8"))


def psnr_of(folder: Path, method: str, name: str) -> float:
    """On luma in studio range, in NumPy."""
    weights = np.array([65.481, 128.553, 24.966]) / 255 / 255
    one, other = (np.asarray(Image.open(folder / each / f"{name}.png")) @ weights for each in (method, "reference"))
    return -10 * math.log10(np.square(one - other).mean() + 1e-8)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_of_two_methods(capsys, folder: Path):
    status, printed = run(capsys, folder, "--metrics", "psnr,ssim")
    assert status == 0, printed
    expected = {method: {name: psnr_of(folder, method, name) for name in NAMES} for method, _ in METHODS}
    found = {(row["method"], row["name"]): float(row["psnr"]) for row in rows(folder)}
    assert found == pytest.approx(
        {(method, name): value for method, each in expected.items() for name, value in each.items()}, abs=1e-5
    )
    written = summary(folder)
    for method, values in expected.items():
        assert written["methods"][method]["mean"]["psnr"] == pytest.approx(np.mean(list(values.values())), abs=1e-5)
        assert written["methods"][method]["images"]["lake"]["psnr"] == pytest.approx(values["lake"], abs=1e-5)
    table = (folder / "out" / "table.md").read_text(encoding="utf-8")
    good, bad = (np.mean(list(expected[method].values())) for method in ("good", "bad"))
    assert f"| good | 3 | **{good:.4f}** |" in table and f"| bad | 3 | {bad:.4f} |" in table
    assert "luma (BT.601, studio range)" in table and "- torch 2" in table


def test_rgb_and_the_border_are_the_protocols(capsys, folder: Path):
    def mean(protocol: str) -> float:
        assert run(capsys, folder, "--protocol", protocol, "--metrics", "psnr", "--restart", results=("good",))[0] == 0
        return summary(folder)["methods"]["good"]["mean"]["psnr"]

    pairs = [
        [np.asarray(Image.open(folder / each / f"{name}.png")).astype(float) / 255 for each in ("good", "reference")]
        for name in NAMES
    ]
    expected = np.mean([-10 * np.log10(np.square(one - other).mean() + 1e-8) for one, other in pairs])
    assert mean("plain") == pytest.approx(expected, abs=1e-5)
    luma = np.array([65.481, 128.553, 24.966]) / 255
    inner = [[each[4:-4, 4:-4] @ luma for each in pair] for pair in pairs]
    expected = np.mean([-10 * np.log10(np.square(one - other).mean() + 1e-8) for one, other in inner])
    assert mean("seesr") == pytest.approx(expected, abs=1e-5)


def test_larger_images_are_cut_to_the_centre(capsys, tmp_path: Path):
    """PURE's protocol: a reference of 520 x 516 is compared where a result of 512 x 512 lies in its middle."""
    image = picture(0, 516, 520)
    for name, pixels in (("reference", image), ("pure", image[2:514, 4:516])):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    assert run(capsys, tmp_path, "--protocol", "pure", "--metrics", "psnr", results=("pure",))[0] == 0
    assert summary(tmp_path)["methods"]["pure"]["mean"]["psnr"] == pytest.approx(80)


def test_a_metric_without_its_file_is_a_named_gap(capsys, folder: Path):
    status, _ = run(capsys, folder, "--metrics", "psnr,lpips,fid,piqe")
    assert status == 0
    table = (folder / "out" / "table.md").read_text(encoding="utf-8")
    assert "| method | images | psnr ↑ | piqe ↓ | lpips | fid |" in table
    assert "| missing | missing |" in table
    for name, file in (("lpips", "LPIPS_v0.1_alex-df73285e.pth"), ("fid", "pt_inception-2015-12-05-6726825d.pth")):
        assert f"- {name}: The metric '{name}' needs weights that are not in {folder / 'none'}" in table
        assert f"{file} from https://" in summary(folder)["gaps"][name]


def test_without_pyiqa_the_rest_is_computed(capsys, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert run(capsys, folder)[0] == 0
    written = summary(folder)
    assert set(written["metrics"]) == {"psnr", "ssim"}
    assert "need the Python package pyiqa. Install:" in written["gaps"]["musiq"]


def test_without_references_the_others_are_computed(capsys, folder: Path):
    arguments = [str(folder / "good"), "--metrics", "psnr,piqe", "--out", str(folder / "out")]
    assert evaluate.main(arguments) == 0
    assert "compares with a reference, and there is no --reference" in summary(folder)["gaps"]["psnr"]
    assert summary(folder)["methods"]["good"]["judged"] == {"piqe": 3}


def test_an_image_that_a_metric_refuses_is_named_and_left_out_of_its_mean(capsys, tmp_path: Path):
    save_set(tmp_path, METHODS[:1])
    Image.fromarray(picture(9, 256, 256)).save(tmp_path / "reference" / "big.png")
    Image.fromarray(picture(8, 256, 256)).save(tmp_path / "good" / "big.png")
    (tmp_path / "none").mkdir()
    with quality.small_clips_are_published():
        quality.save_liqe(tmp_path / "none")
        assert run(capsys, tmp_path, "--metrics", "psnr,liqe", results=("good",))[0] == 0
    method = summary(tmp_path)["methods"]["good"]
    assert method["judged"] == {"psnr": 4, "liqe": 1}
    assert method["mean"]["liqe"] == method["images"]["big"]["liqe"]
    assert method["images"]["lake"]["liqe"] is None
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "liqe judged 1 of 4 images" in table and "'liqe' cannot judge an image of 20 x 24 pixels" in table
    assert "- liqe_koniq.pt: SHA-256 " in table


def test_methods_are_named_by_hand_or_by_their_folder(capsys, folder: Path):
    assert run(capsys, folder, f"mine={folder / 'bad'}", "--metrics", "psnr", results=("good",))[0] == 0
    assert list(summary(folder)["methods"]) == ["good", "mine"]
    status, printed = run(capsys, folder, folder / "good", results=("good",))
    assert status == 2 and "'good' cannot be the name of a method" in printed


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose pixels were read for scoring."""
    paths: list[Path] = []
    original = judge.read_pixels

    def reading(path: Path, center_crop: int = 0) -> np.ndarray:
        paths.append(path)
        return original(path, center_crop)

    monkeypatch.setattr(judge, "read_pixels", reading)
    return paths


def test_a_finished_row_is_not_computed_again(capsys, folder: Path, read: list[Path]):
    assert run(capsys, folder, "--metrics", "psnr,ssim")[0] == 0
    first = summary(folder)
    assert len(read) == 12
    read.clear()
    assert run(capsys, folder, "--metrics", "psnr,ssim")[0] == 0
    assert read == [] and summary(folder) == first

    path = folder / "out" / "per_image.csv"
    path.write_bytes(path.read_bytes()[:-9])  # as after a cut of power in the last row
    assert run(capsys, folder, "--metrics", "psnr,ssim")[0] == 0
    assert read == [folder / "bad" / "tower.png", folder / "reference" / "tower.png"]
    assert summary(folder) == first


def test_a_replaced_file_is_scored_again(capsys, folder: Path, read: list[Path]):
    assert run(capsys, folder, "--metrics", "psnr")[0] == 0
    before = summary(folder)["methods"]
    read.clear()
    Image.open(folder / "reference" / "lake.png").save(folder / "good" / "lake.png", compress_level=1)
    assert run(capsys, folder, "--metrics", "psnr")[0] == 0
    assert read == [folder / "good" / "lake.png", folder / "reference" / "lake.png"]
    after = summary(folder)["methods"]
    assert after["good"]["images"]["lake"]["psnr"] == pytest.approx(80)
    assert after["bad"] == before["bad"]


def test_rows_of_other_settings_are_not_mixed(capsys, folder: Path):
    assert run(capsys, folder, "--metrics", "psnr")[0] == 0
    status, printed = run(capsys, folder, "--metrics", "psnr", "--protocol", "plain")
    assert status == 2 and "computed with other settings (protocol)" in printed and "--restart" in printed
    assert run(capsys, folder, "--metrics", "psnr", "--protocol", "plain", "--restart")[0] == 0
    assert len(rows(folder)) == 6


def test_a_file_that_breaks_off_leaves_the_other_rows(capsys, folder: Path, read: list[Path]):
    broken = folder / "good" / "lake.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    status, printed = run(capsys, folder, "--metrics", "psnr")
    assert status == 2 and f"{broken}: cannot be read" in printed
    assert len(rows(folder)) == 5
    assert not (folder / "out" / "table.md").exists()
    broken.write_bytes(whole)
    read.clear()
    assert run(capsys, folder, "--metrics", "psnr")[0] == 0
    assert read == [broken, folder / "reference" / "lake.png"]


# --- many images -----------------------------------------------------------------------------------------------------


def test_images_come_and_go_one_pair_at_a_time(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However many there are: those alive are counted each time one is read."""
    save_set(tmp_path, METHODS, names=[f"image_{number:03}" for number in range(40)])
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Watched(np.ndarray):
        __hash__ = object.__hash__

    original = judge.read_pixels

    def reading(path: Path, center_crop: int = 0) -> np.ndarray:
        nonlocal most
        image = original(path, center_crop).view(Watched)
        alive.add(image)
        most = max(most, len(alive))
        return image

    monkeypatch.setattr(judge, "read_pixels", reading)
    assert run(capsys, tmp_path, "--metrics", "psnr,ssim")[0] == 0
    assert len(rows(tmp_path)) == 80
    assert most <= 4 and len(alive) <= 2


class LazyPool:
    """Runs a task when its result is asked for, and counts those that wait."""

    def __init__(self) -> None:
        self.waiting = self.most = 0

    def submit(self, function, item):
        pool = self
        pool.waiting += 1
        pool.most = max(pool.most, pool.waiting)

        class Task:
            def result(self):
                pool.waiting -= 1
                return function(item)

        return Task()


def test_several_processes_are_fed_as_they_finish():
    """Results keep the order, and neither they nor the tasks pile up."""
    pool, drawn = LazyPool(), []

    def items():
        for number in range(50):
            drawn.append(number)
            yield number

    results = in_order(pool, lambda number: number * 2, items(), 4)  # type: ignore[arg-type]
    assert next(results) == 0
    assert len(drawn) == 4
    assert list(results) == [number * 2 for number in range(1, 50)]
    assert pool.most == 4


@pytest.mark.slow
def test_two_processes_find_what_one_does(capsys, folder: Path):
    assert run(capsys, folder, "--metrics", "psnr,ssim,piqe")[0] == 0
    alone = summary(folder)
    status, printed = run(capsys, folder, "--metrics", "psnr,ssim,piqe", "--restart", "--jobs", "2")
    assert status == 0, printed
    assert summary(folder) == alone


# --- files that cannot be compared -----------------------------------------------------------------------------------


def save_odd_files(folder: Path) -> dict[str, str]:
    """Results that are no 8-bit RGB images, by name; returns what is said of each."""
    image = Image.fromarray(picture(0))
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("1").save(folder / "bilevel.png")
    Image.fromarray(np.zeros((24, 20), np.uint16)).save(folder / "deep_grey.png")
    save_png_16_bit(folder / "deep.png")
    image.save(folder / "keyed.png", transparency=(1, 2, 3))
    image.save(folder / "moving.webp", save_all=True, append_images=[image.rotate(180)])
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    image.resize((21, 24)).save(folder / "wide.png")
    image.resize((9, 9)).save(folder / "tiny.png")
    (folder / "no_image.png").write_bytes(b"no image")
    return {
        "alpha.png": "has alpha",
        "palette.png": "a palette image",
        "cmyk.jpg": "CMYK",
        "bilevel.png": "of mode 1",
        "deep_grey.png": "more than 8 bits",
        "deep.png": "more than 8 bits",
        "keyed.png": "has alpha",
        "moving.webp": "an animation or a stack of 2",
        "turned.jpg": "turned by an EXIF tag",
        "wide.png": "21 x 24 pixels, but 20 x 24 in ",
        "tiny.png": "9 x 9 pixels are too few, 11 are needed",
        "no_image.png": "cannot be read",
    }


def test_files_that_cannot_be_compared_are_all_named_before_anything_is_computed(capsys, tmp_path: Path, monkeypatch):
    (tmp_path / "good").mkdir()
    (tmp_path / "reference").mkdir()
    said = save_odd_files(tmp_path / "good")
    for name in said:
        Image.fromarray(picture(0)).save(tmp_path / "reference" / f"{Path(name).stem}.png")
    Image.fromarray(picture(0)).convert("L").save(tmp_path / "good" / "mono.png")
    Image.fromarray(picture(0)).save(tmp_path / "reference" / "mono.png")
    monkeypatch.setattr("evaluation.pairs.NAMED_AT_MOST", 100)
    status, printed = run(capsys, tmp_path, "--metrics", "ssim", results=("good",))
    assert status == 2 and not (tmp_path / "out").exists()
    lines = [line for line in printed.splitlines() if line.startswith("  ")]
    for name, complaint in said.items():
        assert any(f"{name}: " in line and complaint in line for line in lines), (name, printed)
    assert "mono.png" not in printed


def test_long_lists_are_cut(tmp_path: Path):
    for number in range(20):
        Image.fromarray(picture(0)).convert("P").save(tmp_path / f"{number}.png")
    with pytest.raises(EvaluateError, match=r"20 of the files .*[\s\S]* and 8 more"):
        check_files(pair_up(tmp_path, None))


def test_missing_partners_are_named(capsys, folder: Path):
    (folder / "good" / "lake.png").unlink()
    (folder / "reference" / "tower.png").unlink()
    status, printed = run(capsys, folder, "--metrics", "psnr", results=("good",))
    assert status == 2
    assert "without a partner" in printed and "  tower.png" in printed
    assert "without a result" in printed and "  lake.png" in printed
    assert run(capsys, folder, "--metrics", "psnr", "--subset", results=("good",))[0] == 0
    assert list(summary(folder)["methods"]["good"]["images"]) == ["street"]


def test_names_may_differ_in_a_role(tmp_path: Path):
    for name in ("results/Canon_001_LR4.png", "results/Nikon_2_LR4.png", "gt/Canon_001_HR.png", "gt/Nikon_2_HR.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(0)).save(tmp_path / name)
    pairs = pair_up(tmp_path / "results", tmp_path / "gt")
    assert [(pair.name, pair.reference and pair.reference.name) for pair in pairs] == [
        ("Canon_001_LR4", "Canon_001_HR.png"),
        ("Nikon_2_LR4", "Nikon_2_HR.jpg"),
    ]
    Image.fromarray(picture(0)).save(tmp_path / "gt" / "Canon_001_GT.png")
    with pytest.raises(EvaluateError, match="several files could be one picture"):
        pair_up(tmp_path / "results", tmp_path / "gt")


def test_other_names_are_paired_in_order_on_request(tmp_path: Path):
    for name in ("results/b.png", "results/c.png", "gt/1.png", "gt/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(0)).save(tmp_path / name)
    with pytest.raises(EvaluateError, match="--in-order pairs the sorted files"):
        pair_up(tmp_path / "results", tmp_path / "gt")
    pairs = pair_up(tmp_path / "results", tmp_path / "gt", in_order=True)
    assert [pair.reference and pair.reference.name for pair in pairs] == ["1.png", "2.png"]
    (tmp_path / "gt" / "2.png").unlink()
    with pytest.raises(EvaluateError, match="2 results and 1 files"):
        pair_up(tmp_path / "results", tmp_path / "gt", in_order=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "psnr,ssimm"], "no metric named 'ssimm'"),
        (["--compare-with", "vicr-table-9"], "no table 'vicr-table-9'; there are: .*osediff-realsr"),
        (["--compare-with", "vicr-table-4"], r"figures of vicr-table-4 \(VICR, .*\) are not part of this repository"),
        (["--restore", "workflow.json"], "--restore needs --lq"),
        (["--restore", "no_such.json", "--lq", "."], "there is no workflow file no_such.json"),
        (["--device", "warp:9"], "--device warp:9 cannot be used here"),
    ],
)
def test_what_cannot_be_asked_for(capsys, folder: Path, arguments: list[str], message: str):
    status, printed = run(capsys, folder, *arguments)
    assert status == 2 and re.search(message, printed), printed


def test_folders_without_images(capsys, folder: Path):
    (folder / "empty").mkdir()
    assert "has no images" in run(capsys, folder, results=("empty",))[1]
    assert "there is no folder" in run(capsys, folder, results=("nowhere",))[1]
    assert "nothing to evaluate" in run(capsys, folder, results=())[1]


# --- published figures -----------------------------------------------------------------------------------------------


def test_ours_stand_beside_published_ones(capsys, folder: Path):
    status, printed = run(capsys, folder, "--metrics", "psnr", "--compare-with", "osediff-realsr", results=("good",))
    assert status == 0
    assert "| OSEDiff (published) | 25.1511 | 0.7341 |" in printed
    assert f"| good (ours) | {summary(folder)['methods']['good']['mean']['psnr']:.4f} | - |" in printed
    assert "Not comparable" not in printed
    _, printed = run(capsys, folder, "--metrics", "psnr", "--compare-with", "vicr-table-1", results=("good",))
    assert "**Not comparable as it stands**: it was made with the protocol vicr, ours with osediff." in printed
    assert "Not here: only VICR's own figures" in printed


@pytest.mark.parametrize("name", published.table_names())
def test_a_published_table_is_whole_and_has_a_source(name: str):
    table = published.read_table(name)
    assert "arXiv" in table.source and table.title and table.test_set
    assert table.protocol in {*PROTOCOLS, ""}
    for _, values in table.rows:
        assert values
        for metric in values:
            assert metric == find_metric(metric).name
            assert not table.protocol or metric in PROTOCOLS[table.protocol].metrics


def test_a_table_of_ones_own(tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text('{"title": "t", "source": "s", "rows": [{"method": "m", "values": {"psnr": 30}}]}', "utf-8")
    assert published.read_table(str(path)).rows == (("m", {"psnr": 30.0}),)
    path.write_text('{"title": "t", "rows": []}', "utf-8")
    with pytest.raises(EvaluateError, match=r"mine\.json is no table of figures: KeyError: 'source'"):
        published.read_table(str(path))


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda each: each.name)
def test_a_protocol_names_metrics_that_exist_and_its_source(protocol):
    assert [find_metric(name).name for name in protocol.metrics] == list(protocol.metrics)
    assert protocol.source
    assert protocol.name in ("osediff", "plain") or protocol.assumed


def test_protocols_and_tables_are_listed(capsys):
    assert evaluate.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in (*PROTOCOLS, *published.table_names()):
        assert f"{name}: " in printed


# --- pictures --------------------------------------------------------------------------------------------------------


def test_the_plot_and_the_worst_are_drawn(capsys, folder: Path):
    (folder / "lq").mkdir()
    Image.fromarray(picture(0, 6, 5)).save(folder / "lq" / "lake.png")
    assert run(capsys, folder, "--metrics", "psnr,piqe", "--lq", folder / "lq")[0] == 0
    assert Image.open(folder / "out" / "trade_off.png").size == (960, 720)
    sheet = Image.open(folder / "out" / "worst_bad.png")
    assert sheet.size[0] == plots.MARGIN + 3 * (plots.PANEL + plots.MARGIN)
    assert sheet.size[1] > 3 * plots.PANEL


def test_the_sheet_shows_the_files(tmp_path: Path):
    for name, colour in (("good", (200, 30, 10)), ("reference", (10, 30, 200))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 10), colour).save(tmp_path / name / "a.png")
    plots.worst_sheet(tmp_path / "sheet.png", pair_up(tmp_path / "good", tmp_path / "reference"), ["a: psnr 1"])
    sheet = Image.open(tmp_path / "sheet.png")
    middle = 2 * plots.LABEL + plots.PANEL // 4
    first = plots.MARGIN + plots.PANEL // 2
    second = first + plots.PANEL + plots.MARGIN
    assert sheet.getpixel((first, middle)) == (200, 30, 10)
    assert sheet.getpixel((second, middle)) == (10, 30, 200)


def test_the_worst_come_first():
    values = np.array([[3.0], [1.0], [math.nan], [2.0]])
    scores = Scores(("a", "b", "c", "d"), values, ())
    assert plots.worst_of(scores, 0, lower_is_better=False) == [1, 3, 0]
    assert plots.worst_of(scores, 0, lower_is_better=True, count=2) == [0, 3]


def test_a_plot_that_cannot_be_drawn_is_a_gap(capsys, folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert run(capsys, folder, "--metrics", "psnr")[0] == 0
    assert "needs a metric of fidelity and one of perception" in summary(folder)["gaps"]["trade_off.png"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(capsys, folder, "--metrics", "psnr,piqe", "--restart")[0] == 0
    assert "pip install matplotlib" in summary(folder)["gaps"]["trade_off.png"]

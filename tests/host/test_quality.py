"""The quality nodes in the host: scoring, choosing, and metric models on its device management."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import quality


@pytest.fixture(scope="module")
def weights(host) -> Path:
    """models/classifiers/pyiqa with LIQE, CLIPIQA (small) and MUSIQ in it, random."""
    folder = host.models / "classifiers" / "pyiqa"
    folder.mkdir(parents=True, exist_ok=True)
    quality.save_liqe(folder)
    quality.save_clipiqa(folder)
    quality.save_musiq(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_clips() -> Iterator[None]:
    with quality.small_clips_are_published():
        yield


@pytest.fixture(autouse=True)
def _unload(host):
    yield
    import comfy.model_management

    comfy.model_management.unload_all_models()


def pictures(count: int = 1, side: int = 64, seed: int = 0, channels: int = 3) -> torch.Tensor:
    coarse = torch.rand(count, channels, 9, 9, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return smooth.clamp(0, 1).movedim(1, -1)


def piqe(image: torch.Tensor) -> float:
    """By pyiqa alone."""
    from realisr.services.iqa.offline import importable

    with importable():
        import pyiqa
    return pyiqa.create_metric("piqe", device="cpu")(image[None, ..., :3].movedim(-1, 1)).item()


def execute(node, **inputs):
    """The node's whole output, its ui too."""
    with torch.inference_mode():
        return node.execute(**inputs)


def select(images, **inputs):
    from realisr.nodes.quality import NRIQABestOfN

    given = {"metrics": "piqe", "candidates": "auto", "image_count": 1} | inputs
    wrapped = {name: value if name == "prompts" else [value] for name, value in given.items()}
    return execute(NRIQABestOfN, images=images, **wrapped)


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_scores_are_pyiqas_own(host):
    from realisr.nodes.quality import NRIQAScore

    images = pictures(3)
    table, scores = host.run(NRIQAScore, images=images, metrics="piqe")
    assert scores == pytest.approx([piqe(image) for image in images], rel=1e-6)
    assert len(set(scores)) == 3
    header, *rows = table.splitlines()
    assert header.split() == ["index", "piqe", "↓"]
    assert [row.split() for row in rows] == [[str(index), f"{score:.4f}"] for index, score in enumerate(scores)]


def test_scores_list_all_metrics_of_an_image_before_the_next(host):
    from realisr.nodes.quality import NRIQAScore

    images = pictures(2)
    _, both = host.run(NRIQAScore, images=images, metrics="piqe, entropy")
    _, alone = host.run(NRIQAScore, images=images, metrics="entropy")
    assert both[1::2] == alone
    ui = execute(NRIQAScore, images=images, metrics="piqe, entropy").ui
    (table,) = ui["score_table"]
    assert table["metrics"] == [
        {"name": "piqe", "lower_is_better": True},
        {"name": "entropy", "lower_is_better": False},
    ]
    assert [row["scores"] for row in table["sections"][0]["rows"]] == [both[:2], both[2:]]


def test_alpha_is_left_out_and_values_are_clipped(host):
    from realisr.nodes.quality import NRIQAScore

    plain = pictures(1)
    loud = torch.cat((plain + 1e-3 * (plain == 1) - 1e-3 * (plain == 0), torch.rand(1, 64, 64, 1)), dim=-1)
    assert host.run(NRIQAScore, images=loud, metrics="piqe")[1] == host.run(NRIQAScore, images=plain, metrics="piqe")[1]


@pytest.mark.usefixtures("weights")
def test_the_default_metrics_that_a_cpu_can_run(host):
    from realisr.nodes.quality import NRIQAScore

    _, scores = host.run(NRIQAScore, images=pictures(2, 224), metrics="liqe, musiq, clipiqa")
    assert all(math.isfinite(score) for score in scores)
    assert 1 <= scores[0] <= 5 and 0 <= scores[2] <= 1
    assert scores[:3] != scores[3:]


# --- before the run --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("liqe, musiq, clipiqa, piqe", None),
        ("musik", "Did you mean musiq"),
        ("maniqa", "ckpt_koniq10k.pt from https://"),
        ("psnr", "compares an image with a reference"),
        (None, None),
    ],
)
def test_both_nodes_know_before_the_run(metrics, message):
    from realisr.nodes.quality import NRIQABestOfN, NRIQAScore

    for answer in (
        NRIQAScore.validate_inputs(metrics),
        NRIQABestOfN.validate_inputs(None if metrics is None else [metrics]),
    ):
        if message is None:
            assert answer is True
        else:
            assert message in answer


def test_missing_weights_stop_a_run_with_linked_metrics(host, weights):
    from realisr.nodes.quality import NRIQAScore

    with pytest.raises(ValueError, match=r"'maniqa' needs weights that are not in .*classifiers.pyiqa.*ckpt_koniq10k"):
        host.run(NRIQAScore, images=pictures(), metrics="piqe, maniqa")


def test_weights_are_found_in_any_classifiers_folder(host, weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import folder_paths

    from realisr.host.iqa import weights_folder

    assert weights_folder() == weights
    places = [str(tmp_path / "empty"), str(tmp_path / "other")]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "classifiers", (places, {""}))
    assert weights_folder() == tmp_path / "empty" / "pyiqa"
    (tmp_path / "other" / "pyiqa").mkdir(parents=True)
    assert weights_folder() == tmp_path / "other" / "pyiqa"


# --- models on the host ----------------------------------------------------------------------------------------------


def loaded() -> dict[str, torch.nn.Module]:
    """Metric networks that the host holds now, by architecture."""
    import comfy.model_management

    from realisr.host.iqa import MetricPatcher

    patchers = [entry.model for entry in comfy.model_management.current_loaded_models]
    return {
        type(patcher.model.network.net).__name__: patcher.model
        for patcher in patchers
        if isinstance(patcher, MetricPatcher)
    }


@pytest.mark.usefixtures("weights")
def test_a_metric_is_loaded_once_and_freed_with_the_rest(host):
    import comfy.model_management

    from realisr.nodes.quality import NRIQAScore

    _, first = host.run(NRIQAScore, images=pictures(1, 224), metrics="liqe, clipiqa")
    before = loaded()
    assert before.keys() == {"LIQE", "CLIPIQA"}
    # CLIPIQA keeps its CLIP in a list, out of sight of `.to(device)`.
    (clip,) = before["CLIPIQA"].network.net.clip_model
    assert {id(parameter) for parameter in clip.parameters()} <= {id(p) for p in before["CLIPIQA"].parameters()}

    _, again = host.run(NRIQAScore, images=pictures(1, 224), metrics="clipiqa, liqe")
    assert again == first[::-1]
    assert loaded() == before

    comfy.model_management.unload_all_models()
    assert loaded() == {}
    assert all(parameter.is_meta for module in before.values() for parameter in module.parameters())
    assert all(parameter.is_meta for parameter in clip.parameters())

    _, anew = host.run(NRIQAScore, images=pictures(1, 224), metrics="liqe, clipiqa")
    assert anew == first
    assert not set(loaded().values()) & set(before.values())


@pytest.mark.usefixtures("weights")
def test_a_metric_is_moved_as_a_whole_however_little_memory_there_is(host):
    """Its layers are ordinary ones, which do not compute with a part of the weights elsewhere."""
    from realisr.host.iqa import LoadedMetrics, weights_folder
    from realisr.services.iqa.metrics import parse_metrics

    (info,) = parse_metrics("liqe")
    patcher = LoadedMetrics().load(info, weights_folder())
    elsewhere = torch.device("meta")  # any device but the CPU will do
    patcher.load(elsewhere, lowvram_model_memory=0.1)
    assert all(parameter.device == elsewhere for parameter in patcher.model.parameters())
    assert patcher.loaded_size() == patcher.model_size() > 0
    assert patcher.partially_unload(torch.device("cpu"), 1) == 0
    assert not patcher.released


def test_a_replaced_file_is_read_again(host, weights):
    from realisr.nodes.quality import NRIQAScore

    image = pictures(1, 224)
    _, before = host.run(NRIQAScore, images=image, metrics="clipiqa")
    quality.save_clipiqa(weights, seed=7)
    _, after = host.run(NRIQAScore, images=image, metrics="clipiqa")
    assert after != before
    quality.save_clipiqa(weights)
    assert host.run(NRIQAScore, images=image, metrics="clipiqa")[1] == before


def test_cancel_stops_between_images(host, monkeypatch: pytest.MonkeyPatch):
    import comfy.model_management

    from realisr.host import iqa
    from realisr.nodes.quality import NRIQAScore

    class Bar:
        def __init__(self, total):
            self.done = 0

        def update(self, count):
            self.done += count
            if self.done == 2:
                comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(iqa.comfy.utils, "ProgressBar", Bar)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        host.run(NRIQAScore, images=pictures(4), metrics="piqe")
    monkeypatch.undo()
    assert len(host.run(NRIQAScore, images=pictures(4), metrics="piqe")[1]) == 4


# --- choosing --------------------------------------------------------------------------------------------------------


def test_one_image_from_a_list_of_rounds(host):
    rounds = [pictures(1, seed=seed) for seed in range(4)]
    scores = [piqe(entry[0]) for entry in rounds]
    best = scores.index(min(scores))
    output = select(rounds, prompts=["a", "b", "c", "d"])
    (image,), (index,), (prompt,), table = output.result
    assert index == best and torch.equal(image, rounds[best]) and prompt == "abcd"[best]
    assert table.splitlines()[1 + best].split()[:2] == [str(best), "*"]
    (section,) = output.ui["score_table"][0]["sections"]
    assert [row["chosen"] for row in section["rows"]] == [number == best for number in range(4)]
    assert [row["prompt"] for row in section["rows"]] == ["a", "b", "c", "d"]
    assert [row["scores"][0] for row in section["rows"]] == pytest.approx(scores, rel=1e-6)
    assert sorted(row["ranks"][0] for row in section["rows"]) == [1, 2, 3, 4]


def test_one_image_from_a_batch(host):
    batch = pictures(4, seed=3, channels=4)
    scores = [piqe(image) for image in batch]
    best = scores.index(min(scores))
    (image,), (index,), (prompt,), _ = select([batch]).result
    assert index == best and torch.equal(image, batch[best : best + 1]) and prompt == ""


@pytest.mark.usefixtures("weights")
def test_the_choice_is_the_rules(host):
    from realisr.models.best_of_n import best_of_n
    from realisr.nodes.quality import NRIQAScore

    batch = pictures(5, 224, seed=11)
    metrics = "clipiqa, piqe, liqe, entropy"
    _, scores = host.run(NRIQAScore, images=batch, metrics=metrics)
    ranking = best_of_n(torch.tensor(scores, dtype=torch.float64).view(5, 4), [True, False, True, True])
    output = select([batch], metrics=metrics)
    assert output.result[1] == [ranking.best]
    rows = output.ui["score_table"][0]["sections"][0]["rows"]
    assert [row["rank_sum"] for row in rows] == ranking.rank_sum.tolist()


@pytest.mark.slow
def test_the_four_default_metrics_choose(host, weights, monkeypatch: pytest.MonkeyPatch):
    """MANIQA at its real size, with one crop of its twenty: ViT-B/8 is heavy on a CPU."""
    from realisr.host import iqa
    from realisr.models.best_of_n import best_of_n
    from realisr.services.iqa.metrics import DEFAULT_METRICS
    from realisr.services.iqa.offline import create_network

    def create(info, folder):
        return create_network(info, folder, **({"test_sample": 1} if info.name == "maniqa" else {}))

    published = quality.save_maniqa(weights)
    monkeypatch.setattr(iqa, "create_network", create)
    output = select([pictures(1, 224, seed=seed) for seed in (1, 2)], metrics=", ".join(DEFAULT_METRICS))
    assert loaded().keys() == {"LIQE", "MUSIQ", "MANIQA", "CLIPIQA"}
    state_dict = loaded()["MANIQA"].network.net.state_dict()
    assert state_dict.keys() == published.keys()
    assert all(torch.equal(state_dict[key], value.to(state_dict[key].dtype)) for key, value in published.items())
    rows = output.ui["score_table"][0]["sections"][0]["rows"]
    scores = torch.tensor([row["scores"] for row in rows], dtype=torch.float64)
    assert scores.isfinite().all() and (scores[0] != scores[1]).sum() >= 3
    assert output.result[1] == [best_of_n(scores, [True] * 4).best]
    (weights / quality.MANIQA).unlink()


def test_batches_through_the_rounds_choose_image_by_image(host):
    rounds = [pictures(3, seed=seed) for seed in (1, 2)]
    scores = torch.tensor([[piqe(image) for image in batch] for batch in rounds])
    (image,), indices, prompts, table = select(rounds, prompts=["first", "second"]).result
    assert indices == scores.argmin(dim=0).tolist()
    assert len(set(indices)) == 2, "the seeds should make both rounds win somewhere"
    assert torch.equal(image, torch.stack([rounds[index][item] for item, index in enumerate(indices)]))
    assert prompts == [("first", "second")[index] for index in indices]
    assert [line for line in table.splitlines() if line.startswith("image")] == ["image 0", "image 1", "image 2"]


def test_a_list_that_interleaves_images(host):
    """Entry r * 2 + i is round r of image i; the images differ in size."""
    entries = [pictures(1, 64 + 16 * (position % 2), seed=position) for position in range(6)]
    images, indices, prompts, _ = select(entries, image_count=2, prompts=[*"abcdef"]).result
    assert [image.shape[1] for image in images] == [64, 80]
    for which in range(2):
        scores = [piqe(entry[0]) for entry in entries[which::2]]
        assert indices[which] == scores.index(min(scores))
        assert torch.equal(images[which], entries[2 * indices[which] + which])
        assert prompts[which] == "abcdef"[2 * indices[which] + which]


def test_a_list_of_batches_of_candidates(host):
    entries = [pictures(3, 64, seed=1), pictures(2, 80, seed=2)]
    images, indices, prompts, _ = select(entries, candidates="batch items", prompts=[*"abcde"]).result
    for entry, image, index in zip(entries, images, indices, strict=True):
        scores = [piqe(candidate) for candidate in entry]
        assert index == scores.index(min(scores)) and torch.equal(image[0], entry[index])
    assert prompts == ["abc"[indices[0]], "de"[indices[1]]]


def test_candidates_of_one_image_may_differ_in_size(host):
    rounds = [pictures(1, 64, seed=1), pictures(1, 96, seed=2)]
    (image,), (index,), _, _ = select(rounds).result
    assert torch.equal(image, rounds[index])
    with pytest.raises(ValueError, match=r"differ in size \(64 x 64 \(3 channels\), 96 x 96"):
        select([pictures(2, 64), pictures(2, 96)])


def test_a_single_candidate_is_itself(host):
    image = pictures(1)
    assert torch.equal(select([image]).result[0][0], image)
    batch = pictures(3)
    (same,), indices, _, _ = select([batch], candidates="list entries").result
    assert torch.equal(same, batch) and indices == [0, 0, 0]


@pytest.mark.parametrize(
    ("entries", "inputs", "message"),
    [
        ([1, 1, 1], {"image_count": 2}, "3 entries, which is no multiple of image_count 2"),
        ([1, 2], {}, "these hold 1 and 2.*'batch items'"),
        ([1, 1], {"prompts": ["one"]}, "1 prompts came for 2 candidates"),
        ([3], {"prompts": ["one"]}, "1 prompts came for 3 candidates"),
    ],
)
def test_candidates_that_do_not_fit_together(host, entries, inputs, message):
    with pytest.raises(ValueError, match=message):
        select([pictures(count) for count in entries], **inputs)


def test_a_score_that_is_no_number_is_null_in_json_and_ranks_last(host):
    from realisr.models.best_of_n import best_of_n
    from realisr.nodes.score_table import ScoreTable, Section
    from realisr.services.iqa.metrics import parse_metrics

    scores = torch.tensor([[math.nan], [2.0]], dtype=torch.float64)
    table = ScoreTable(parse_metrics("musiq"), [Section("", scores, best_of_n(scores, [True]))])
    rows = table.ui()["score_table"][0]["sections"][0]["rows"]
    assert [row["scores"] for row in rows] == [[None], [2.0]]
    assert [line.split()[:3] for line in table.text().splitlines()[1:]] == [["0", "-", "#2"], ["1", "*", "2.0000"]]


# --- choosing by hand ------------------------------------------------------------------------------------------------


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many scores each run has to compute."""
    from realisr.host import iqa

    totals: list[int] = []
    own = iqa.comfy.utils.ProgressBar

    def counted(total, *arguments, **options):
        totals.append(total)
        return own(total, *arguments, **options)

    monkeypatch.setattr(iqa.comfy.utils, "ProgressBar", counted)
    return totals


def test_a_pinned_candidate_is_handed_on_and_nothing_is_scored_again(host, bars):
    rounds = [pictures(1, seed=seed) for seed in range(40, 44)]
    first = select(rounds, metrics="piqe, entropy", prompts=[*"abcd"])
    best = first.result[1][0]
    pinned = (best + 1) % 4
    # The host hands the same candidates on as other tensors, where it has dropped its own copies meanwhile.
    again = select([entry.clone() for entry in rounds], metrics="piqe, entropy", prompts=[*"abcd"], pinned=str(pinned))
    assert bars == [8, 0]
    (image,), (index,), (prompt,), table = again.result
    assert index == pinned and torch.equal(image, rounds[pinned]) and prompt == "abcd"[pinned]
    assert table.splitlines()[0] == f"candidate {pinned} pinned, the scores choose {best}"
    rows, before = (output.ui["score_table"][0]["sections"][0]["rows"] for output in (again, first))
    assert [row["scores"] for row in rows] == [row["scores"] for row in before]
    assert [row["best"] for row in rows] == [row["best"] for row in before] == [number == best for number in range(4)]
    assert [row["chosen"] for row in rows] == [number == pinned for number in range(4)]
    # One candidate more, and one metric less: only what is new is scored.
    select([*rounds, pictures(1, seed=44)], metrics="entropy", prompts=[*"abcde"])
    assert bars[2:] == [1]


def test_other_pixels_are_scored_again(host, bars):
    batch = pictures(2, seed=50)
    select([batch])
    other = batch.clone()
    other[1, 0, 0, 0] = 1 - other[1, 0, 0, 0]
    select([other])
    assert bars == [2, 1]


@pytest.mark.usefixtures("weights")
def test_scores_of_a_replaced_file_are_not_kept(host, weights, bars):
    image = pictures(1, 224, seed=51)
    select([image], metrics="clipiqa")
    quality.save_clipiqa(weights, seed=8)
    select([image], metrics="clipiqa")
    quality.save_clipiqa(weights)
    assert bars == [1, 1]


def test_a_pin_for_each_image(host):
    rounds = [pictures(3, seed=seed) for seed in (1, 2)]
    free = select(rounds).result[1]
    pins = [1 - free[0], None, 1 - free[2]]
    (image,), indices, _, table = select(
        rounds, pinned=", ".join("-" if pin is None else str(pin) for pin in pins)
    ).result
    assert indices == [pins[0], free[1], pins[2]]
    assert torch.equal(image, torch.stack([rounds[index][item] for item, index in enumerate(indices)]))
    assert [("pinned" in line) for line in table.splitlines() if line.startswith("image")] == [True, False, True]


def test_a_hand_may_take_what_drifted_too_far(host):
    batch = pictures(2, seed=3)
    lq = torch.nn.functional.avg_pool2d(batch[0].movedim(-1, 0)[None], 2).movedim(1, -1)
    output = select([batch], lq_image=lq, drift_limit=0.8, pinned="1")
    assert output.result[1] == [1]
    rows = output.ui["score_table"][0]["sections"][0]["rows"]
    assert [row["vetoed"] for row in rows] == [False, True] and rows[0]["drift"] < 0.8 < rows[1]["drift"]


@pytest.mark.parametrize(
    ("pinned", "message"),
    [
        ("4", r"Candidate 4 is pinned, and only 4 came, counted from 0\. Click Let the scores choose"),
        ("0, 1", r"pinned for 2 image\(s\), and 1 came"),
        ("first", "'first' is no candidate's number"),
    ],
)
def test_a_pin_without_its_candidate_is_refused_before_anything_is_scored(host, bars, pinned, message):
    with pytest.raises(ValueError, match=message):
        select([pictures(4, seed=52)], pinned=pinned)
    assert bars == []


def test_a_pin_that_is_none_is_known_before_the_run(host):
    from realisr.nodes.quality import NRIQABestOfN

    assert "no candidate's number" in NRIQABestOfN.validate_inputs(["piqe"], ["-1"])
    assert NRIQABestOfN.validate_inputs(["piqe"], ["0, -"]) is True


def test_pictures_of_the_candidates_are_small_files(host):
    """What the browser is told is plain JSON, and the files are written once."""
    from pathlib import Path

    import folder_paths
    from PIL import Image

    wide = torch.nn.functional.interpolate(pictures(2, seed=53, channels=4).movedim(-1, 1), (750, 1500)).movedim(1, -1)

    def shown():
        (section,) = select([wide], metrics="entropy").ui["score_table"][0]["sections"]
        json.dumps(section, allow_nan=False)
        return [row["pictures"] for row in section["rows"]]

    files = [
        [
            Path(folder_paths.get_temp_directory(), row[size]["subfolder"], row[size]["filename"])
            for size in ("small", "large")
        ]
        for row in shown()
    ]
    assert {row[size]["type"] for row in shown() for size in row} == {"temp"}
    for small, large in files:
        with Image.open(small) as little, Image.open(large) as big:
            assert little.size == (256, 128) and big.size == (1024, 512)
    with Image.open(files[0][1]) as big:
        mean = torch.from_numpy(np.asarray(big) / 255).float().mean(dim=(0, 1))
    assert torch.allclose(mean, wide[0, ..., :3].mean(dim=(0, 1)), atol=0.02)
    times = [path.stat().st_mtime_ns for row in files for path in row]
    shown()
    assert [path.stat().st_mtime_ns for row in files for path in row] == times


def test_a_run_does_not_fail_for_want_of_pictures(host, tmp_path, monkeypatch: pytest.MonkeyPatch):
    import folder_paths

    blocked = tmp_path / "file"
    blocked.write_text("no folder", encoding="utf-8")
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(blocked))
    (section,) = select([pictures(2, seed=54)]).ui["score_table"][0]["sections"]
    assert [row["pictures"] for row in section["rows"]] == [{}, {}]


# --- drift of meaning ------------------------------------------------------------------------------------------------


def test_a_candidate_that_shows_something_else_is_passed_over(host):
    """Without the limit the metric alone chooses; with it the best of those that show the input."""
    batch = pictures(4, seed=3)
    first = select([batch]).result[1][0]
    honest = (first + 1) % 4
    lq = torch.nn.functional.avg_pool2d(batch[honest].movedim(-1, 0)[None], 2).movedim(1, -1)
    output = select([batch], lq_image=lq, drift_limit=0.8)
    assert output.result[1] == [honest] and torch.equal(output.result[0][0][0], batch[honest])
    (section,) = output.ui["score_table"][0]["sections"]
    assert section["title"].count("(vetoed)") == 3 and "drift" in output.result[3].splitlines()[0]
    assert select([batch], lq_image=lq, drift_limit=0.0).result[1] == [first]


def test_a_drift_limit_needs_the_low_quality_image(host):
    batch = pictures(2)
    with pytest.raises(ValueError, match=r"drift_limit 0\.8 compares candidates with lq_image"):
        select([batch], drift_limit=0.8)
    with pytest.raises(ValueError, match="2 low-quality images came for 1 images"):
        select([batch], drift_limit=0.8, lq_image=pictures(2))


def test_a_loop_hands_on_what_still_shows_the_input(host):
    from realisr.nodes.agent_rounds import AgentRefinementCandidates

    good, other = pictures(1, seed=1), pictures(1, seed=2)
    rounds = {"1": [good], "2": [other], "3": [good * 0.98]}
    texts = {number: [f"prompt {number}"] for number in rounds}
    told = {number: ["changed"] for number in ("2", "3")}
    given = {"images": rounds, "prompts": texts, "changes": told, "reasons": told}
    images, prompts, report = execute(AgentRefinementCandidates, **given).result
    assert len(images) == 3 and "Drift" not in report
    images, prompts, report = execute(AgentRefinementCandidates, **given, lq_image=[good], drift_limit=[0.8]).result
    assert prompts == ["prompt 1", "prompt 3"] and torch.equal(images[1], good * 0.98)
    assert report.count("Drift: ") == 3 and report.count("above 0.8: passed over") == 1

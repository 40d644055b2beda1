"""pyiqa's metrics without its downloads: names, missing files and packages, and networks from files on disk."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from _pack import ROOT
from harness import quality
from host_env import read_extra
from realisr.services.iqa.kept_scores import KeptScores, content_of
from realisr.services.iqa.metrics import (
    DEFAULT_METRICS,
    LIGHT_PACKAGES,
    PACKAGES_WITHOUT_DEPENDENCIES,
    MetricInfo,
    parse_metrics,
    score,
)
from realisr.services.iqa.offer import first_choice, offered
from realisr.services.iqa.offline import create_network, importable, offline
from realisr.services.iqa.reference import COMMON, find_metric, parse_reference_metrics
from realisr.services.iqa.weights import WEIGHT_URLS, WITHOUT_FILES, MissingWeights, require_weights


@pytest.fixture
def pyiqa_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Addresses that something asks for, which then fails."""
    import socket

    asked: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.fixture(autouse=True)
def _small_clips() -> Iterator[None]:
    with quality.small_clips_are_published():
        yield


def metric(name: str) -> MetricInfo:
    (found,) = parse_metrics(name)
    return found


def picture(side: int = 224, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")


# --- names -----------------------------------------------------------------------------------------------------------


def test_metrics_are_read_from_a_text_in_its_order():
    found = parse_metrics(" PIQE, musiq\nclipiqa+_vitl14_512;liqe ")
    assert [entry.name for entry in found] == ["piqe", "musiq", "clipiqa+_vitL14_512", "liqe"]
    assert [entry.lower_is_better for entry in found] == [True, False, False, False]
    assert found[-1] == MetricInfo("liqe", "LIQE", False, "1, 5")


def test_the_defaults_are_metrics_of_one_image():
    assert [entry.name for entry in parse_metrics(", ".join(DEFAULT_METRICS))] == list(DEFAULT_METRICS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"No metric is named.*liqe, musiq, maniqa, clipiqa"),
        ("musik", r"no metric named 'musik'. Did you mean musiq"),
        ("qqqqq", r"no metric named 'qqqqq'. There are: .*piqe.*liqe"),
        ("musiq, ssim", r"'ssim' compares an image with a reference.*liqe"),
        ("fid", "'fid' compares two sets of images"),
        ("inception_score", "judges a set of images"),
        ("clipscore", "compares an image with a caption"),
        ("piqe, PIQE", "more than once.*piqe"),
    ],
)
def test_a_list_that_cannot_be_used(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_metrics(text)


def test_suggestions_are_usable_themselves():
    with pytest.raises(ValueError, match="no metric") as caught:
        parse_metrics("fidd")
    assert "fid," not in str(caught.value)


def test_metrics_with_a_reference():
    found = parse_reference_metrics("PSNR, ssim, lpips-VGG dists")
    assert [entry.name for entry in found] == ["psnr", "ssim", "lpips-vgg", "dists"]
    assert [entry.lower_is_better for entry in found] == [False, False, True, True]
    assert all(entry.needs_reference for entry in found)
    assert not find_metric("musiq").needs_reference and not find_metric("fid").needs_reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "No metric is named. There are: psnr, ssim, lpips"),
        ("lpipss", r"no metric named 'lpipss'. Did you mean lpips"),
        ("psnr, musiq", "'musiq' does not compare with a reference"),
        ("psnr, PSNR", "more than once.*psnr"),
    ],
)
def test_a_list_with_a_reference_that_cannot_be_used(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_reference_metrics(text)


def test_psnr_and_ssim_need_no_package(pyiqa_absent):
    assert [entry.name for entry in parse_reference_metrics("ssim psnr")] == ["ssim", "psnr"]
    with pytest.raises(ImportError, match="need the Python package pyiqa"):
        parse_reference_metrics("psnr, lpips")


# --- packages --------------------------------------------------------------------------------------------------------


def test_without_pyiqa_the_error_says_how_to_install_it(pyiqa_absent):
    with pytest.raises(ImportError, match=r"need the Python package pyiqa.*pip install .*--no-deps \"pyiqa>="):
        parse_metrics("piqe")


def test_the_install_command_is_what_pyproject_says():
    pyproject = ROOT / "pyproject.toml"
    assert list(LIGHT_PACKAGES) == read_extra(pyproject, "quality")
    assert list(PACKAGES_WITHOUT_DEPENDENCIES) == read_extra(pyproject, "without-dependencies")
    assert set(LIGHT_PACKAGES) <= set(read_extra(pyproject, "test"))


@pytest.fixture
def facexlib_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the documented install; TOPIQ's module is imported anew."""
    with importable():
        from pyiqa.utils.registry import ARCH_REGISTRY
    monkeypatch.setitem(sys.modules, "facexlib", None)
    monkeypatch.delitem(sys.modules, "pyiqa.archs.topiq_arch", raising=False)
    monkeypatch.delitem(ARCH_REGISTRY._obj_map, "CFANet", raising=False)


def test_topiq_needs_no_facexlib(facexlib_absent, tmp_path: Path, no_network):
    """pyiqa imports it for every TOPIQ metric, and only those of faces use it."""
    with pytest.raises(MissingWeights, match=r"'topiq_nr' needs weights .*cfanet_nr_koniq_res50-9a73138b\.pth from"):
        create_network(metric("topiq_nr"), tmp_path)
    published = quality.save_topiq(tmp_path)
    info = metric("topiq_nr")
    network = create_network(info, tmp_path)
    assert_weights(network.net, published)
    first, second = scores(network, info)
    assert first != second
    assert no_network == []


def test_a_package_that_one_metric_needs_is_named(facexlib_absent, tmp_path: Path):
    quality.save_topiq(tmp_path, quality.TOPIQ_FACE)
    with pytest.raises(ImportError, match=r"'topiq_nr-face' needs the Python package facexlib"):
        create_network(metric("topiq_nr-face"), tmp_path)
    assert sys.modules["facexlib"] is None


def test_stand_ins_are_there_only_while_importing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.delitem(sys.modules, "pkg_resources", raising=False)
    with importable():
        import cv2
        from pkg_resources import packaging

        assert vars(cv2).keys() <= vars(type(sys)("empty")).keys()
        assert packaging.version.parse("2.13") > packaging.version.parse("1.7.1")
    assert not {"cv2", "pkg_resources"} & sys.modules.keys()


def test_what_is_installed_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    opencv = type(sys)("cv2")
    opencv.__spec__ = importlib.machinery.ModuleSpec("cv2", None)
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    with importable():
        assert sys.modules["cv2"] is opencv
    assert sys.modules["cv2"] is opencv


def test_loading_a_metric_brings_in_none_of_the_heavy_dependencies(tmp_path: Path):
    quality.save_liqe(tmp_path)
    heavy = {"bitsandbytes", "cv2", "datasets", "facexlib", "numba", "pandas", "tensorboard"}
    before = heavy & sys.modules.keys()
    create_network(metric("liqe"), tmp_path)
    assert heavy & sys.modules.keys() == before


# --- missing and wrong files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("liqe", [quality.LIQE, quality.CLIP_VIT]),
        ("musiq", [quality.MUSIQ]),
        ("maniqa", [quality.MANIQA]),
        ("clipiqa", [quality.CLIP_RESNET]),
        ("clipiqa+", ["CLIP-IQA%2B_learned_prompts-603f3273.pth", quality.CLIP_RESNET]),
        ("niqe", ["niqe_modelparameters.mat"]),
    ],
)
def test_missing_weights_are_named_before_anything_is_loaded(tmp_path: Path, name: str, files: list[str]):
    with pytest.raises(MissingWeights) as caught:
        require_weights([metric("piqe"), metric(name)], tmp_path)
    assert str(tmp_path) in str(caught.value)
    for file in files:
        assert f"{file} from https://" in str(caught.value)
        (tmp_path / file).touch()
    require_weights([metric("piqe"), metric(name)], tmp_path)


def test_the_weights_of_all_metrics_are_named_at_once(tmp_path: Path):
    """A file that two of them need is named once."""
    with pytest.raises(MissingWeights, match=r"^The metrics 'clipiqa', 'musiq', 'clipiqa\+' need ") as caught:
        require_weights([metric(name) for name in ("clipiqa", "piqe", "musiq", "clipiqa+")], tmp_path)
    assert str(caught.value).count(" from https://") == 3
    (tmp_path / quality.CLIP_RESNET).touch()
    with pytest.raises(MissingWeights, match=r"^The metrics 'musiq', 'clipiqa\+' need weights"):
        require_weights([metric(name) for name in ("clipiqa", "musiq", "clipiqa+")], tmp_path)


def test_the_addresses_are_pyiqas_own():
    with importable():
        from pyiqa.archs import (
            brisque_arch,
            clip_model,
            clipiqa_arch,
            dists_arch,
            inception,
            liqe_arch,
            lpips_arch,
            maniqa_arch,
            musiq_arch,
            niqe_arch,
            topiq_arch,
        )
        from torchvision.models import AlexNet_Weights, VGG16_Weights
    modules = (
        *(
            brisque_arch,
            clipiqa_arch,
            dists_arch,
            liqe_arch,
            lpips_arch,
            maniqa_arch,
            musiq_arch,
            niqe_arch,
            topiq_arch,
        ),
    )
    published = {url for module in modules for url in module.default_model_urls.values()}
    published |= {*clip_model._MODELS.values(), inception.FID_WEIGHTS_URL}
    published |= {AlexNet_Weights.IMAGENET1K_V1.url, VGG16_Weights.IMAGENET1K_V1.url}
    assert {url for urls in WEIGHT_URLS.values() for url in urls} <= published
    for name in WEIGHT_URLS:
        find_metric(name)


@pytest.mark.parametrize("name", ["cnniqa", "paq2piq", "hyperiqa"])
def test_a_metric_outside_our_list_says_what_it_misses_and_downloads_nothing(tmp_path: Path, no_network, name: str):
    with pytest.raises(MissingWeights, match=rf"'{name}' needs weights that are not in .*\.pth from https://"):
        create_network(metric(name), tmp_path)
    assert no_network == []


def test_what_was_exchanged_is_put_back(tmp_path: Path):
    with importable():
        import pyiqa.archs.clip_model as clip_model
        import pyiqa.archs.liqe_arch as liqe_arch
        import pyiqa.utils.download_util as download_util
        import timm
    before = [
        clip_model._download,
        liqe_arch.DEFAULT_CACHE_DIR,
        download_util.DEFAULT_CACHE_DIR,
        timm.create_model,
        download_util.download_url_to_file,
        torch.hub.download_url_to_file,
        torch.hub.get_dir(),
    ]
    for name in ("liqe", "maniqa"):
        with pytest.raises(MissingWeights):
            create_network(metric(name), tmp_path)
        with importable(), offline(name, name.upper(), tmp_path):
            assert torch.hub.get_dir() == str(tmp_path)
    after = [
        clip_model._download,
        liqe_arch.DEFAULT_CACHE_DIR,
        download_util.DEFAULT_CACHE_DIR,
        timm.create_model,
        download_util.download_url_to_file,
        torch.hub.download_url_to_file,
        torch.hub.get_dir(),
    ]
    assert after == before


class Trap:
    def __reduce__(self):
        return print, ("a pickle ran code",)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path, capfd):
    torch.save({"params": Trap()}, tmp_path / quality.MUSIQ)
    with pytest.raises(ValueError, match=r"'musiq'.* runs code when opened, so it was not opened"):
        create_network(metric("musiq"), tmp_path)
    assert "a pickle ran code" not in capfd.readouterr().out


def test_a_damaged_file_and_another_metrics_file(tmp_path: Path):
    (tmp_path / quality.MUSIQ).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"'musiq'.*(damaged|not opened)"):
        create_network(metric("musiq"), tmp_path)
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / quality.MUSIQ)
    with pytest.raises(ValueError, match=r"'musiq' cannot be loaded.*belongs to another metric.*MUSIQ"):
        create_network(metric("musiq"), tmp_path)


# --- networks --------------------------------------------------------------------------------------------------------


def scores(network: torch.nn.Module, info: MetricInfo) -> list[float]:
    with torch.no_grad():
        return [score(network, info, picture(seed=seed)) for seed in range(2)]


def assert_weights(network: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    actual = network.state_dict()
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value.float() if value.is_floating_point() else value), key


def test_piqe_needs_no_weights(tmp_path: Path):
    info = metric("piqe")
    network = create_network(info, tmp_path / "not there")
    blocky = picture(64).unfold(2, 8, 8)[..., 0].repeat_interleave(8, dim=2).repeat_interleave(1, dim=3)
    clean, worse = score(network, info, picture(64)), score(network, info, blocky[..., :64, :64])
    assert 0 <= clean <= 100 and 0 <= worse <= 100
    assert clean != worse


def test_liqe_from_its_files(tmp_path: Path, no_network):
    trained = quality.save_liqe(tmp_path)
    info = metric("liqe")
    network = create_network(info, tmp_path)
    assert_weights(network.net, trained)
    first, second = scores(network, info)
    assert 1 <= first <= 5 and first != second

    # The text features are this checkpoint's, not ones that another left on disk.
    quality.save_liqe(tmp_path, seed=5)
    other = create_network(info, tmp_path)
    assert not torch.allclose(other.net.text_features, network.net.text_features)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([quality.LIQE, quality.CLIP_VIT])
    assert no_network == []


def test_liqe_says_when_an_image_is_too_small(tmp_path: Path):
    quality.save_liqe(tmp_path)
    info = metric("liqe")
    with pytest.raises(ValueError, match=r"'liqe' cannot judge an image of 100 x 100 pixels.*224.*Enlarge"):
        score(create_network(info, tmp_path), info, picture(100))


def test_clipiqa_from_its_file(tmp_path: Path, no_network):
    published = quality.save_clipiqa(tmp_path)
    info = metric("clipiqa")
    network = create_network(info, tmp_path)
    assert_weights(network.net.clip_model[0], quality.halved(published))
    first, second = scores(network, info)
    assert 0 <= first <= 1 and first != second
    assert no_network == []


def test_musiq_from_its_file(tmp_path: Path, no_network):
    published = quality.save_musiq(tmp_path)
    info = metric("musiq")
    network = create_network(info, tmp_path)
    assert_weights(network.net, published)
    first, second = scores(network, info)
    assert first != second
    assert no_network == []


def test_a_setting_that_turns_torchs_guard_off_does_not_reach_metrics(tmp_path: Path, monkeypatch):
    """With both of torch's settings it loads nothing, and the metric's file was blamed."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    quality.save_topiq(tmp_path)
    create_network(metric("topiq_nr"), tmp_path)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_lpips_from_its_files(tmp_path: Path, no_network):
    """Its backbone is torchvision's, and lies beside it or where torch.hub would keep it."""
    info = find_metric("lpips")
    with pytest.raises(MissingWeights, match=r"LPIPS_v0.1_alex-df73285e\.pth from .*alexnet-owt-7be5be79\.pth from"):
        create_network(info, tmp_path)
    published = quality.save_lpips(tmp_path)
    network = create_network(info, tmp_path)
    state_dict = network.net.state_dict()
    assert all(torch.equal(state_dict[key], value.float()) for key, value in published.items())
    one, other = picture(64), picture(64, seed=1)
    assert score(network, info, one, one) == pytest.approx(0, abs=1e-6)
    near, far = score(network, info, 0.9 * one + 0.1 * other, one), score(network, info, other, one)
    assert 0 < near < far
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / quality.ALEXNET).rename(tmp_path / "checkpoints" / quality.ALEXNET)
    assert score(create_network(info, tmp_path), info, other, one) == pytest.approx(far)
    assert no_network == []


@pytest.mark.slow
def test_dists_from_its_files(tmp_path: Path, no_network):
    quality.save_dists(tmp_path)
    info = find_metric("dists")
    network = create_network(info, tmp_path)
    one, other = picture(64), picture(64, seed=1)
    assert score(network, info, one, one) == pytest.approx(0, abs=1e-5)
    assert 0 < score(network, info, 0.9 * one + 0.1 * other, one) < score(network, info, other, one)
    assert no_network == []


# --- what there is to choose from ------------------------------------------------------------------------------------


def test_metrics_are_offered_with_what_they_lack(tmp_path: Path):
    (tmp_path / "ViT-B-32.pt").touch()
    offers = {offer.metric.name: offer for offer in offered(tmp_path)}
    liqe = offers["liqe"]
    assert not liqe.ready and {url.rpartition("/")[2]: found for url, found in liqe.files.items()} == {
        "liqe_koniq.pt": False,
        "ViT-B-32.pt": True,
    }
    assert offers["niqe"].metric.lower_is_better and not offers["niqe"].ready
    assert [name for name, offer in offers.items() if offer.ready] == ["piqe", "entropy", "psnr", "ssim"]
    assert {name for name, offer in offers.items() if offer.metric.needs_reference} == {*COMMON}
    assert "fid" not in offers
    assert first_choice([*offers.values()]) == ["piqe"]
    (tmp_path / "liqe_koniq.pt").touch()
    (tmp_path / "RN50.pt").touch()
    assert first_choice(offered(tmp_path)) == ["liqe", "clipiqa"]


@pytest.mark.usefixtures("pyiqa_absent")
def test_metrics_are_offered_without_pyiqa(tmp_path: Path):
    offers = offered(tmp_path)
    assert [offer.metric.name for offer in offers if offer.ready] == ["psnr", "ssim"]
    assert {*DEFAULT_METRICS, *WITHOUT_FILES} < {offer.metric.name for offer in offers}
    assert first_choice(offers) == ["piqe"]


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_metrics_without_files_need_none(no_network, tmp_path: Path, name: str):
    assert 0 < score(create_network(metric(name), tmp_path), metric(name), picture()) <= 100
    assert no_network == [] and not list(tmp_path.iterdir())


# --- kept scores -----------------------------------------------------------------------------------------------------


def test_the_score_that_was_not_asked_for_the_longest_goes_first():
    kept = KeptScores(limit=2)
    kept.keep("a", 1.0)
    kept.keep("b", float("nan"))
    assert kept.recall("a") == 1.0
    kept.keep("c", 3.0)
    assert (kept.recall("a"), kept.recall("b"), kept.recall("c"), len(kept)) == (1.0, None, 3.0, 2)


def test_content_is_size_and_colours():
    image = torch.rand(4, 6, 3)
    content = content_of(image)
    assert content == content_of(torch.cat((image, torch.rand(4, 6, 1)), dim=-1)) == content_of(image.clone())
    assert content != content_of(image.reshape(6, 4, 3))
    changed = image.clone()
    changed[3, 5, 2] += 1e-6
    assert content != content_of(changed)

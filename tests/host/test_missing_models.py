"""Loaders say before a run what to fetch and where to put it, and the checklist tells what is here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from harness.host import InProcessHost
from harness.vosr import TinyVOSR

MISSING = {
    (
        "LoadVOSRModel",
        "VOSR_0.5B_os",
    ): r"args\.json, .*ema_model.* \(about 1\.9 GB\) from https://huggingface\.co/CSWRY",
    ("LoadVOSRModel", "VOSR_1.4B_ms/checkpoints/ema_model.safetensors"): r"\(about 5\.6 GB\) .*/VOSR_1\.4B_ms\"",
    ("LoadVOSRModel", "mine.safetensors"): r"Put it into the folder .* or choose one that is there",
    ("LoadVOSRVAE", "sd21_lwdecoder.pth"): r"\(about 52 MB\)",
    ("LoadVOSRVisionEncoder", "dinov2_vitl14_pretrain.pth"): r"about 1\.2 GB.*torch_cache/checkpoints there",
    ("LoadVisionContextBridge", "vicr_bridge.safetensors"): r"authors have not released one",
    ("LoadMMControlNet", "dreamsr_mm_controlnet.safetensors"): r"starting from Initialise MM-ControlNet",
    ("LoadARRestorer", "PURE"): r"about 14\.2 GB.* from https://huggingface\.co/nonwhy/PURE",
    ("LoadLocalVLM", "llava-1.5-7b-hf"): r"huggingface\.co/llava-hf/llava-1\.5-7b-hf",
}


FOLDERS = ("clip_vision", "controlnet", "diffusion_models", "LLM", "model_patches", "vae")


@pytest.fixture
def bare(host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessHost:
    """The host with model folders that hold nothing: other tests leave files in its own."""
    import folder_paths

    # The folder LLM is ours: it is known to the host once a node asks for it.
    loader("LoadLocalVLM").define_schema()
    for name in FOLDERS:
        _, extensions = folder_paths.folder_names_and_paths[name]
        (tmp_path / "models" / name).mkdir(parents=True)
        places = ([str(tmp_path / "models" / name)], extensions)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, places)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return InProcessHost(tmp_path)


def loader(name: str):
    from realisr.nodes import dreamsr_control, pure_loaders, vicr_loaders, vlm, vosr_loaders

    modules = (dreamsr_control, pure_loaders, vicr_loaders, vlm, vosr_loaders)
    return next(getattr(module, name) for module in modules if hasattr(module, name))


@pytest.mark.parametrize(("node", "name"), MISSING)
def test_what_is_missing_is_named_with_its_remedy(bare, node, name):
    """First sentence: what is missing. Then link, size, folder and licence, as far as they are known."""
    answer = loader(node).validate_inputs(name)
    assert isinstance(answer, str)
    assert re.search(MISSING[node, name], answer)
    assert name in answer.partition(". ")[0]
    if "https://" in answer:
        assert str(bare.models) in answer
        assert "Licence: " in answer


@pytest.mark.parametrize("node", sorted({node for node, _ in MISSING}))
def test_a_name_over_a_wire_is_not_known_yet(host, node):
    assert loader(node).validate_inputs() is True


def test_what_needs_no_file_passes(host):
    assert loader("LoadVOSRModel").validate_inputs("VOSR nano (bundled)") is True
    assert loader("LoadVOSRVAE").validate_inputs("pixel unshuffle x2 (no file)", "none (the VAE's own)") is True
    assert loader("LoadVisionContextBridge").validate_inputs("none (CLIP's vector as it is)") is True


def test_each_of_two_missing_files_is_told_with_its_input(bare):
    answer = loader("LoadVOSRVAE").validate_inputs("a.safetensors", "b.safetensors")
    first, second = answer.split("\n")
    assert first.startswith("vae_name: a.safetensors is not in models/vae.")
    assert second.startswith("decoder_name: b.safetensors is not in models/vae.")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "x" * 5000, "a\nb"])
def test_a_hostile_name_is_missing_like_any_other(host, name):
    answer = loader("LoadVOSRVisionEncoder").validate_inputs(name)
    assert "is not in models/clip_vision" in answer
    assert len(answer) < 1000


def shown(node: str, chosen: str) -> tuple[str | None, dict]:
    from realisr.nodes.routes.models import described

    answer = described(node, chosen)
    return answer["meant"], {method["key"]: method for method in answer["methods"]}


def test_the_checklist_of_a_folder_that_grows(bare):
    """Absent, then a part of it, then complete; the weights count wherever VOSR's authors look for them."""
    name = "VOSR_1.4B_os"

    def state() -> tuple[int, int, list[str]]:
        meant, methods = shown("RealISR_LoadVOSRModel", f"{name}/checkpoints/ema_model.safetensors")
        assert meant == "vosr_1.4b_os"
        part = methods[meant]["parts"][0]
        return part["found"], part["of"], part["absent"]

    assert state() == (0, 2, [])
    tiny = TinyVOSR.create(bare, name)
    try:
        assert state() == (2, 2, [])
        tiny.weight_file.rename(tiny.folder / "model.safetensors")
        assert state() == (2, 2, [])
        (tiny.folder / "model.safetensors").unlink()
        assert state() == (1, 2, ["checkpoints/ema_model.safetensors"])
    finally:
        shutil.rmtree(tiny.folder)


def test_the_checklist_counts_the_files_that_an_index_lists(bare):
    folder = bare.models / "LLM" / "PURE"
    folder.mkdir(parents=True)
    try:
        (folder / "config.json").write_text('{"model_type": "chameleon"}')
        (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
        )
        (folder / "1.safetensors").write_bytes(b"")
        _, methods = shown("RealISR_LoadARRestorer", "PURE")
        part = methods["pure"]["parts"][0]
        assert (part["found"], part["of"], part["absent"]) == (3, 5, ["2.safetensors", "tokenizer.json"])
    finally:
        shutil.rmtree(folder)


def test_the_checklist_follows_the_choice(host):
    assert shown("RealISR_LoadVOSRModel", "VOSR nano (bundled)")[0] == "vosr_nano"
    assert shown("RealISR_LoadVOSRVAE", "Qwen-Image-vae-2d/diffusion_pytorch_model.safetensors")[0] == "vosr_1.4b_os"
    assert shown("RealISR_LoadVOSRModel", "my own.safetensors")[0] is None
    assert shown("RealISR_LoadMMControlNet", "anything")[0] == "dreamsr"

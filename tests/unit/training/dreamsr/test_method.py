"""DreamSR under the training engine: from photos and prompts to files, and its plan from headers alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from harness.dreamsr_training import SIDE


def test_alternation(method):
    from realisr.training.dreamsr.method import DreamSRMethod

    alone = method("meta")
    assert {alone.turns(step) for step in range(5)} == {("control",)}
    both: DreamSRMethod = method("meta", lora={"rank": 2, "alpha": 2.0, "control_steps": 2, "lora_steps": 1})
    lora = ("lora", "discriminator")
    assert alone.all_turns() == ("control",) and both.all_turns() == ("control", *lora)
    assert [both.turns(step) for step in range(6)] == [("control",), ("control",), lora] * 2
    names = {turn: {name for name, _ in both.parameters(turn)} for turn in ("control", *lora)}
    assert all(names.values()) and not (names["control"] & names["lora"])
    trained = {name for name, value in both.network.named_parameters() if value.requires_grad}
    assert trained == set().union(*names.values())


def test_plan_from_headers(method):
    """The dry run's estimate, on the meta device, of both stages."""
    from realisr.training.engine.estimate import estimate

    alone, both = method("meta"), method("meta", lora={"rank": 2, "alpha": 2.0})
    control = sum(value.numel() for value in alone.network.flux.control.parameters())
    assert estimate(alone).trained == control
    assert estimate(both).trained > control
    assert all(value.is_meta for value in both.network.parameters())
    saved = estimate(method("meta", gradient_checkpointing=True)).activations
    assert 0 < saved < estimate(alone).activations


def run(made) -> dict[str, dict[str, torch.Tensor]]:
    """The whole run, and the tensors of the files it wrote."""
    from realisr.training.engine.engine import Engine

    Engine(type(made)(made.config)).run()
    out = made.config.out
    return {path.parent.name: load_file(path) for path in sorted(out.glob("*/dreamsr_*.safetensors"))}


def test_each_turn_moves_its_own(method):
    """Two steps: the control's, then the LoRA's and the discriminator's."""
    from realisr.training.dreamsr.lora import is_lora
    from realisr.training.engine.draws import Draws
    from realisr.training.engine.engine import Engine

    made = method(lora={"rank": 2, "alpha": 2.0}, steps=2)
    engine = Engine(type(made)(made.config))
    network = engine.method.network
    samples = engine.method.samples()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}

    def moved() -> set[str]:
        names = set()
        for name, value in network.named_parameters():
            if not torch.equal(value, before[name]):
                names.add("lora" if is_lora(name) else name.partition(".")[0] if "flux" not in name else name[:12])
            before[name] = value.detach().clone()
        return names

    batch = engine.method.collate([samples[0], samples[1]])
    engine.train_step([(0, batch)])
    assert moved() == {"flux.control"}
    engine.train_step([(1, batch)])
    assert moved() == {"lora", "discriminator"}
    prepared = engine.method.prepare(batch, Draws(0, 0))
    assert prepared["hq"].shape == (2, 16, SIDE // 2, SIDE // 2)


def test_files_have_the_documented_names(method):
    made = method(lora={"rank": 2, "alpha": 3.0}, steps=2, control={"layers": 1, "dit_blocks": [1]})
    files = run(made)
    assert set(files) == {"controlnet", "loras"}
    with safe_open(made.config.out / "controlnet" / "dreamsr_mm_controlnet.safetensors", "pt") as file:
        stated = json.loads(file.metadata()["realisr.mm_controlnet"])
    assert stated == {"dit_blocks": [1], "text_residual": True}
    assert set(files["controlnet"]) == set(made.network.flux.control.state_dict())
    names = {name.rpartition(".lora_")[0] for name in files["loras"] if ".lora_" in name}
    assert "transformer.transformer_blocks.0.attn.to_out.0" in names
    assert "transformer.single_transformer_blocks.0.proj_out" in names
    assert {float(value) for name, value in files["loras"].items() if name.endswith(".alpha")} == {3.0}


def test_stage_two_goes_on_from_the_files_of_another_run(method):
    first = method(lora={"rank": 2, "alpha": 2.0}, steps=2)
    written = run(first)
    out = first.config.out
    control = out / "controlnet" / "dreamsr_mm_controlnet.safetensors"
    lora = {"rank": 2, "alpha": 2.0, "start": str(out / "loras" / "dreamsr_acceleration.safetensors")}
    second = method(run="second", control={"start": str(control)}, lora=lora)
    for name, value in second.network.flux.control.state_dict().items():
        assert torch.equal(value, written["controlnet"][name])
    ours = dict(second.network.flux.transformer.named_parameters())
    for name, value in written["loras"].items():
        inner = name.removeprefix("transformer.")
        for part in ("lora_A", "lora_B"):
            inner = inner.replace(f".{part}.", f".{part}.acceleration.")
        assert torch.equal(ours[inner], value)


def test_restores_with_and_without_the_lora(method):
    from realisr.training.engine.draws import Draws

    batch = {"lq": torch.rand(2, 3, SIDE, SIDE), "prompt": ["a", "b"]}
    for lora in (None, {"rank": 2, "alpha": 2.0}):
        restored = method(lora=lora).restore(batch, Draws(0, 0))
        assert restored.shape == (2, 3, SIDE, SIDE) and restored.min() >= 0 and restored.max() <= 1


def test_validation_prompts(method, photos):
    """From the .txt, else the whole photo's of the .crops.json, else none."""
    (photos / "photo1.txt").rename(photos / "photo1.moved")
    try:
        batch = method("meta", validation={"images": [str(photos)]}).validation()
    finally:
        (photos / "photo1.moved").rename(photos / "photo1.txt")
    assert batch["prompt"] == [f"photo number {index}" for index in range(3)]
    assert batch["lq"].shape == batch["hq"].shape == (3, 3, SIDE, SIDE)


def test_precision_of_the_files(method):
    from realisr.training.engine.engine import Engine

    made = method(steps=1, export={"name": "mine", "dtype": "bf16"})
    Engine(type(made)(made.config)).run()
    tensors = load_file(made.config.out / "controlnet" / "mine_mm_controlnet.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lpips": None}, "lpips: name the files"),
        ({"control": {"layers": 3}}, "control: .* only 2 two-stream blocks"),
        ({"control": {"layers": 2, "dit_blocks": [0, 7]}}, "block 7"),
        ({"control": {"layers": 2, "dit_blocks": [0]}}, "names 1 blocks"),
        ({"lora": {"rank": 2, "targets": ["attn.nothing"]}}, "no layer attn.nothing"),
    ],
)
def test_settings_that_cannot_work(method, changes, said):
    with pytest.raises(ValueError, match=said):
        method("meta", **changes)


def test_missing_and_wrong_lpips_files(method, models, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lpips.head: there is no file .*nowhere.pth. Download https"):
        method(lpips={"backbone": str(models / "vgg16.pth"), "head": str(tmp_path / "nowhere.pth")})
    with pytest.raises(ValueError, match=r"lpips.backbone: .* is not torchvision's VGG-16"):
        method(lpips={"backbone": str(models / "lpips.pth"), "head": str(models / "lpips.pth")})
    (tmp_path / "damaged.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"lpips.head: .* cannot be read"):
        method(lpips={"backbone": str(models / "vgg16.pth"), "head": str(tmp_path / "damaged.pth")})


def test_a_control_for_another_flux(method, models, tmp_path):
    from safetensors.torch import save_file

    from harness.dreamsr import control_weights

    save_file(control_weights(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was made for another FLUX: its pooled_width is 768, this model's 64"):
        method("meta", control={"start": str(tmp_path / "other.safetensors")})


def test_resumes_bit_for_bit(method):
    """Both turns' optimizers, the LoRA and the discriminator among what a checkpoint keeps."""
    from realisr.training.engine.engine import Engine

    lora = {"rank": 2, "alpha": 2.0}
    whole = run(method(lora=lora, steps=4))
    first = method(lora=lora, steps=2, run="parts")
    Engine(type(first)(first.config)).run()
    parts = run(method(lora=lora, steps=4, run="parts"))
    for folder, tensors in whole.items():
        assert all(torch.equal(value, parts[folder][name]) for name, value in tensors.items())


def test_mixed_precision(method):
    """Frozen weights in bfloat16, trained ones in float32; the losses are near those of full precision."""
    from realisr.training.engine.draws import Draws

    losses: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "bf16"):
        made = method(lora={"rank": 2, "alpha": 2.0}, precision=precision, run=precision, losses={"image_below": 1.0})
        samples, network = made.samples(), made.network
        items = [{name: value for name, value in samples[number].items() if name != "skipped"} for number in (0, 1)]
        with torch.no_grad():
            batch = made.prepare(made.collate(items), Draws(0, 0))
        found = losses[precision] = {}
        for turn in ("control", "lora", "discriminator"):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                parts = network(turn, batch, Draws(0, 1))
            parts["loss"].backward()
            found.update({f"{turn}/{name}": value.item() for name, value in parts.items()})
        trained = [value for value in network.parameters() if value.requires_grad]
        assert all(value.dtype == torch.float32 and value.grad is not None for value in trained if value.any())
    for name, value in losses["fp32"].items():
        assert losses["bf16"][name] == pytest.approx(value, rel=0.1, abs=0.05), name

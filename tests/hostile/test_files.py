"""Weight files that are damaged, forged or of other models: every loader says in words which file and what is wrong."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness import autoencoders, checkpoints, pure
from harness.damage import STRAY_INDEX, Content, damage, flat, write
from harness.dreamsr import control_weights
from harness.schemas import given_to
from harness.vosr import TinyVOSR

BARE = re.compile(
    r"object has no attribute|index out of range|unexpected keyword|not iterable|invalid literal|not subscriptable"
    r"|values to unpack|must be (str|int|real number), not|cannot unpack|size mismatch|Error\(s\) in loading|^'.*'$"
)
"""What Python and torch say by themselves, were it all that a user is told."""


NEVER = {"nothing", "noise", "zeros", "web_page", "folder", "not_numbers", "more_than_stored", "no_table", "odd_names"}
"""Ways of damage that no loader may let pass."""


@dataclass(frozen=True)
class Loader:
    folder: str
    """Of the host's models folder."""
    name: str
    """Of the file; its ending says the format."""
    content: Callable[[], Content]
    load: Callable[[str], Any]


def load_vosr(name: str) -> Any:
    from realisr.host.vosr.loader import load_vosr_model

    return load_vosr_model(name)


def load_control(name: str) -> Any:
    from realisr.host.dreamsr.control.loader import load_mm_control

    return load_mm_control(name, "fp32")


def load_bridge(name: str) -> Any:
    from realisr.host.vicr.loader import load_bridge as load

    return load(name)


def load_vision(name: str) -> Any:
    from realisr.host.vosr.vision import load_vision_encoder

    return load_vision_encoder(name)


def load_vae(name: str) -> Any:
    from realisr.host.vosr.vae import load_vosr_vae

    return load_vosr_vae(name)


def load_light(name: str) -> Any:
    from realisr.host.vosr.vae import load_vosr_vae

    return load_vosr_vae("hostile_sd21.safetensors", name)


def load_vqgan(name: str) -> Any:
    import folder_paths

    from realisr.host.pure.loader import load_vqgan as load

    return load(Path(folder_paths.get_full_path_or_raise("vae", name)))


def load_lora(name: str) -> Any:
    import nodes

    from realisr.host.dreamsr.lora import AccelerationLoRA, with_forward_lora

    lora = AccelerationLoRA.load(name, 1.0)
    (model,) = nodes.UNETLoader().load_unet("hostile_flux.safetensors", "default")
    return with_forward_lora(model, lora)


def load_pure(name: str) -> Any:
    """The second shard of the folder is the file."""
    from realisr.host.pure.files import find_restorer
    from realisr.host.pure.loader import load_backbone, read_config

    files = find_restorer("hostile_pure")
    return load_backbone(files, read_config(files), "fp32")


def lora_weights() -> Content:
    layers = {"double_blocks.0.img_attn.qkv": (256, 768), "single_blocks.0.linear2": (1280, 256)}
    made: Content = {}
    for name, (inputs, outputs) in layers.items():
        made[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, inputs)
        made[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(outputs, 4)
        made[f"diffusion_model.{name}.alpha"] = torch.tensor(2.0)
    return made


def pure_shard() -> Content:
    tensors = pure.backbone()
    return {name: tensors[name] for name in sorted(tensors)[1::2]}


LOADERS = {
    "VOSR": Loader(
        "diffusion_models", "hostile.safetensors", lambda: checkpoints.vosr(checkpoints.vosr_config()), load_vosr
    ),
    "MM-ControlNet": Loader("controlnet", "hostile.safetensors", control_weights, load_control),
    "bridge": Loader(
        "model_patches", "hostile.pth", lambda: checkpoints.vision_context_bridge(hidden=16, width=32), load_bridge
    ),
    "DINOv2": Loader("clip_vision", "hostile.pth", checkpoints.dinov2, load_vision),
    "DINOv2 in transformers' naming": Loader(
        "clip_vision", "hostile.safetensors", lambda: checkpoints.dinov2_hf(checkpoints.dinov2()), load_vision
    ),
    "SD VAE": Loader("vae", "hostile.safetensors", autoencoders.sd21_vae, load_vae),
    "Qwen VAE": Loader("vae", "hostile.safetensors", autoencoders.qwen_vae, load_vae),
    "light decoder": Loader("vae", "hostile.pth", autoencoders.light_decoder, load_light),
    "VQGAN": Loader("vae", "hostile.pt", lambda: {"model": pure.vqgan(), "steps": 1}, load_vqgan),
    "LoRA": Loader("loras", "hostile.safetensors", lora_weights, load_lora),
    "PURE": Loader("LLM/hostile_pure", pure.shard_name(2, 2), pure_shard, load_pure),
}


@pytest.fixture(scope="module", autouse=True)
def _companions(host) -> None:
    """The whole files that a damaged one goes with."""
    host.save_model("vae", "hostile_sd21.safetensors", autoencoders.sd21_vae())
    host.save_model(
        "diffusion_models", "hostile_flux.safetensors", checkpoints.flux(1, double_blocks=1, single_blocks=1)
    )
    pure.save_pure_folder(host.models / "LLM" / "hostile_pure", pure.backbone(), pure.Sizes().config())


def removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def complaint(error: BaseException, name: str) -> str | None:
    """What a user would have to say about an error; None for a sentence that names the file, or the folder whose
    files are one model's."""
    said = str(error)
    if not isinstance(error, ValueError | FileNotFoundError):
        return f"a bare {type(error).__name__}"
    if name not in said and "hostile_pure" not in said:
        return "it does not name the file"
    own = said.partition("Details: ")[0]
    return "it is what Python says" if BARE.search(own) else None


@pytest.mark.parametrize("kind", LOADERS)
def test_every_loader_names_the_file_and_what_is_wrong(host, attacks, kind):
    loader = LOADERS[kind]
    path = host.models / loader.folder / loader.name
    content = loader.content()
    others = [other for other in LOADERS if LOADERS[other].content is not loader.content]
    unclear, accepted = [], []
    for seed in range(attacks):
        draw = random.Random(seed)
        foreign = LOADERS[draw.choice(others)].content()
        removed(path)
        way = damage(path, dict(content), foreign, draw)
        try:
            loader.load(loader.name)
            accepted.append(way)
        # Whatever it is, that it came is what the test is about.
        except Exception as error:
            wrong = complaint(error, loader.name)
            if wrong:
                unclear.append(f"{seed} ({way}): {wrong}: {type(error).__name__}: {error}")
    removed(path)
    assert not unclear, f"{len(unclear)} of {attacks}\n" + "\n".join(unclear[:20])
    assert not NEVER.intersection(accepted)


BOMBS = {
    "VOSR": "blocks.{}.attn.q_norm.weight",
    "MM-ControlNet": "transformer_blocks.{}.attn.norm_q.weight",
    "DINOv2": "blocks.{}.ls1.gamma",
    "DINOv2 in transformers' naming": "encoder.layer.{}.layer_scale1.lambda1",
    "SD VAE": "encoder.down.{}.block.0.conv1.weight",
    "Qwen VAE": "encoder.down_blocks.{}.conv1.weight",
    "light decoder": "up_blocks.{}.resnets.0.conv1.weight",
    "VQGAN": "encoder.conv_blocks.{}.res.0.conv1.weight",
}


@pytest.mark.parametrize("index", [STRAY_INDEX, 50_000, "1e9", "x"])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_stray_number_makes_no_deep_network(host, kind, index):
    """With one more tensor of a few bytes; were the number the depth, making the network would take hours."""
    loader = LOADERS[kind]
    path = host.models / loader.folder / loader.name
    content = loader.content()
    flat(content)[BOMBS[kind].format(index)] = torch.zeros(1)
    write(path, content)
    with pytest.raises(ValueError, match=rf"{loader.name} .*{re.escape(str(index))}"):
        loader.load(loader.name)
    removed(path)


def test_more_layers_than_any_network_has_are_refused_before_one_is_made():
    from realisr.models.state_dict import MOST_LAYERS, count_layers

    names = [f"blocks.{index}.weight" for index in range(MOST_LAYERS)]
    assert count_layers(names, "blocks.") == MOST_LAYERS
    assert count_layers([*names, "blocks.600.weight"], "blocks.") == MOST_LAYERS
    with pytest.raises(ValueError, match=f"beyond the {MOST_LAYERS} layers"):
        count_layers([*names, f"blocks.{MOST_LAYERS}.weight"], "blocks.")


def test_one_tensor_of_many_that_is_not_stored(tmp_path, host):
    from realisr.host.files import load_state_dict_file

    torch.save({"whole": torch.ones(2**20), "part": torch.ones(1).expand(2**20)}, tmp_path / "part.pth")
    with pytest.raises(
        ValueError, match=r"part\.pth cannot be used: part says it is \[1048576\], 4,194,304 bytes, and 4 "
    ):
        load_state_dict_file(tmp_path / "part.pth")


@pytest.mark.parametrize("ways", [1, 3000])
def test_a_file_of_few_bytes_does_not_become_gigabytes(tmp_path, host, ways):
    """One tensor that repeats a value, and many that share one storage."""
    from realisr.host.files import load_state_dict_file

    stored = torch.zeros(1) if ways == 1 else torch.zeros(2**16)
    tensors = {f"x.{n}": stored.expand(30_000, 30_000) if ways == 1 else stored for n in range(ways)}
    torch.save(tensors, tmp_path / "bomb.pth")
    assert (tmp_path / "bomb.pth").stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"bomb\.pth cannot be used: .* are stored"):
        load_state_dict_file(tmp_path / "bomb.pth")


def test_a_packed_archive_is_not_unpacked_without_bound(tmp_path, host):
    from realisr.host.files import load_state_dict_file

    torch.save({"x": torch.zeros(2**22)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert load_state_dict_file(tmp_path / "plain.pth")[0]["x"].numel() == 2**22
    with pytest.raises(ValueError, match=r"packed\.pth cannot be read: .*unpacks to 16,7"):
        load_state_dict_file(tmp_path / "packed.pth")


def test_tied_weights_may_be_stored_once(tmp_path, host):
    from realisr.host.files import load_state_dict_file

    tied = torch.ones(64, 64)
    torch.save({"embed.weight": tied, "head.weight": tied, "turned.weight": tied.T}, tmp_path / "tied.pth")
    assert len(load_state_dict_file(tmp_path / "tied.pth")[0]) == 3


def test_a_file_that_may_not_be_read(tmp_path, host, monkeypatch):
    """Root reads everything, so that the system's answer is given by hand."""
    from realisr.host.files import load_state_dict_file

    def refuse(self: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "closed.safetensors").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"closed\.safetensors cannot be opened \(Permission denied\)"):
        load_state_dict_file(tmp_path / "closed.safetensors")


NO_NUMBERS = [
    (dtype, value)
    for dtype in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    for value in (math.nan, math.inf, -math.inf)
    # This kind has no infinity.
    if dtype != "float8_e4m3fn" or math.isnan(value)
]


@pytest.mark.parametrize(("dtype", "value"), NO_NUMBERS)
def test_one_value_that_is_no_number_in_any_precision(tmp_path, host, dtype, value):
    from realisr.host.files import load_state_dict_file

    kind = getattr(torch, dtype)
    weights = torch.ones(5, 7)
    save_file({"a": weights.to(kind)}, tmp_path / "ruined.safetensors")
    assert load_state_dict_file(tmp_path / "ruined.safetensors")
    weights[3, 2] = value
    save_file({"a": weights.to(kind)}, tmp_path / "ruined.safetensors")
    with pytest.raises(ValueError, match=r"ruined\.safetensors cannot be used: a holds values that are not numbers"):
        load_state_dict_file(tmp_path / "ruined.safetensors")


def test_the_decoder_that_is_incomplete_is_named_and_not_the_vae(host):
    content = autoencoders.light_decoder()
    for name in sorted(content["model_state_dict"]):
        left = {key: value for key, value in content["model_state_dict"].items() if key != name}
        write(host.models / "vae" / "hostile.pth", {**content, "model_state_dict": left})
        with pytest.raises(ValueError, match=r"^hostile\.pth ") as error:
            load_light("hostile.pth")
        assert "hostile_sd21" not in str(error.value)


SETTINGS = [10**5, 10**9, 10**18, 0, -1, 1.5, True, None, "text", [1], {}, float("inf"), float("nan")]


def test_any_setting_of_pures_config_may_be_odd(attacks):
    """A network is made of whole numbers in bounds, or the setting is named."""
    from realisr.models.pure.config import ChameleonConfig

    released = pure.Sizes().config()
    numbers = [name for name, value in released.items() if type(value) in (int, float)]
    unused = {"max_position_embeddings", "dropout"}
    unclear: list[str] = []
    for seed in range(4 * attacks):
        draw = random.Random(seed)
        name, value = draw.choice(sorted(set(numbers) - unused)), draw.choice(SETTINGS)
        try:
            config = ChameleonConfig.from_json({**released, name: value})
        except ValueError as error:
            unclear += [str(error)] if BARE.search(str(error)) else []
            continue
        assert config.num_layers <= 512 and config.hidden_size <= 2**20, (name, value)
    assert not unclear


@pytest.mark.parametrize("shard", [5, None, "../other/model.safetensors", "/etc/passwd", ["a"]])
def test_an_index_names_files_of_its_folder_only(host, tmp_path, shard):
    from realisr.host.pure.files import weight_files

    (tmp_path / pure.INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lists .*, which is no file of its folder"):
        weight_files("folder", tmp_path)


def test_weights_that_overflow_while_they_run_are_named(host):
    """Each value is a number by itself, and no picture of NaN comes of them."""
    from realisr.nodes.vosr import RestorationCFGSampler

    tiny = TinyVOSR.create(host, "hostile_loud")
    weights = dict(tiny.weights)
    weights["x_embedder.proj.weight"] = torch.full_like(weights["x_embedder.proj.weight"], 3e38)
    save_file(weights, tiny.weight_file)
    host.save_model("clip_vision", "hostile_dino.safetensors", checkpoints.dinov2(width=tiny.config.context_width))
    inputs = given_to(RestorationCFGSampler, "image", torch.full((1, 32, 32, 3), 0.5))
    inputs |= {
        "model": tiny.load(),
        "vae": load_vae("hostile_sd21.safetensors"),
        "vision_encoder": load_vision("hostile_dino.safetensors"),
        "resize": {"resize": "scale factor", "scale": 1.0},
        "steps": 1,
    }
    with pytest.raises(ValueError, match=r"^hostile_loud made values that are not numbers"):
        host.run(RestorationCFGSampler, **inputs)


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 4, 4, 4, 4)])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_tensor_of_another_number_of_dimensions(host, kind, shape):
    """Of every tensor in turn that a loader could read a size off."""
    loader = LOADERS[kind]
    path = host.models / loader.folder / loader.name
    content = loader.content()
    inner = flat(content)
    for name in [name for name in inner if "1." not in name][:24]:
        removed(path)
        whole = inner[name]
        inner[name] = torch.zeros(shape)
        write(path, content)
        inner[name] = whole
        with pytest.raises(ValueError, match=loader.name) as error:
            loader.load(loader.name)
        assert complaint(error.value, loader.name) is None
    removed(path)


@pytest.mark.parametrize("value", [None, 3, "text", [1], {"a": 1}], ids=str)
@pytest.mark.parametrize("kind", ["bridge", "DINOv2", "light decoder", "VQGAN"])
def test_an_entry_that_is_no_tensor(host, kind, value):
    """In place of every kind of tensor, some of which are rearranged before they are counted."""
    loader = LOADERS[kind]
    path = host.models / loader.folder / loader.name
    content = loader.content()
    inner = flat(content)
    for name in [name for name in inner if "1." not in name][:24]:
        whole = inner[name]
        inner[name] = value
        write(path, content)
        inner[name] = whole
        with pytest.raises(ValueError, match=loader.name) as error:
            loader.load(loader.name)
        assert complaint(error.value, loader.name) is None
    removed(path)

"""DINOv2 in the host: loading in both namings, core CLIP vision nodes, VOSR's features, and errors on wrong files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoints

FORMATS = Path(__file__).resolve().parents[1] / "formats"
WIDTH, DEPTH = 64, 4


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return checkpoints.dinov2(width=WIDTH, depth=DEPTH)


@pytest.fixture(scope="module")
def name(host, tensors) -> str:
    return host.save_model("clip_vision", "tiny_dinov2.safetensors", tensors)


@pytest.fixture(scope="module")
def vision(name):
    from realisr.host.vosr.vision import load_vision_encoder

    return load_vision_encoder(name)


def pictures(batch: int = 2, height: int = 40, width: int = 60) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(3))


def test_choices_are_the_files(name):
    from realisr.host.vosr.vision import vision_choices

    assert name in vision_choices()


def test_both_namings_make_the_same_encoder(tmp_path, vision, tensors):
    from realisr.host.vosr.vision import load_dinov2

    torch.save(tensors, tmp_path / "dinov2_vitb14_pretrain.pth")
    renamed = checkpoints.dinov2_hf(tensors)
    save_file(renamed, tmp_path / "model.safetensors")
    save_file({f"dinov2.{key}": value for key, value in renamed.items()}, tmp_path / "classifier.safetensors")
    expected = vision.get_sd()
    assert expected.keys() == renamed.keys()
    for path in tmp_path.iterdir():
        loaded = load_dinov2(path).get_sd()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected), path.name


@torch.no_grad()
@pytest.mark.parametrize("crop", ["center", "none"])
def test_core_clip_vision_node(host, vision, crop):
    import nodes

    (output,) = host.run(nodes.CLIPVisionEncode, clip_vision=vision, image=pictures(), crop=crop)
    assert output["last_hidden_state"].shape == (2, 1 + 37 * 37, WIDTH)
    assert output["penultimate_hidden_states"].shape == (2, 1 + 37 * 37, WIDTH)
    assert output["image_embeds"].shape == (2, WIDTH)
    assert output["last_hidden_state"].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(40, 60), (448, 448), (1, 1), (700, 30)])
def test_features_are_1024_tokens_of_any_image(vision, height, width):
    from realisr.host.vosr.vision import encode_vosr_features

    features = encode_vosr_features(vision, pictures(1, height, width))
    assert features.shape == (1, 1024, WIDTH)
    assert features.dtype == torch.float32
    assert features.isfinite().all() and features.std() > 0.01


@torch.no_grad()
def test_items_of_a_batch_are_independent(vision, monkeypatch):
    from realisr.host.vosr import vision as module

    images = pictures(5)
    alone = torch.cat([module.encode_vosr_features(vision, image) for image in images.split(1)])
    torch.testing.assert_close(module.encode_vosr_features(vision, images), alone, atol=1e-5, rtol=0)
    monkeypatch.setattr(module, "IMAGES_PER_FORWARD", 2)
    torch.testing.assert_close(module.encode_vosr_features(vision, images), alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_alpha_is_left_out(vision):
    from realisr.host.vosr.vision import encode_vosr_features

    images = pictures(1)
    with_alpha = torch.cat([images, torch.rand(1, 40, 60, 1)], dim=-1)
    assert torch.equal(encode_vosr_features(vision, with_alpha), encode_vosr_features(vision, images))


@torch.no_grad()
def test_later_blocks_are_not_run(vision, monkeypatch):
    from realisr.host.vosr.vision import encode_vosr_features

    expected = encode_vosr_features(vision, pictures(1))
    block = vision.model.encoder.layer[3]
    monkeypatch.setattr(block, "forward", lambda *args, **kwargs: pytest.fail("a block past the features was run"))
    assert torch.equal(encode_vosr_features(vision, pictures(1)), expected)


@pytest.mark.parametrize(("depth", "block"), [(12, 8), (24, 17), (4, 2)])
def test_the_block_vosr_was_trained_with(depth, block):
    from realisr.models.vosr.vision import feature_block

    assert feature_block(depth) == block


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_block_it_does_not_have(vision, layer):
    from realisr.host.vosr.vision import encode_vosr_features

    with pytest.raises(ValueError, match=f"this DINOv2 has blocks 0 to 3, block {layer} was asked for"):
        encode_vosr_features(vision, pictures(1), layer)


def test_half_precision_files_stay_half_precision(tmp_path, vision, tensors):
    """Stored as published, computed in float32."""
    from realisr.host.vosr.vision import encode_vosr_features, load_dinov2

    save_file({key: value.half() for key, value in tensors.items()}, tmp_path / "half.safetensors")
    half = load_dinov2(tmp_path / "half.safetensors")
    assert {value.dtype for value in half.get_sd().values()} == {torch.float16}
    with torch.no_grad():
        expected = encode_vosr_features(vision, pictures(1))
        difference = encode_vosr_features(half, pictures(1)) - expected
    assert difference.abs().max() < 0.01 * expected.abs().max()


def test_a_fresh_patcher_can_be_made(vision):
    load, arguments = vision.patcher.cached_patcher_init
    fresh = load(*arguments, disable_dynamic=True)
    assert fresh.model is not vision.model
    for key, value in vision.get_sd().items():
        assert torch.equal(fresh.model.state_dict()[key], value)


def test_an_encoder_of_the_core_loader(host):
    """The host reads DINOv2-large in transformers naming itself."""
    import comfy.clip_vision

    from realisr.host.vosr.vision import dinov2_of

    config = json.loads((Path(comfy.clip_vision.__file__).parent / "image_encoders" / "dino2_large.json").read_text())
    loaded = comfy.clip_vision.ClipVisionModel({**config, "hidden_size": 32, "num_hidden_layers": 2})
    assert dinov2_of(loaded) is loaded.model


def test_another_vision_model_is_refused(host):
    import comfy.clip_vision

    from realisr.host.vosr.vision import encode_vosr_features

    config = json.loads((Path(comfy.clip_vision.__file__).parent / "clip_vision_config_vitl.json").read_text())
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    clip = comfy.clip_vision.ClipVisionModel({**config, **small, "projection_dim": 8})
    with pytest.raises(ValueError, match=r"the connected CLIP_VISION is a clip_vision_model\. Use Load VOSR Vision"):
        encode_vosr_features(clip, pictures(1))


@pytest.mark.parametrize("release", ["dinov2_vitb14", "dinov2_vitl14"])
@pytest.mark.parametrize("naming", ["hub", "transformers"])
def test_released_tensors_fit_exactly(host, release, naming):
    from realisr.host.vosr.vision import checked_config, transformers_names

    shapes = json.loads((FORMATS / f"{release}.keys.json").read_text())
    published = json.loads((FORMATS / f"{release}.config.json").read_text())
    meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    tensors = meta if naming == "hub" else checkpoints.dinov2_hf(meta)
    config = checked_config(release, transformers_names(release, tensors))
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (
        published["embed_dim"],
        published["depth"],
        published["num_heads"],
    )
    assert (config["image_size"], config["patch_size"]) == (published["img_size"], published["patch_size"])


def clip_vit() -> dict[str, torch.Tensor]:
    return {"vision_model.encoder.layers.0.layer_norm1.weight": torch.ones(8)}


def with_registers() -> dict[str, torch.Tensor]:
    return {**checkpoints.dinov2(), "register_tokens": torch.zeros(1, 4, 24)}


def without_a_block_part() -> dict[str, torch.Tensor]:
    return {key: value for key, value in checkpoints.dinov2().items() if key != "blocks.1.mlp.fc2.weight"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (clip_vit, r"is not a DINOv2 encoder\. It looks like a CLIP or SigLIP vision encoder\. Use dinov2_vitb14_pre"),
        (checkpoints.flux, r"is not a DINOv2 encoder\. It looks like a FLUX diffusion model"),
        (with_registers, r"is a DINOv2 with register tokens, which VOSR was not trained with\. Use dinov2_vitb14_pre"),
        (
            lambda: checkpoints.dinov2_hf(checkpoints.dinov2()) | {"embeddings.register_tokens": torch.zeros(1, 4, 24)},
            "is a DINOv2 with register tokens",
        ),
        (without_a_block_part, r"does not fit a DINOv2 encoder: missing encoder\.layer\.1\.mlp\.fc2\.weight"),
        (lambda: {**checkpoints.dinov2(), "head.weight": torch.zeros(10, 24)}, "unexpected head.weight"),
    ],
)
def test_wrong_files(tmp_path, host, make, message):
    from realisr.host.vosr.vision import load_dinov2

    save_file(make(), tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"wrong\.safetensors .*" + message):
        load_dinov2(tmp_path / "wrong.safetensors")


def test_truncated_file(tmp_path, host, tensors):
    from realisr.host.vosr.vision import load_dinov2

    path = tmp_path / "dinov2_vitb14_pretrain.pth"
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"dinov2_vitb14_pretrain\.pth"):
        load_dinov2(path)

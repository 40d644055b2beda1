"""VOSR's vision features against the reference: preprocessing, position table, tokens of a block."""

from __future__ import annotations

import pytest
import torch

from parity import golden
from realisr.models.vosr.vision import INPUT_SIZE, feature_block, preprocess

TOLERANCE = 5e-5


@pytest.mark.parametrize("case", golden.cases("dino_preprocess"))
def test_preprocessing(case):
    pixels = preprocess((case["in/lq"] + 1) / 2, case.parameters["size"])
    stride = case.parameters["stride"]
    golden.assert_within(pixels[..., ::stride, ::stride], case["out/pixels"], TOLERANCE)


def check(case: golden.Case, key: str, tensor: torch.Tensor) -> None:
    actual, expected = case.reference(key, tensor)
    golden.assert_within(actual, expected, TOLERANCE, key)


@torch.no_grad()
@pytest.mark.parametrize("naming", ["hub .pth", "transformers .safetensors"])
@pytest.mark.parametrize("case", golden.cases("dino_features"))
def test_features(host, case, naming, tmp_path):
    from safetensors.torch import save_file

    from harness.checkpoints import dinov2_hf
    from realisr.host.vosr.vision import encode_vosr_features, load_dinov2

    config, state_dict = golden.weights(case.parameters.get("model", case.name))
    if naming.startswith("hub"):
        path = tmp_path / "dinov2_pretrain.pth"
        torch.save(state_dict, path)
    else:
        path = tmp_path / "model.safetensors"
        save_file(dinov2_hf(state_dict), path)
    vision = load_dinov2(path, num_heads=config["num_heads"])
    images = (case["in/lq"].movedim(1, -1) + 1) / 2

    blocks, depth = case.parameters["layers"], len(vision.model.encoder.layer)
    if len(blocks) != 1:
        pytest.skip(f"VOSR's features are one block's; the case has those of {blocks}")
    features = encode_vosr_features(vision, images, blocks[0])
    check(case, "out/feat", features)
    if case.keys("out/feat_last*"):
        (last,) = case.parameters.get("last", [depth - 1])
        check(case, "out/feat_last", encode_vosr_features(vision, images, last))
    if blocks[0] == feature_block(depth):
        assert torch.equal(encode_vosr_features(vision, images), features)
    if not case.keys("mid/pos_embed_448*"):
        return
    check(case, "mid/pos_embed_448", vision.model.embeddings.interpolate_pos_encoding(images, INPUT_SIZE, INPUT_SIZE))

"""PURE's released files by their published key lists, and what is said about files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.pure_tiny import TINY, random_network
from oracles.pure_released import unfuse
from realisr.models.pure import released, vqgan
from realisr.models.pure.config import ChameleonConfig
from realisr.models.pure.transformer import Chameleon
from realisr.models.pure.vocabulary import Vocabulary, check_special_names, id_to_index, image_ids

FORMATS = Path(__file__).resolve().parents[1] / "formats"


def read(name: str):
    return json.loads((FORMATS / name).read_text(encoding="utf-8"))


def released_keys() -> dict[str, tuple[int, ...]]:
    keys = read("pure_chameleon.keys.json")
    return {key: tuple(shape) for key, shape in keys.items() if not key.startswith(released.IGNORED_PREFIXES)}


def on_meta(shapes) -> dict[str, torch.Tensor]:
    return {key: torch.empty(tuple(shape), device="meta") for key, shape in shapes.items()}


def test_backbone_has_exactly_the_released_tensors():
    published = read("pure.config.json")
    config = ChameleonConfig.from_json(published["config"])
    assert config == ChameleonConfig() and released.released_shapes(config) == released_keys()
    network = Chameleon(config, device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == published["parameters"]["backbone"]
    fused = released.fuse(on_meta(read("pure_chameleon.keys.json")), config)
    network.load_state_dict(fused, strict=True, assign=True)
    again = unfuse(network.state_dict(), config)
    assert {key: tuple(value.shape) for key, value in again.items()} == released_keys()


def test_fusing_and_back_keeps_every_number():
    network = random_network(0)
    names = unfuse(network.state_dict(), TINY)
    copies = {key: value.clone() for key, value in names.items()}
    again = released.fuse(dict(names), TINY)
    for key, value in network.state_dict().items():
        assert torch.equal(again[key], value), key
    head = copies["lm_head.weight"]
    assert torch.equal(head[image_ids()], network.lm_head.image.weight)
    hidden = torch.randn(3, TINY.hidden_size)
    assert torch.allclose(network.logits(hidden), hidden @ head.T, atol=1e-5)
    assert torch.allclose(network.image_logits(hidden), (hidden @ head.T)[:, image_ids()], atol=1e-5)


def test_norms_saved_per_head_are_used_as_they_are():
    network = random_network(1)
    tensors = unfuse(network.state_dict(), TINY)
    for key in tensors:
        if key.endswith(("norm.weight", "norm.bias")) and "self_attn" in key:
            tensors[key] = tensors[key].expand(TINY.num_heads, -1).clone()
    config = released.with_stored_norms(TINY, {key: value.shape for key, value in tensors.items()})
    assert config.qk_norm_rows == TINY.num_heads
    other = Chameleon(config)
    other.load_state_dict(released.fuse(tensors, config), strict=True)
    ids = torch.randint(0, 70000, (1, 9))
    assert torch.equal(network(ids), other(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda keys: keys.pop("model.layers.3.mlp.up_proj.weight"), "missing model.layers.3.mlp.up_proj.weight"),
        (lambda keys: keys.update({"model.extra": (1,)}), "unexpected model.extra"),
        (lambda keys: keys.update({"lm_head.weight": (65536, 4096)}), r"lm_head.weight is \[65536, 4096\], expected"),
    ],
)
def test_wrong_tensors_are_named(change, message):
    keys = released_keys()
    change(keys)
    with pytest.raises(ValueError, match=message):
        released.fuse(on_meta(keys), ChameleonConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling {'type': 'linear'}"),
        ({"num_attention_heads": 33}, "hidden_size is 4096, which 33 heads do not divide"),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
        ({"model_parallel_size": 5}, "model_parallel_size is 5"),
    ],
)
def test_config_of_another_model_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        ChameleonConfig.from_json({**read("pure.config.json")["config"], **change})


def test_config_without_a_setting_and_lumina():
    values = read("pure.config.json")["config"]
    with pytest.raises(ValueError, match=r"config\.json lacks vocab_size"):
        ChameleonConfig.from_json({key: value for key, value in values.items() if key != "vocab_size"})
    config = ChameleonConfig.from_json({**values, "vocab_size": 65536, "mask_image_logits": True})
    with pytest.raises(ValueError, match="Lumina-mGPT"):
        config.require_image_vocabulary()


def test_autoencoder_has_exactly_the_released_tensors():
    keys = read("vq_ds8_c2i.keys.json")
    config, tensors = vqgan.check_released("a.pt", {"model": on_meta(keys)})
    published = read("pure.config.json")["vq_ds8_c2i"]
    assert (config.base, list(config.multipliers), config.latent_channels, config.codebook_size) == (
        published["ch"], published["ch_mult"], published["z_channels"], published["codebook_size"],
    )  # fmt: skip
    network = vqgan.VQGAN(config, device="meta")
    network.load_state_dict(tensors, strict=True, assign=True)
    assert {*tensors, *vqgan.UNUSED} == set(keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda keys: keys.update({"quantize.embedding.weight": [8192, 8]}), "codebook is 8192 x 8"),
        (lambda keys: keys.pop("encoder.conv_in.weight"), "lacks 'encoder.conv_in.weight'"),
        (lambda keys: keys.pop("decoder.mid.1.q.bias"), "missing decoder.mid.1.q.bias"),
        (lambda keys: keys.update({"decoder.extra": [1]}), "unexpected decoder.extra"),
    ],
)
def test_another_autoencoder_is_named(change, message):
    keys = read("vq_ds8_c2i.keys.json")
    change(keys)
    with pytest.raises(ValueError, match=message):
        vqgan.check_released("a.pt", on_meta(keys))


def code_name(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def test_names_decide_which_token_is_which_code():
    ids = image_ids().tolist()
    names = {code_name(code): ids[code] for code in range(16384)}
    assert code_name(1024) == "IMGIMGBACEZ"
    assert torch.equal(Vocabulary.from_names(names).ids, Vocabulary.formula().ids)
    names[code_name(9000)], names[code_name(9001)] = names[code_name(9001)], names[code_name(9000)]
    vocabulary = Vocabulary.find([("absent", {}), ("tokenizer.json", names)])
    assert vocabulary.source == "tokenizer.json"
    codes = torch.tensor([[9000, 9001, 5]])
    assert vocabulary.encode(codes).tolist() == [[9001 + 57344, 9000 + 57344, 9]]
    assert torch.equal(vocabulary.code_of_index()[id_to_index(vocabulary.encode(codes))], codes)
    chameleon = {code_name(code): code + 4 for code in range(8192)}
    assert Vocabulary.find([("tokenizer.json", chameleon)]).source == "formula"
    assert id_to_index(torch.tensor([3, 8196, 65535, 73728])).tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names.pop(code_name(77)), "names 16383 image codes"),
        (lambda names: names.update({code_name(77): 9000}), "outside the image ids, such as 9000"),
        (lambda names: names.update({code_name(77): 4}), "an id twice"),
    ],
)
def test_names_that_are_no_bijection_are_refused(change, message):
    names = dict(zip(map(code_name, range(16384)), image_ids().tolist(), strict=True))
    change(names)
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_names(names)


def test_special_tokens_are_checked_by_name():
    names = {"<s>": 0, "<eoss>": 8196, "<racm3:break>": 8197, "<reserved08706>": 8711}
    with pytest.raises(ValueError, match="token <reserved08706> has id 8711, it must have id 8710"):
        check_special_names(names)
    with pytest.raises(ValueError, match="token <s> is absent"):
        check_special_names({})

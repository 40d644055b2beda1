"""Load PURE Model: what it finds, what it accepts, and what a user gets told about files that are not PURE's."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import checkpoints, pure
from harness.autoencoders import sd21_vae


@pytest.fixture(scope="module")
def released(host):
    pure.save_released_files(host.models)
    return host.models / "LLM" / "PURE"


@pytest.fixture
def copy(host, released, tmp_path):
    """A folder in models/LLM to damage."""
    folder = host.models / "LLM" / "copy"
    shutil.copytree(released, folder)
    yield folder
    shutil.rmtree(folder)


def load(name: str = "copy", vq_name: str = "auto (vq_ds8_c2i)", weight_dtype: str = "auto"):
    from realisr.host.pure.loader import load_ar_restorer

    with torch.inference_mode():
        return load_ar_restorer(name, vq_name, weight_dtype)


def edit(path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_both_parts_are_found(host, released, tmp_path):
    import folder_paths

    from realisr.nodes.pure_loaders import LoadARRestorer

    elsewhere = tmp_path / "shared"
    folder_paths.add_model_folder_path("LLM", str(elsewhere))
    try:
        pure.save_pure_folder(elsewhere / "lab" / "PURE 2", pure.backbone(), pure.Sizes().config())
        (elsewhere / "other").mkdir()
        (elsewhere / "other" / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
        choices = {item.id: item.options for item in LoadARRestorer.define_schema().inputs}
        assert {"PURE", "lab/PURE 2"} <= set(choices["model_name"]) and "other" not in choices["model_name"]
        assert choices["vq_name"][0] == "auto (vq_ds8_c2i)" and "vq_ds8_c2i.pt" in choices["vq_name"]
        assert load("lab/PURE 2").name == "lab/PURE 2"
    finally:
        folder_paths.folder_names_and_paths["LLM"][0].remove(str(elsewhere))


def test_the_vqgan_may_lie_in_the_folder(host, copy):
    (host.models / "vae" / pure.VQ_FILE).rename(copy / pure.VQ_FILE)
    try:
        assert load().vq.config.codebook_size == 16384
    finally:
        (copy / pure.VQ_FILE).rename(host.models / "vae" / pure.VQ_FILE)


NEAR = {"bf16": 0.9999, "fp16": 0.9999, "fp32": 0.9999, "fp8_e4m3fn": 0.99, "fp8_e4m3fn_fast": 0.99}


@pytest.mark.parametrize("name", NEAR)
def test_precisions(released, name):
    from realisr.host.pure.loader import WEIGHT_CHOICES

    assert set(WEIGHT_CHOICES) == {"auto", *NEAR}
    exact, restorer = load("PURE"), load("PURE", weight_dtype=name)
    ids = torch.randint(4, 8000, (1, 40))

    def answer(model):
        with torch.inference_mode():
            return model.network.logits(model.network(ids, dtype=model.dtype))

    a, b = answer(exact), answer(restorer)
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > NEAR[name]
    if name.startswith("fp8"):
        assert not torch.equal(a, b)
    sizes = {dtype: load("PURE", weight_dtype=dtype).backbone.model_size() for dtype in ("fp32", "bf16")}
    assert sizes["bf16"] < 0.51 * sizes["fp32"]


def test_fp8_draws_images(released):
    result = pure.run_restorer(load("PURE", weight_dtype="fp8_e4m3fn"), pure.picture(), **pure.QUICK)
    assert result[1:3] == (pure.SENTENCE, pure.CAPTION) and torch.isfinite(result[0]).all()


def test_copies_the_host_makes_by_loading_again(released):
    restorer = load("PURE", weight_dtype="bf16")
    for patcher in (restorer.backbone, restorer.vqgan):
        again = patcher.clone(force_deepcopy=True)
        assert again.model is not patcher.model and again.model_size() == patcher.model_size()


def test_weights_are_not_copied_needlessly(released):
    """In the file's own precision, what need not be fused stays mapped from the file."""
    restorer = load("PURE", weight_dtype="bf16")
    assert restorer.network.model.embed_tokens.weight.dtype == torch.bfloat16
    assert not restorer.network.model.embed_tokens.weight.requires_grad


def test_a_missing_shard(copy):
    (copy / pure.shard_name(2, 2)).unlink()
    with pytest.raises(ValueError, match=r"1 of 2 weight files are missing: model-00002-of-00002\.safetensors"):
        load()


def test_a_truncated_shard(copy):
    shard = copy / pure.shard_name(1, 2)
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors cannot be read: it is damaged"):
        load()


def test_a_shard_of_another_release(copy):
    name = pure.shard_name(1, 2)
    tensors = {key: value for key, value in pure.backbone().items() if "layers.1" in key}
    checkpoints.save_file(tensors, copy / name)
    with pytest.raises(ValueError, match=rf"{name} of copy lacks lm_head.weight \(\d+ tensors"):
        load()


def test_no_index(copy):
    (copy / pure.INDEX).unlink()
    with pytest.raises(ValueError, match=r"neither model.safetensors.index.json nor model.safetensors.*no use without"):
        load()


def test_a_single_file_and_chameleons_own_encoder(copy):
    for shard in (1, 2):
        (copy / pure.shard_name(shard, 2)).unlink()
    (copy / pure.INDEX).unlink()
    extra = {"model.vqmodel.encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)}
    checkpoints.save_file({**pure.backbone(), **extra}, copy / "model.safetensors")
    assert load().config.vocab_size == 73728


def test_lumina_mgpt(copy):
    edit(copy / "config.json", lambda config: config.update(vocab_size=65536))
    with pytest.raises(ValueError, match=r"copy is not a PURE model: the model has 65536 tokens.*Lumina-mGPT"):
        load()


def test_another_kind_of_model(copy):
    edit(copy / "config.json", lambda config: config.update(model_type="llama"))
    with pytest.raises(ValueError, match="There is no folder copy of a PURE model"):
        load()


def test_a_config_of_other_weights(copy):
    edit(copy / "config.json", lambda config: config.update(intermediate_size=64))
    with pytest.raises(
        ValueError,
        match=r"copy does not fit .*config.json states it: model.layers.0.mlp.gate_proj.weight is \[48, 32\]",
    ):
        load()


@pytest.mark.parametrize("number", [1, 2])
def test_a_shard_with_a_misshapen_tensor_is_named(copy, number):
    shard = copy / pure.shard_name(number, 2)
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("proj.weight"))
    save_file({**tensors, name: tensors[name][:-1].clone()}, shard)
    with pytest.raises(ValueError, match=rf"{shard.name} of copy does not fit .*{name} is \["):
        load()


def test_image_logits_are_never_masked(copy):
    edit(copy / "config.json", lambda config: config.update(mask_image_logits=True))
    assert pure.run_restorer(load(), pure.picture(), **pure.QUICK)[0].shape == (1, 64, 64, 3)


@pytest.mark.parametrize("damage", ["{", "[]"])
def test_a_damaged_config(copy, damage):
    (copy / "config.json").write_text(damage, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|holds a list)"):
        load()


def test_a_wrong_tokenizer(copy):
    names = pure.vocabulary()
    names["<reserved08706>"], names["<reserved08799>"] = names["<reserved08799>"], names["<reserved08706>"]
    (copy / "tokenizer.json").write_text(pure.tokenizer_json(names), encoding="utf-8")
    with pytest.raises(ValueError, match=r"copy: .*<reserved08706> has id 8803, it must have id 8710.*tokenizer.json"):
        load()


@pytest.mark.parametrize("damage", [None, "not a tokenizer"])
def test_no_tokenizer(copy, damage):
    (copy / "tokenizer.json").unlink()
    if damage:
        (copy / "tokenizer.json").write_text(damage, encoding="utf-8")
    with pytest.raises(ValueError, match=r"no tokenizer.json" if damage is None else "is not a tokenizer file"):
        load()


def test_a_tokenizer_of_65536_names_is_enough(copy):
    """The second half of the codes then follows by rule."""
    (copy / "tokenizer.json").write_text(pure.tokenizer_json(pure.vocabulary(65536)), encoding="utf-8")
    restorer = load()
    assert restorer.vocabulary.source == "formula" and restorer.vocabulary.ids[8192] == 65536


def test_the_order_of_the_codes_is_read_from_the_names(copy):
    names = pure.vocabulary()
    names[pure.code_name(8192)], names[pure.code_name(9000)] = names[pure.code_name(9000)], names[pure.code_name(8192)]
    (copy / "tokenizer.json").write_text(pure.tokenizer_json(names), encoding="utf-8")
    restorer = load()
    assert restorer.vocabulary.source == "tokenizer.json" and restorer.vocabulary.ids[9000] == 65536


WRONG_VQ = {
    r"codebook is 8192 x 8, PURE needs 16384 x 8": lambda: {"model": pure.vqgan(codes=8192)},
    r"stands for 16 x 16 pixels, PURE needs 8 x 8": lambda: {"model": pure.vqgan(widths=(32,) * 5)},
    r"looks like a KL autoencoder": sd21_vae,
    r"does not fit a LlamaGen VQ autoencoder: missing decoder.conv_in.weight": lambda: {
        "model": {key: value for key, value in pure.vqgan().items() if not key.startswith("decoder.")}
    },
}


@pytest.mark.parametrize("message", WRONG_VQ)
def test_another_autoencoder(host, released, message):
    path = host.models / "vae" / "other.pt"
    torch.save(WRONG_VQ[message](), path)
    with pytest.raises(ValueError, match=rf"other\.pt.*{message}") as raised:
        load("PURE", "other.pt")
    assert "unknown to this pack" not in str(raised.value) or "fit a LlamaGen" in message
    path.unlink()


def test_no_vqgan(host, copy, monkeypatch):
    path = host.models / "vae" / pure.VQ_FILE
    path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(ValueError, match=r"vq_ds8_c2i.pt is in none of .*copy.*vae"):
            load()
    finally:
        path.with_suffix(".away").rename(path)

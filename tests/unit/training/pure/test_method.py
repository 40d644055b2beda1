"""PURE's part of a run: starts, samples, batches, validation, dry runs, the tokenising command."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from PIL import Image

import tokenise
from _pack import ROOT
from harness import pure, pure_training
from realisr.training.captions.conversations import conversation
from realisr.training.engine.config import read_config
from realisr.training.engine.draws import Draws
from realisr.training.engine.dry_run import describe, write_first_batch
from realisr.training.pure.config import PUREConfig
from realisr.training.pure.conversations import read_item
from realisr.training.pure.method import PUREMethod, make_tokeniser
from realisr.training.pure.tokens import Tokeniser

CPU = torch.device("cpu")


@pytest.fixture
def build(make_config):
    def made(device: torch.device = CPU, **changes) -> PUREMethod:
        method = PUREMethod(make_config(**changes))
        method.build(device)
        return method

    return made


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pure", "pure_lora"])
def test_shipped_settings_are_valid(name):
    config = read_config(ROOT / "training" / "configs" / f"{name}.yaml", [], PUREConfig)
    assert config.schedule.warmup + config.schedule.cooldown == config.steps


def test_the_papers_numbers_are_the_defaults():
    config = read_config(ROOT / "training" / "configs" / "pure.yaml", ["optimizer={eps: 1.0e-6}"], PUREConfig)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (4e-4, (0.9, 0.95), 0.1)
    assert (config.batch, config.gradient_clip, config.dropout, config.max_length) == (4, 4.0, 0.05, 11776)


def test_what_captioning_writes_is_read(tmp_path):
    item = conversation("Small blur, large noise. A cat.", ["lq/a.png", "hq/a.png"])
    read = read_item(json.loads(json.dumps(item)), tmp_path, "item")
    assert [turn.answers for turn in read.turns] == [False, True]
    assert read.turns[0].text == pure_training.INSTRUCTION


# --- starts ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_another_model_is_said(make_config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        PUREMethod(make_config(start=tmp_path)).build(CPU)
    start = pure_training.save_start(tmp_path / "other", sizes=pure.Sizes(vocabulary=pure.PLAIN_VOCABULARY))
    with pytest.raises(ValueError, match=r"set lora\.embeddings"):
        PUREMethod(make_config(start=start, lora={"rank": 1, "alpha": 1})).build(torch.device("meta"))
    values = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"tensors differ, model\.layers\.2"):
        PUREMethod(make_config(start=start)).build(torch.device("meta"))
    (start / "config.json").write_text(json.dumps({**values, "vocab_size": 1000}))
    with pytest.raises(ValueError, match="1000 tokens"):
        PUREMethod(make_config(start=start)).build(CPU)


def test_frozen_weights_are_held_in_half_precision(build):
    method = build(lora={"rank": 2, "alpha": 2}, precision="bf16")
    kinds = {value.dtype for name, value in method.network.named_parameters() if not value.requires_grad}
    assert kinds == {torch.bfloat16, torch.float32}  # QK-norms stay in float32
    assert {value.dtype for value in method.network.parameters() if value.requires_grad} == {torch.float32}


# --- samples ---------------------------------------------------------------------------------------------------------


def test_batches_are_filled_up_and_cut(build):
    method = build(max_length=100)
    samples = method.samples()
    batch = method.prepare(method.collate([samples[0], samples[1]]), Draws(0, 0))
    assert batch["ids"].shape == (2, 100)
    method = build()
    samples = method.samples()
    items = [samples[number] for number in range(2)]
    batch = method.prepare(method.collate(items), Draws(0, 0))
    lengths = sorted(len(item["ids"]) for item in items)
    assert batch["ids"].shape == (2, lengths[-1])
    assert set(batch) == set(method.example_batch())
    for row, item in zip(batch["ids"], items, strict=True):
        assert torch.equal(row[: len(item["ids"])], item["ids"]) and not row[len(item["ids"]) :].any()


def test_pictures_are_tokenised_as_they_come_and_then_no_more(build, monkeypatch):
    method = build()
    samples = method.samples()
    first = samples[3]
    assert "crops" in first
    batch = method.prepare(method.collate([first]), Draws(0, 0))
    monkeypatch.setattr(Tokeniser, "crops", lambda self, entry: pytest.fail("read again"))
    assert torch.equal(samples[3]["ids"], batch["ids"][0])


def test_pictures_that_cannot_be_read_give_way(make_config, tmp_path):
    listed = pure_training.save_pairs(tmp_path / "pairs", 6)
    config = make_config(data={"conversations": [{"list": listed}], "side": pure_training.SIDE})
    method = PUREMethod(config)
    method.build(torch.device("meta"))
    (tmp_path / "pairs" / "lq" / "2.png").write_bytes(b"no picture")
    samples = method.samples()
    assert len(samples) == 4  # five are left, in batches of two
    assert [name for name, _ in samples[0]["skipped"]] == [f"{listed}:2"]
    whole = (tmp_path / "pairs" / "hq" / "4.png").read_bytes()
    path = tmp_path / "pairs" / "hq" / "4.png"
    path.write_bytes(whole[:-200])  # its head can still be read
    samples = method.samples()
    noted = [name for number in range(8) for name, _ in samples[number]["skipped"] if number]
    assert noted and set(noted) == {f"{listed}:4"}


# --- validation ------------------------------------------------------------------------------------------------------


def test_validation_writes_a_picture_and_says_whether_a_text(build, tiny, monkeypatch):
    images = {"images": [tiny / "pairs" / "hq" / "0.png", tiny / "pairs" / "hq" / "1.png"]}
    method = build(validation=images)
    batch = method.validation()
    assert batch is not None
    method.network.eval()
    restored = method.restore(batch, Draws(0, 1))
    assert restored.shape == batch["hq"].shape == (2, 3, 32, 32)
    assert restored.min() >= 0 and restored.max() <= 1
    assert method.measure(batch, restored) == {"text": 1.0}
    assert torch.equal(restored, method.restore(batch, Draws(0, 1)))
    decode, pixels = method.vqgan.decode, []
    monkeypatch.setattr(method.vqgan, "decode", lambda codes: pixels.append(decode(codes)) or pixels[-1])
    with torch.autocast("cpu", torch.bfloat16):  # as a run validates
        method.restore(batch, Draws(0, 1))
    assert pixels[0].dtype == torch.float32, "the image tokenizer stays in full precision"
    start = method.config.out / "endless"
    pure.save_pure_folder(start, pure.backbone(0, pure.Sizes(), pure.endless_text()), pure.Sizes().config())
    endless = build(validation=images, start=start)
    endless.network.eval()
    assert endless.restore(batch, Draws(0, 1)).shape == restored.shape
    assert endless.measure(batch, restored) == {"text": 0.0}


# --- dry runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 2}])
def test_a_dry_run_reads_no_weights(make_config, lora, monkeypatch):
    from realisr.training.pure.start import Start

    monkeypatch.setattr(Start, "tensors", lambda self: pytest.fail("weights are read"))
    method = PUREMethod(make_config(lora=lora, precision="bf16"))
    text = "\n".join(describe(method))
    sizes = pure.Sizes()
    per_layer = 4 * sizes.hidden**2 + 3 * sizes.hidden * sizes.mlp + 2 * sizes.hidden + 4 * sizes.hidden // sizes.heads
    whole = 2 * sizes.vocabulary * sizes.hidden + sizes.layers * per_layer + sizes.hidden
    rows = {"qkv": (1, 3), "o": (1, 1)}
    low = sum(2 * sizes.hidden * (inputs + outputs) for inputs, outputs in rows.values())
    low += 2 * (sizes.hidden + 2 * sizes.mlp) + 2 * (sizes.mlp + sizes.hidden)
    trained, frozen = (whole, 0) if lora is None else (sizes.layers * low, whole)
    assert f"trained parameters {trained:,}, frozen {frozen:,}" in text
    assert "5 epochs of 4 steps" in text
    (path,) = write_first_batch(method)
    with Image.open(path) as picture:
        assert picture.size == (2 * 32 + 3 * 4, 2 * 32 + 3 * 4)


# --- the tokenising command ------------------------------------------------------------------------------------------


def test_tokenising_goes_on_where_it_stopped(make_config, tmp_path, monkeypatch, capsys):
    config = make_config()
    settings = {**pure_training.settings(config.start.parent), "out": tmp_path / "run"}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(settings, default=str))))
    make, made = Tokeniser.tokenise, []

    def stop_after_three(self, entry, crops, vqgan):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(entry.key)
        return make(self, entry, crops, vqgan)

    monkeypatch.setattr(Tokeniser, "tokenise", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        tokenise.main(["--config", str(path)])
    first = list(made)
    monkeypatch.setattr(
        Tokeniser, "tokenise", lambda self, *arguments: made.append(arguments[0].key) or make(self, *arguments)
    )
    tokenise.main(["--config", str(path)])
    assert len(made) == 8 and len(set(made)) == 8 and made[:3] == first
    assert "8 conversations, 3 tokenised already" in capsys.readouterr().out
    tokenise.main(["--config", str(path)])
    assert len(made) == 8
    tokeniser = make_tokeniser(config)
    for entry in PUREMethod(config).samples().entries:
        assert tokeniser.has(entry)
    monkeypatch.undo()
    listed = pure_training.save_pairs(tmp_path / "pairs", 2)
    (tmp_path / "pairs" / "lq" / "1.png").unlink()
    with pytest.raises(SystemExit, match="1 conversations could not be tokenised"):
        tokenise.main(["--config", str(path), f"data.conversations=[{{list: {listed}}}]"])

"""Detail-erased pairs: what is made, what a second call makes, and what is trained on."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from harness.dreamsr_training import SIDE, flux_weights
from harness.straight_line_flux import Prompt, velocity
from host_env import ROOT


@pytest.fixture
def config(models, photos, comfyui, tmp_path):
    def make(**changes):
        from realisr.training.dreamsr.pairs import PairsConfig

        content = {
            "out": str(tmp_path / "pairs"),
            "count": 4,
            "batch": 2,
            "precision": "fp32",
            "steps": 2,
            "prompt_tokens": 6,
            "data": {"sources": [{"folder": str(photos)}], "crop": SIDE},
            "models": {
                "flux": str(models / "flux.safetensors"),
                "vae": str(models / "vae"),
                "t5": str(models / "t5.safetensors"),
                "clip": str(models / "clip.safetensors"),
                "tokenizers": str(comfyui.comfyui),
            },
        }
        return PairsConfig.model_validate(content | changes)

    return make


def make_all(config, maker=None):
    from realisr.training.dreamsr.pairs import make_pairs

    return list(make_pairs(config, torch.device("cpu"), maker))[-1]


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_second_call_makes_what_is_not_there(config, monkeypatch):
    from realisr.training.dreamsr import pairs

    given = config()
    report = make_all(given)
    assert (report.made, report.already, report.failed) == (4, 0, {})
    whole = contents(given.out)
    assert len(whole) == 3 * 4 + 1
    # As after a kill between two files of a pair, and before another.
    (given.out / "00000001.pair.json").unlink()
    for suffix in (".hq.png", ".erased.png", ".pair.json"):
        (given.out / f"00000002{suffix}").unlink()
    numbers = []
    draws = pairs.Draws
    monkeypatch.setattr(pairs, "Draws", lambda seed, number, device: numbers.append(number) or draws(seed, number))
    report = make_all(config(batch=1))
    assert (report.made, report.already) == (2, 2) and numbers == [1, 2]
    assert contents(given.out) == whole
    assert make_all(given).already == 4


def test_other_settings_need_another_folder(config):
    make_all(config(count=1))
    with pytest.raises(ValueError, match="made with another strength"):
        make_all(config(strength=[0.2, 0.3]))


def test_erasing_is_image_to_image(config):
    """Against FLUX in straight lines: the shrunk crop with noise of the strength, and Euler steps to 0."""
    from realisr.training.dreamsr.decoder import encode
    from realisr.training.dreamsr.pairs import PairMaker, shrunk
    from realisr.training.engine.draws import Draws

    given = config(shrink=2)
    maker = PairMaker(given, torch.device("cpu"))
    hq = torch.rand(1, 3, SIDE, SIDE)
    erased, (strength,) = maker.erase(hq, ["a wall."], [Draws(3, 5)])
    draws = Draws(3, 5)
    assert strength == pytest.approx(0.3 + 0.2 * draws.uniform(1).item(), abs=1e-6)
    tokens, pooled = maker.text.encode([f"a wall. {given.negative}"])
    small = shrunk(hq, 2)
    assert not torch.equal(small, hq)
    z = encode(maker.autoencoder, small).double()
    x = (1 - strength) * z + strength * draws.normal(1, *z.shape[1:]).double()
    prompt = Prompt(tokens.double(), pooled.double(), 3.5)
    for t in (strength, strength / 2):
        x = x - strength / 2 * velocity(flux_weights(), x, t, prompt)
    with torch.no_grad():
        image = maker.decoder.double()(x)
    expected = (image / 2 + 0.5).clamp(0, 1)
    assert (erased - expected).abs().max() <= 0.5 / 255 + 1e-4


def test_a_pair_that_fails_is_counted_and_tried_again(config):
    from realisr.training.dreamsr.pairs import PairMaker

    class Fails(PairMaker):
        def erase(self, hq, prompts, draws):
            if len(prompts) > 1:
                raise RuntimeError("no memory for two")
            self.calls = getattr(self, "calls", 0) + 1
            erased, strengths = super().erase(hq, prompts, draws)
            return (erased * float("nan") if self.calls == 2 else erased), strengths

    given = config(count=3, batch=3)
    report = make_all(given, Fails(given, torch.device("cpu")))
    assert report.made == 2 and list(report.failed) == [1] and "no numbers" in report.failed[1]
    assert make_all(given).made == 1


def test_gives_up_where_nothing_works(config):
    from realisr.training.dreamsr.pairs import GaveUp, PairMaker

    class Broken(PairMaker):
        def erase(self, hq, prompts, draws):
            raise RuntimeError("the device is gone")

    given = config(count=50, batch=1)
    with pytest.raises(GaveUp, match="20 pairs in a row cannot be made; the last, 19: the device is gone"):
        make_all(given, Broken(given, torch.device("cpu")))


def test_pairs_are_trained_on(config, method):
    """Their share of the samples; the control sees the erased crop, the LoRA's input stays the degraded one."""
    from realisr.training.dreamsr.decoder import encode
    from realisr.training.engine.draws import Draws

    given = config()
    make_all(given)
    made = method(erased={"folder": str(given.out), "share": 0.5})
    samples = made.samples()
    items = [samples[number] for number in range(40)]
    erased = [item for item in items if item["is_erased"]]
    assert 8 <= len(erased) <= 32
    assert [item["name"] for item in items] == [samples[number]["name"] for number in range(40)]
    record = json.loads((given.out / "00000000.pair.json").read_text())
    assert record["crop_prompt"].startswith("part") and 0.3 <= record["strength"] <= 0.5
    photo = next(item for item in items if not item["is_erased"])
    both = []
    for item in (erased[0], photo):
        item.pop("skipped", None)
        both.append(item)
    batch = made.collate(both)
    prepared = made.prepare(batch, Draws(0, 0))
    assert torch.allclose(prepared["condition"][0], encode(made.autoencoder, erased[0]["erased"][None])[0])
    assert not torch.allclose(prepared["lq"][0], prepared["condition"][0])
    assert torch.equal(prepared["condition"][1], prepared["lq"][1])
    assert torch.allclose(prepared["hq"][1], encode(made.autoencoder, photo["hq"][None])[0], atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"holds no pairs; make them with scripts/make_pairs\.py"):
        method("meta", erased={"folder": str(given.out / "none")}).samples()


def test_the_command(config, tmp_path, capsys):
    import yaml

    sys.path.insert(0, str(ROOT / "scripts"))
    import make_pairs

    file = tmp_path / "pairs.yaml"
    file.write_text(yaml.safe_dump(config(count=1).model_dump(mode="json")), encoding="utf-8")
    assert make_pairs.main(["--config", str(file), "--device", "cpu"]) == 0
    assert "1 pairs made, 0 were there, 0 failed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="shrink is 5, which does not divide"):
        make_pairs.main(["--config", str(file), "shrink=5"])
    with pytest.raises(SystemExit, match="did you mean 'strength'"):
        make_pairs.main(["--config", str(file), "strenght=[0.1, 0.2]"])


@pytest.mark.parametrize("name", ["dreamsr_control", "dreamsr_alternating", "dreamsr_pairs"])
def test_shipped_settings(name):
    from realisr.training.dreamsr.config import DreamSRConfig
    from realisr.training.dreamsr.pairs import PairsConfig
    from realisr.training.engine.config import read_config

    kind = PairsConfig if name.endswith("pairs") else DreamSRConfig
    config = read_config(ROOT / "training" / "configs" / f"{name}.yaml", [], kind)
    assert config.data.crop == 512
    if kind is DreamSRConfig:
        assert config.optimizer.learning_rate == 5e-6 and config.batch * config.accumulate == 64


def test_a_pair_that_cannot_be_read_gives_way(tmp_path):
    from realisr.training.dreamsr.pairs import write_pair
    from realisr.training.dreamsr.samples import ErasedPairs

    record = {"prompt": "a wall", "crop_prompt": "bricks", "name": "wall", "strength": 0.4}
    for number in range(3):
        image = torch.full((3, 8, 8), number / 255)
        write_pair(tmp_path, number, image, image, record)
    damaged = tmp_path / "00000001.erased.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    items = [ErasedPairs(tmp_path, 0, 8)[number] for number in range(6)]
    assert {item["name"] for item in items} == {str(tmp_path / "00000000"), str(tmp_path / "00000002")}
    noted = [name for item in items for name, _ in item["skipped"]]
    assert noted and set(noted) == {str(tmp_path / "00000001")}
    assert [item["number"] for item in items] == list(range(6))
    with pytest.raises(ValueError, match=r"8x8 pixels and data\.crop 16"):
        ErasedPairs(tmp_path, 0, 16)[2]
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    with pytest.raises(RuntimeError, match="pairs in a row cannot be read"):
        ErasedPairs(tmp_path, 0, 8)[0]

"""Photos and degradations in real runs of the engine: resumed, with reading processes, with photos that are broken."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor

from harness.training_method import SIDE, Denoiser, DenoiserConfig
from realisr.training.data.config import DataSettings
from realisr.training.data.degradations import Degradations
from realisr.training.data.photos import Photos
from realisr.training.data.validation import validation_batch
from realisr.training.engine.draws import Draws
from realisr.training.engine.engine import Engine
from realisr.training.engine.method import Batch


class PhotoConfig(DenoiserConfig):
    data: DataSettings


class PhotoDenoiser(Denoiser):
    config: PhotoConfig

    def samples(self) -> Photos:  # type: ignore[override]
        return Photos(self.config.data, self.config.seed)

    def pictures(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        hq = batch["hq"].to(draws.device)
        return {"hq": hq, "lq": Degradations(self.config.data.degradation)(hq, draws)}

    def validation(self) -> Batch | None:
        return validation_batch(self.config.data, self.config.validation)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five photos and a torn one, and a shard of four that breaks off in the last."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    with webdataset.TarWriter(str(tmp_path / "shard.tar")) as writer:
        for number in range(9):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(stream, "PNG")
            if number < 5:
                (tmp_path / "photos" / f"{number}.png").write_bytes(stream.getvalue())
            else:
                writer.write({"__key__": str(number), "png": stream.getvalue()})
    shard = tmp_path / "shard.tar"
    shard.write_bytes(shard.read_bytes().rstrip(b"\0")[:-400])
    torn = tmp_path / "photos" / "torn.png"
    torn.write_bytes((tmp_path / "photos" / "0.png").read_bytes()[:200])
    return tmp_path


def engine(photos: Path, out: Path, steps: int, **others: Any) -> Engine:
    settings = {
        "out": out,
        "steps": steps,
        "batch": 2,
        "precision": "fp32",
        "workers": 0,
        "log": {"every": 1, "trackers": []},
        "validation": {"images": [photos / "photos" / "1.png"], "every": 3},
        "data": {
            "sources": [{"folder": str(photos / "photos")}, {"tars": str(photos / "shard.tar")}],
            "crop": SIDE,
            "augment": {"flip": True},
            "degradation": [{"kind": "real_world"}, {"kind": "camera"}],
        },
        **others,
    }
    return Engine(PhotoDenoiser(PhotoConfig.model_validate(settings)))


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_run_goes_on_bit_for_bit_and_counts_what_it_left_out(photos, capsys):
    unbroken = engine(photos, photos / "unbroken", 7)
    unbroken.run()
    broken = engine(photos, photos / "broken", 7, checkpoints={"every": 3})
    broken.should_stop = lambda asked: broken.step == 3  # type: ignore[method-assign]
    broken.run()
    assert max(losses(photos / "broken")) == 3
    resumed = engine(photos, photos / "broken", 7, workers=2)
    resumed.run()
    assert losses(photos / "broken") == losses(photos / "unbroken") and len(losses(photos / "unbroken")) == 7
    for name, value in unbroken.trained.items():
        assert torch.equal(value, resumed.trained[name])
    skipped = [json.loads(line) for line in (photos / "unbroken" / "skipped.jsonl").read_text().splitlines()]
    assert {Path(entry["path"]).name for entry in skipped} == {"torn.png", "shard.tar"}
    assert (photos / "unbroken" / "samples" / "restored_00000006.png").is_file()

"""Weight files of quality metrics: a planted CLIP is not opened, a damaged file is named."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from harness import quality
from harness.damage import OF_BYTES, OF_PICKLES, OF_TENSORS, write
from realisr.services.iqa.metrics import parse_metrics
from realisr.services.iqa.offline import create_network
from realisr.services.iqa.weights import RN50, VIT_B_32, UnpublishedWeights, published_hash


class WritesAFile(torch.nn.Module):
    """TorchScript runs this when the archive is read."""

    def __init__(self, target: str):
        super().__init__()
        self.target = target
        self.register_buffer("kept", torch.zeros(1))

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.target, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.target = state[0]
        self.training = state[1]
        # A mapped and shared file is made where there is none.
        self.kept = torch.from_file(self.target, True, 4, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("name", "file"), [("clipiqa", quality.CLIP_RESNET), ("liqe", quality.CLIP_VIT)])
def test_a_planted_clip_runs_nothing(tmp_path: Path, name: str, file: str):
    folder, target = tmp_path / "pyiqa", tmp_path / "written"
    folder.mkdir()
    quality.save_liqe(folder)
    torch.jit.save(torch.jit.script(WritesAFile(str(target))), str(folder / file))
    torch.jit.load(str(folder / file))
    assert target.is_file(), "the attack itself does not work any more, and proves nothing"
    target.unlink()
    (metric,) = parse_metrics(name)
    with pytest.raises(UnpublishedWeights, match=rf"{file} is not the file that OpenAI publishes .*was not opened"):
        create_network(metric, folder)
    assert not target.exists()


def test_the_hashes_are_those_of_the_addresses():
    assert published_hash(RN50).startswith("afeb0e10f9e5a86da6080e35") and len(published_hash(RN50)) == 64
    assert published_hash(VIT_B_32).startswith("40d365715913c9da98579312")
    assert published_hash("https://example.org/clip/RN50.pt") == ""


def test_a_clip_of_an_address_without_a_hash_is_not_opened(tmp_path: Path):
    from realisr.services.iqa.weights import require_published

    (tmp_path / "clip.pt").write_bytes(b"anything")
    with pytest.raises(UnpublishedWeights, match=r"clip\.pt is not the file"):
        require_published(tmp_path / "clip.pt", "https://example.org/clip.pt")


def test_a_damaged_metric_names_its_files(tmp_path: Path, attacks: int):
    """LIQE's own checkpoint, beside a whole CLIP. What is no ValueError fails by itself."""
    trained = quality.save_liqe(tmp_path)
    (metric,) = parse_metrics("liqe")
    path = tmp_path / quality.LIQE
    unclear: list[str] = []
    with quality.small_clips_are_published():
        for seed in range(attacks):
            draw = random.Random(seed)
            way = draw.choice([*OF_BYTES, *OF_TENSORS, *OF_PICKLES])
            if way in OF_BYTES:
                torch.save({"params": trained}, path)
                path.write_bytes(way(path.read_bytes(), draw))
            else:
                write(path, {"params": way(dict(trained), draw)})
            try:
                create_network(metric, tmp_path)
            except ValueError as error:
                unclear += [f"{seed} ({way.__name__}): {error}"] if quality.LIQE not in str(error) else []
    assert not unclear

"""What training starts from: a released folder, read by tensor; Lumina-mGPT's smaller vocabulary is enlarged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.pure.config import ChameleonConfig
from ...models.pure.released import HEAD, IGNORED_PREFIXES, QK_NORMS, fuse, released_shapes, with_stored_norms
from ...models.pure.vocabulary import IMAGE_RANGES, VOCABULARY
from ...models.pure.vqgan import VQGAN, check_released
from ...models.state_dict import first_few
from ..engine.draws import Draws

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
EMBEDDING = "model.embed_tokens.weight"
PLAIN_VOCABULARY = IMAGE_RANGES[1][0]
"""Tokens of Chameleon and Lumina-mGPT."""


@dataclass(frozen=True)
class Start:
    """A folder of weights, by its headers."""

    folder: Path
    values: Mapping[str, Any]
    """Of config.json."""
    config: ChameleonConfig
    """What is trained: with PURE's vocabulary."""
    files: Mapping[str, Path]
    """Where each tensor is."""
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def enlarged(self) -> bool:
        """Whether tokens are added for the image codes from 8192 on."""
        return self.shapes[EMBEDDING][0] < VOCABULARY

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, on the CPU in the precision they are stored in, one after another."""
        from safetensors import safe_open

        for file in sorted(set(self.files.values())):
            with safe_open(file, "pt") as opened:
                for name in opened.keys():
                    if self.files.get(name) == file:
                        yield name, opened.get_tensor(name)


def read_start(folder: Path) -> Start:
    """What a folder holds, from config.json and the headers of its safetensors.

    Raises FileNotFoundError naming an absent file and ValueError for a folder of another model.
    """
    values = read_values(folder)
    try:
        config = ChameleonConfig.from_json(values)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if config.vocab_size not in (PLAIN_VOCABULARY, VOCABULARY):
        raise ValueError(
            f"{folder} has {config.vocab_size} tokens: PURE has {VOCABULARY}, and Lumina-mGPT, whose vocabulary can be "
            f"enlarged, {PLAIN_VOCABULARY}"
        )
    files, shapes = headers(folder)
    config = with_stored_norms(config, shapes)
    check(folder, shapes, released_shapes(config))
    return Start(folder, values, replace(config, vocab_size=VOCABULARY), files, shapes)


def read_values(folder: Path) -> dict[str, Any]:
    """config.json of a folder that has a tokenizer too. Raises FileNotFoundError for an absent file, and ValueError."""
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"{folder} has no {needed}: `start` is a whole folder of PURE or Lumina-mGPT")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{folder / 'config.json'} is no table of settings")
    return values


def headers(folder: Path) -> tuple[dict[str, Path], dict[str, tuple[int, ...]]]:
    """File and shape of every tensor of a folder that is used. Raises FileNotFoundError and ValueError."""
    from safetensors import SafetensorError, safe_open

    index = folder / INDEX
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else {SINGLE}
    absent = sorted(name for name in names if not (folder / name).is_file())
    if absent:
        raise FileNotFoundError(f"{folder} lacks {first_few(absent)}")
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder / name for name in names):
        try:
            with safe_open(file, "pt") as opened:
                used = [name for name in opened.keys() if not name.startswith(IGNORED_PREFIXES)]
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in used}
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        files |= dict.fromkeys(used, file)
    return files, shapes


def check(folder: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError naming tensors that a folder lacks, or has in another shape."""
    wrong = sorted(name for name, shape in wanted.items() if found.get(name) != shape)
    if wrong:
        raise ValueError(
            f"{folder} is not what its config.json says: {len(wrong)} tensors differ, {wrong[0]} is "
            f"{found.get(wrong[0], 'absent')} and should be {wanted[wrong[0]]}"
        )


def load_weights(
    start: Start, device: torch.device, dtype: torch.dtype, seed: int = 0, zero_image_head: bool = False
) -> dict[str, Tensor]:
    """A state dict of `models.pure.transformer.Chameleon`; on the meta device without reading any tensor.

    dtype: of the matrices; QK-norms stay in float32. seed: of the rows that are added to a smaller vocabulary.
    """
    wanted = released_shapes(start.config)
    if device.type == "meta":
        kinds = {name: torch.float32 if name.endswith(QK_NORMS) else dtype for name in wanted}
        empty = {name: torch.empty(shape, device=device, dtype=kinds[name]) for name, shape in wanted.items()}
        return fuse(empty, start.config, str(start.folder))
    tensors: dict[str, Tensor] = {}
    for name, value in start.tensors():
        if name not in wanted:
            continue
        if name in (EMBEDDING, HEAD) and start.enlarged:
            value = enlarged(value.float(), seed, name)
        if name == HEAD and zero_image_head:
            value = value.clone()
            for first, end in IMAGE_RANGES:
                value[first:end] = 0
        tensors[name] = value.to(device, torch.float32 if name.endswith(QK_NORMS) else dtype)
    return fuse(tensors, start.config, str(start.folder))


def enlarged(rows: Tensor, seed: int, name: str) -> Tensor:
    """Embedding or head `[65536, D]` with rows for the further image codes, drawn as the known codes' rows lie.

    Each channel is normal with the mean and deviation that the rows of codes 0..8191 have.
    """
    first, end = IMAGE_RANGES[0]
    known = rows[first:end]
    noise = Draws((seed, *name.encode()), 0).normal(VOCABULARY - len(rows), rows.shape[1])
    return torch.cat([rows, known.mean(dim=0) + known.std(dim=0) * noise])


def load_vqgan(path: Path, device: torch.device) -> VQGAN:
    """The image tokenizer in float32, frozen. Raises FileNotFoundError, and ValueError for another file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is absent: `vqgan` is vq_ds8_c2i.pt of huggingface.co/FoundationVision/LlamaGen"
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        content: Mapping[str, Any] = load_file(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what unpickling another file raises has no common type
            raise ValueError(f"{path} is no file of tensors ({type(error).__name__})") from error
    config, tensors = check_released(path.name, content)
    network = VQGAN(config, dtype=torch.float32, device="meta")
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return network.to(device).eval().requires_grad_(False)

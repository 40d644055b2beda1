"""Writing a trained PURE as the loader node reads it: config.json, tokenizer.json, sharded safetensors and their index.

Names and shapes are the released folder's. Low-rank updates are added to the weights, because the node takes whole
folders and no LoRA.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.pure.config import ChameleonConfig
from ...models.pure.released import FUSED, HEAD, QK_NORMS, released_shapes, split_name
from ...models.pure.vocabulary import IMAGE_RANGES
from ..engine.files import write_atomically
from .start import INDEX

PREFIX = "transformer."
"""Of the backbone in `network.PURENetwork`."""

LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
"""Files that are taken over from the start."""

SHARD_SIZE = "5GB"


def merged(trained: Mapping[str, Tensor], base: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The backbone's state dict from trained parameters by their names in `PURENetwork`, and for the rest from `base`.

    scale: of low-rank updates, alpha / rank.
    """
    whole = {name.removeprefix(PREFIX): value for name, value in trained.items() if ".lora_" not in name}
    state = {**base, **whole}
    for name, down in trained.items():
        if name.endswith(LORA_A):
            layer = name.removesuffix(LORA_A)
            target = f"{layer.removeprefix(PREFIX)}.weight"
            update = trained[layer + LORA_B].float() @ down.float()
            state[target] = state[target].float() + scale * update
    return state


def released(state: Mapping[str, Tensor], config: ChameleonConfig) -> dict[str, Tensor]:
    """A state dict of `Chameleon` under the released names: what `models.pure.released.fuse` takes."""
    tensors: dict[str, Tensor] = {}
    for key, shape in released_shapes(config).items():
        layer, part, kind = split_name(key)
        group = next((target for target, parts in FUSED.items() if part in parts), None)
        if key == HEAD:
            tensors[key] = whole_head(state)
        elif group is None:
            tensors[key] = state[key]
        else:
            first = 0
            for other in FUSED[group][: FUSED[group].index(part)]:
                first += released_rows(config, other)
            tensors[key] = state[f"{layer}{group}.{kind}"][first : first + shape[0]]
    return tensors


def released_rows(config: ChameleonConfig, part: str) -> int:
    """Rows of one of the layers that are fused."""
    if part.startswith("mlp."):
        return config.intermediate_size
    heads = config.num_heads if part == "self_attn.q_proj" else config.num_kv_heads
    return heads * config.head_dim


def whole_head(state: Mapping[str, Tensor]) -> Tensor:
    """The head's rows in the order of the tokens."""
    other, image = state["lm_head.other.weight"], state["lm_head.image.weight"]
    (first, end), _ = IMAGE_RANGES
    half = end - first
    return torch.cat([other[:first], image[:half], other[first:], image[half:]])


def write_folder(
    folder: Path, state: Mapping[str, Tensor], config: ChameleonConfig, start: Path, dtype: torch.dtype, steps: int
) -> list[Path]:
    """Write a restorer's folder and return its files, the index first.

    state: of `Chameleon`. start: the folder whose config.json and tokenizer go along. dtype: of the tensors; QK-norms
    stay in float32. A folder that is there is replaced file by file, the index last: it always names whole files.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    tensors = {
        name: value.to("cpu", torch.float32 if name.endswith(QK_NORMS) else dtype).contiguous()
        for name, value in released(state, config).items()
    }
    pattern = f"model-step{steps:08d}{{suffix}}.safetensors"
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD_SIZE, filename_pattern=pattern)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "realisr.steps": str(steps)}
    files = []
    for file, names in split.filename_to_tensors.items():
        part = {name: tensors[name] for name in names}
        files.append(write_atomically(folder / file, partial(save_file, part, metadata=metadata)))
    for source in (start / name for name in BESIDE if (start / name).is_file()):
        files.append(write_atomically(folder / source.name, partial(shutil.copyfile, source)))
    files.append(write_json(folder / "config.json", config_values(start, config, dtype)))
    where = {name: file for file, names in split.filename_to_tensors.items() for name in names}
    index = {"metadata": {"total_size": sum(value.nbytes for value in tensors.values())}, "weight_map": where}
    files.insert(0, write_json(folder / INDEX, index))
    remove_others(folder, split.filename_to_tensors)
    return files


def config_values(start: Path, config: ChameleonConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The start's config.json with PURE's vocabulary. Image logits are not masked: no image could be written."""
    values = json.loads((start / "config.json").read_text(encoding="utf-8"))
    changes = {
        "vocab_size": config.vocab_size,
        "mask_image_logits": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    return {**values, **changes}


def write_json(path: Path, content: Any) -> Path:
    return write_atomically(path, lambda place: place.write_text(json.dumps(content, indent=1), encoding="utf-8"))


def remove_others(folder: Path, kept: Iterable[str]) -> None:
    """Delete the weights of earlier steps, which no index names any more."""
    names = set(kept)
    for old in folder.glob("model-step*.safetensors"):
        if old.name not in names:
            old.unlink()

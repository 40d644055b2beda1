"""The released names back from this package's: the reverse of `released.fuse`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from realisr.models.pure.config import ChameleonConfig
from realisr.models.pure.released import FUSED, HEAD, released_shapes, split_name
from realisr.models.pure.vocabulary import IMAGE_RANGES


def unfuse(state_dict: Mapping[str, Tensor], config: ChameleonConfig) -> dict[str, Tensor]:
    """The reverse of `fuse`: a state dict of `Chameleon` under the released names."""
    out: dict[str, Tensor] = {}
    for key in (key for key in released_shapes(config) if key != HEAD):
        layer, part, kind = split_name(key)
        group = next((target for target, parts in FUSED.items() if part in parts), None)
        if group is None:
            out[key] = state_dict[key]
            continue
        kv = config.num_kv_heads * config.head_dim
        sizes = [config.hidden_size, kv, kv] if len(FUSED[group]) == 3 else [config.intermediate_size] * 2
        out[key] = state_dict[f"{layer}{group}.{kind}"].split(sizes)[FUSED[group].index(part)].contiguous()
    return {**out, HEAD: join_head(state_dict)}


def join_head(state_dict: Mapping[str, Tensor]) -> Tensor:
    other, image = state_dict["lm_head.other.weight"], state_dict.get("lm_head.image.weight")
    if image is None:
        return other
    (start, end), _ = IMAGE_RANGES
    half = end - start
    return torch.cat([other[:start], image[:half], other[start:], image[half:]])

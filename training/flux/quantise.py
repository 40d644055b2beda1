"""Frozen weights in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
"""Where FLUX's weights are; embeddings and the last layer stay as they are, a hundredth of them."""


def quantise(transformer: Any, kind: str, device: torch.device) -> Any:
    """The transformer on `device`, the linear layers of its blocks in 8 bits (`int8`) or 4 (`nf4`), or as they are.

    Weights come on the CPU and are quantised on their way. On the meta device the layers hold as many bytes and
    compute nothing.
    Raises ModuleNotFoundError with the install command where bitsandbytes is missing.
    """
    if kind == "full":
        return transformer.to(device)
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ModuleNotFoundError(
            f"base is {kind}, which needs bitsandbytes: pip install bitsandbytes. Or set base to full."
        ) from error
    layers = [
        (name, layer)
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith(BLOCKS)
    ]
    for name, layer in layers:
        bias = layer.bias is not None
        if kind == "int8":
            new: Any = bnb.nn.Linear8bitLt(
                layer.in_features, layer.out_features, bias, has_fp16_weights=False, device="meta"
            )
            new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            new = bnb.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias,
                compute_dtype=layer.weight.dtype,
                quant_type="nf4",
                device="meta",
            )
            new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        new.bias = layer.bias
        transformer.set_submodule(name, new.to(device))
    # What peft asks before it puts a LoRA on such layers.
    setattr(transformer, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", True)
    return transformer.to(device)

"""Frozen weights in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
"""Where FLUX's weights are; embeddings and the last layer stay as they are, a hundredth of them."""


class StandIn(nn.Linear):
    """A quantised layer on the meta device, for estimates: its bytes and no values."""

    def __init__(self, layer: nn.Linear, kind: str):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.dtype = layer.weight.dtype
        values = layer.weight.numel()
        # nf4: half a byte for a weight, and 4 for every 64 of them.
        size = values if kind == "int8" else values // 2 + values // 16
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        # Like the real layer it keeps nothing for the backward pass.
        return x.sum(-1, keepdim=True).expand(*x.shape[:-1], self.out_features).to(self.dtype)


def quantise(transformer: Any, kind: str, device: torch.device) -> Any:
    """The transformer on `device`, the linear layers of its blocks in 8 bits (`int8`) or 4 (`nf4`), or as they are.

    Weights come on the CPU and are quantised on their way.
    Raises ModuleNotFoundError with the install command where bitsandbytes is missing.
    """
    if kind == "full":
        return transformer.to(device)
    layers = [
        (name, layer)
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith(BLOCKS)
    ]
    for name, layer in layers:
        new = StandIn(layer, kind) if device.type == "meta" else quantised(layer, kind).to(device)
        transformer.set_submodule(name, new)
    if device.type != "meta":
        # What peft asks before it puts a LoRA on such layers.
        setattr(transformer, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", True)
    return transformer.to(device)


def quantised(layer: nn.Linear, kind: str) -> Any:
    """bitsandbytes' layer in place of another; its weights are quantised when it moves to a device."""
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ModuleNotFoundError(
            f"base is {kind}, which needs bitsandbytes: pip install bitsandbytes. Or set base to full."
        ) from error
    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    new: Any
    if kind == "int8":
        new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
        new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        new = bnb.nn.Linear4bit(*sizes, compute_dtype=layer.weight.dtype, quant_type="nf4", device="meta")
        new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    new.bias = layer.bias
    return new

"""Choices of weight precision, as the host's own loaders have them."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch

WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp32": {"dtype": torch.float32},
    "fp16": {"dtype": torch.float16},
    "bf16": {"dtype": torch.bfloat16},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""Choices of a diffusion model's loader -> options, as the host's own loader has them."""


def foreign_dtypes() -> dict[str, torch.dtype]:
    """Choices for the precision of a foreign network's weights on the device it will run on."""
    device = comfy.model_management.text_encoder_device()
    if comfy.model_management.is_device_cpu(device):
        default = torch.float32
    elif comfy.model_management.should_use_bf16(device):
        default = torch.bfloat16
    else:
        default = torch.float16
    return {"default": default, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

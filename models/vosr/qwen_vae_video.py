"""The Qwen-Image autoencoder as it is usually published, a video model, cut down to single images.

On one frame a causal convolution sees zeros for the frames before it, so only the last slice of its kernel along
time matters, and the convolutions that change the frame rate never run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

WAN_MARK = "encoder.downsamples.0.residual.0.gamma"
DIFFUSERS_MARK = "encoder.down_blocks.0.norm1.gamma"

# Names of the original Wan code -> names of the 2D file; the decoder's flat block list is regrouped separately.
WAN_NAMES = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)
UPSAMPLES = re.compile(r"^decoder\.upsamples\.(\d+)\.(.*)$")


def is_video(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether this is the video autoencoder, in the original's or in diffusers' naming."""
    if WAN_MARK in state_dict:
        return True
    kernel = state_dict.get("encoder.conv_in.weight")
    return DIFFUSERS_MARK in state_dict and kernel is not None and kernel.ndim == 5


def blocks_per_stage(state_dict: Mapping[str, Tensor]) -> int:
    """Entries of one decoder stage in the original's flat list: residual blocks, then the upsampler."""
    found = (UPSAMPLES.match(key) for key in state_dict)
    return 1 + min((int(m[1]) for m in found if m and m[2].startswith("resample.")), default=0)


def image_name(name: str, per_stage: int) -> str:
    """Name in the 2D file of a tensor named as in the original."""
    match = UPSAMPLES.match(name)
    if match:
        stage, index = divmod(int(match[1]), per_stage)
        part = "upsamplers.0" if index == per_stage - 1 else f"resnets.{index}"
        name = f"decoder.up_blocks.{stage}.{part}.{match[2]}"
    for pattern, replacement in WAN_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def last_frame(name: str, tensor: Tensor) -> Tensor:
    """A tensor without its time axis: a kernel's last slice, a gain `[C, 1, 1, 1]` reshaped."""
    if name.endswith(".weight") and tensor.ndim == 5:
        return tensor[:, :, -1].contiguous()
    if name.endswith(".gamma"):
        return tensor.reshape(-1, 1, 1)
    return tensor


def from_video(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of QwenImageVAE from that of the video autoencoder (see `is_video`)."""
    renamed = dict(state_dict)
    if WAN_MARK in state_dict:
        per_stage = blocks_per_stage(state_dict)
        renamed = {image_name(key, per_stage): value for key, value in state_dict.items()}
    return {key: last_frame(key, value) for key, value in renamed.items() if ".time_conv." not in key}

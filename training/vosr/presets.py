"""The args.json of known VOSR models (arXiv 2604.03225), and networks made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ...models.attention import scaled_dot_product
from ...models.vosr.config import VOSRConfig
from ...models.vosr.dit import VOSRDiT

COMMON_ARGS: dict[str, Any] = {
    "patch_size": 2,
    "mlp_ratio": 4,
    "use_qknorm": True,
    "use_swiglu": True,
    "use_rope": True,
    "use_rmsnorm": True,
    "weak_cond_strength_aelq_list": [0.05, 0.25],
    "interp_type": "lin",
    "t_start": 0,
    "t_end": 1,
    "cfg_scale": 0.5,
    "auxiliary_time_cond": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        **COMMON_ARGS,
        "ae_type": "pixel_unshuffle",
        "ae_downscale": 2,
        "ae_scale": 2.0,
        "resolution": 64,
        "dim": 224,
        "depth": 4,
        "num_heads": 7,
        "mlp_ratio": 3.858,  # 576 hidden channels: multiples of 32 run faster
        "enc_type": "none",
        "enc_dim": 0,
        "encdim_ratio": 0,
    },
    "0.5B": {
        **COMMON_ARGS,
        "ae_type": "sd2",
        "resolution": 512,
        "dim": 1024,
        "depth": 28,
        "num_heads": 16,
        "enc_type": "dinov2b",
        "enc_dim": 768,
        "encdim_ratio": 3,
        "layer_dinov2b_list": [8],
        "dinov2_size": 448,
    },
    "1.4B": {
        **COMMON_ARGS,
        "ae_type": "qwen",
        "resolution": 512,
        "dim": 1536,
        "depth": 36,
        "num_heads": 24,
        "enc_type": "dinov2l",
        "enc_dim": 1024,
        "encdim_ratio": 3,
        "layer_dinov2b_list": [17],
        "dinov2_size": 448,
    },
}
"""By name: the bundled model and the released multi-step ones."""


class CheckpointedDiT(VOSRDiT):
    """Recomputes block activations in the backward pass: less memory, about a third more time."""

    def forward(self, x, t, r=None, z=None, context=None, attention=scaled_dot_product, run_block=None):
        def recompute(index, block, *inputs):
            return checkpoint(block, *inputs, use_reentrant=False)

        return super().forward(x, t, r, z, context, attention, run_block or recompute)


def make_network(
    args: Mapping[str, Any], latent_channels: int, device: torch.device, checkpointing: bool, seed: int
) -> VOSRDiT:
    """A newly initialised network in float32; without weights on the meta device.

    checkpointing: compute activations again in the backward pass.
    """
    config = VOSRConfig.from_args(args, latent_channels, args.get("ae_downscale", 8))
    kind = CheckpointedDiT if checkpointing else VOSRDiT
    if device.type == "meta":
        return kind(config, device="meta")
    # Drawn on the CPU: every device and process starts alike.
    return kind(config).initialise(torch.Generator().manual_seed(seed)).to(device)


def student_args(teacher_args: Mapping[str, Any], method: str, weak_strength: float) -> dict[str, Any]:
    """args.json of the one-step student of a teacher."""
    return {
        **teacher_args,
        "weak_cond_strength_aelq": weak_strength,
        "auxiliary_time_cond": True,
        "distill_type": method,
    }

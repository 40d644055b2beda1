"""What a VOSR training starts from: the args.json of known models, their latent space, and networks for them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.vosr.config import VOSRConfig
from ..models.vosr.dit import VOSRDiT
from ..models.vosr.pixel_vae import PixelUnshuffleVAE
from .vosr_trainer import CheckpointedDiT, LatentSpace
from .vosr_weights import load_model

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
"""args.json by name: the bundled model and the released multi-step ones (arXiv 2604.03225)."""


@dataclass(frozen=True)
class PixelLatents:
    """The pixel-unshuffle latent space, without vision features."""

    vae: PixelUnshuffleVAE

    @property
    def latent_channels(self) -> int:
        return self.vae.latent_channels

    def encode(self, image: Tensor) -> Tensor:
        return self.vae.encode(image)

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent)

    def features(self, image: Tensor) -> Tensor | None:
        return None


def make_latents(args: dict[str, Any], plugin: str | None) -> LatentSpace:
    """The latent space args ask for; `plugin` is "module:function", called with args, for those with a VAE.

    Raises ValueError where args need a VAE and there is no plugin.
    """
    if plugin is not None:
        module, _, function = plugin.partition(":")
        return getattr(importlib.import_module(module), function)(args)
    if args["ae_type"] != "pixel_unshuffle":
        raise ValueError(
            f"ae_type '{args['ae_type']}' needs a VAE and a vision encoder: pass --latents module:function, a function "
            "that takes the args and returns an object with latent_channels, encode, decode and features"
        )
    return PixelLatents(PixelUnshuffleVAE(args["ae_downscale"], args["ae_scale"]))


def make_model(args: dict[str, Any], latents: LatentSpace, checkpointing: bool) -> VOSRDiT:
    """A network without weights; checkpointing: recompute activations in the backward pass."""
    downscale = args.get("ae_downscale", 8)
    config = VOSRConfig.from_args(args, latents.latent_channels, downscale)
    return (CheckpointedDiT if checkpointing else VOSRDiT)(config)


def new_network(
    args: dict[str, Any], latents: LatentSpace, checkpointing: bool, seed: int, weights: Path | None = None
) -> VOSRDiT:
    """The network that flow matching trains: newly initialised, or with the weights of a folder or exported file."""
    model = make_model(args, latents, checkpointing).initialise(torch.Generator().manual_seed(seed))
    if weights is not None:
        model.load_state_dict(load_model(weights)[1].state_dict())
    return model


def student_args(teacher_args: dict[str, Any], method: str) -> dict[str, Any]:
    """args.json of the one-step student of a teacher."""
    return {"weak_cond_strength_aelq": 0.1, **teacher_args, "auxiliary_time_cond": True, "distill_type": method}


def new_student(
    args: dict[str, Any], latents: LatentSpace, checkpointing: bool, seed: int, teacher: VOSRDiT
) -> VOSRDiT:
    """The network that distillation trains: the teacher's weights, and a newly initialised end time."""
    student = make_model(args, latents, checkpointing).initialise(torch.Generator().manual_seed(seed))
    student.load_state_dict({**student.state_dict(), **teacher.state_dict()})
    return student

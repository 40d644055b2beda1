"""What a VOSR checkpoint is, read from its tensor shapes and checked against its args.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..state_dict import require_layers

Shape = Sequence[int]

ARGS_KEY = "vosr_args"
"""Of the args.json that a single file carries: a metadata string, or where the host saves, which keeps no metadata of
ours, a tensor of the bytes of that string."""

POSTERIOR_MEAN = "posterior_mean"
"""`distill_type` of a network trained at t = 1 alone: one step gives the mean of the sharp images that fit the LQ
image, and at any other time, or with the weak condition, its output means nothing (ours; no released model is one)."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "module.")


@dataclass(frozen=True)
class VOSRConfig:
    """Sizes of one VOSR DiT."""

    latent_channels: int = 4
    """Channels C of the latent space; the network reads 2C (LQ latent, noisy latent)."""
    hidden_size: int = 1024
    depth: int = 28
    num_heads: int = 16
    mlp_hidden: int = 2730
    context_width: int = 768
    """Width E of the vision features, 0 for a network without cross-attention."""
    context_hidden: int = 3072
    train_grid: int = 32
    """Side P of the training token grid, which rotary positions are rescaled to."""
    patch_size: int = 2
    has_end_time: bool = False
    """Whether the network takes the end time r of the step (distilled one-step students)."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def train_latent_size(self) -> int:
        """Side of the training latent."""
        return self.train_grid * self.patch_size

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape]) -> VOSRConfig:
        """Read the configuration off tensor shapes (unprefixed names).

        Raises KeyError naming the first tensor that a VOSR DiT must have and `shapes` lacks.
        """
        hidden, in_channels, patch, _ = shapes["x_embedder.proj.weight"]
        head_dim = shapes["blocks.0.attn.q_norm.weight"][0]
        depth = require_layers(shapes, "blocks.")
        context_width = shapes["layer_norm.weight"][0] if "layer_norm.weight" in shapes else 0
        # A merge or a fine-tune may drop the derived rotary table; every released model trained at 512 px.
        table = shapes.get("feat_rope.freqs_cos")
        return cls(
            latent_channels=in_channels // 2,
            hidden_size=hidden,
            depth=depth,
            num_heads=hidden // head_dim,
            mlp_hidden=shapes["blocks.0.mlp.w3.weight"][1],
            context_width=context_width,
            context_hidden=shapes["mlp_ca.fc1.weight"][0] if context_width else 0,
            train_grid=math.isqrt(table[0]) if table is not None else 32,
            patch_size=patch,
            has_end_time="r_embedder.mlp.0.weight" in shapes,
        )

    @classmethod
    def from_args(cls, args: Mapping[str, Any], latent_channels: int, downscale: int = 8) -> VOSRConfig:
        """The configuration an args.json asks for (keys of the reference's training script)."""
        hidden = args["dim"]
        context_width = args["enc_dim"]
        return cls(
            latent_channels=latent_channels,
            hidden_size=hidden,
            depth=args["depth"],
            num_heads=args["num_heads"],
            mlp_hidden=int(2 / 3 * args["mlp_ratio"] * hidden),
            context_width=context_width,
            context_hidden=args["encdim_ratio"] * hidden if context_width else 0,
            train_grid=args["resolution"] // downscale // args["patch_size"],
            patch_size=args["patch_size"],
            has_end_time=bool(args.get("auxiliary_time_cond", args.get("distill_type") is not None)),
        )

    def disagreements(self, args: Mapping[str, Any]) -> list[str]:
        """Where args.json and the tensors differ, one sentence each; empty when they agree."""
        stated = {
            "dim": self.hidden_size,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "patch_size": self.patch_size,
            "enc_dim": self.context_width,
        }
        found = [
            f"{key} is {args[key]} in args.json but {actual} in the tensors"
            for key, actual in stated.items()
            if key in args and args[key] != actual
        ]
        channels = {"sd2": 4, "qwen": 16}.get(args.get("ae_type", ""))
        if channels is not None and channels != self.latent_channels:
            found.append(
                f"ae_type '{args['ae_type']}' means {channels} latent channels in args.json "
                f"but the tensors have {self.latent_channels}"
            )
        return found


def check_args(args: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting of an args.json that a run uses and no model can have been trained with."""
    scale, downscale = args.get("ae_scale", 1.0), args.get("ae_downscale", 1)
    strengths = args.get("weak_cond_strength_aelq_list") or []
    if not isinstance(args.get("ae_type", ""), str):
        raise ValueError(f"ae_type is {args['ae_type']!r:.60}: it must be a name")
    if not is_number(scale) or not 1e-3 <= scale <= 1e3:
        raise ValueError(f"ae_scale is {scale!r:.60}: it must be a number from 0.001 to 1000")
    if type(downscale) is not int or not 1 <= downscale <= 64:
        raise ValueError(f"ae_downscale is {downscale!r:.60}: it must be a whole number from 1 to 64")
    if not isinstance(strengths, list) or not all(is_number(value) and 0 <= value <= 1 for value in strengths):
        raise ValueError(f"weak_cond_strength_aelq_list is {strengths!r:.60}: it must be a list of numbers from 0 to 1")


def gives_posterior_mean(args: Mapping[str, Any]) -> bool:
    """Whether a model's args say that it was trained for a single unguided step from noise and nothing else."""
    return args.get("distill_type") == POSTERIOR_MEAN


def is_number(value: Any) -> bool:
    """bool is a number to Python, and NaN, which is in no range, a float."""
    return type(value) in (int, float)


def strip_wrapper_prefix(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the `module.` or `_orig_mod.` that data-parallel or compiled training puts before every name."""
    out = dict(state_dict)
    for prefix in WRAPPER_PREFIXES:
        if out and all(key.startswith(prefix) for key in out):
            out = {key[len(prefix) :]: value for key, value in out.items()}
    return out

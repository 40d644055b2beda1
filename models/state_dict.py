"""State dicts: what a file's tensors look like, and whether they are the ones a module needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch

FILE_MARKS: tuple[tuple[str, str], ...] = (
    ("double_blocks.0.img_attn.qkv.weight", "a FLUX diffusion model"),
    ("context_mlp.0.net.2.weight", "a DreamSR MM-ControlNet"),
    ("controlnet_x_embedder.weight", "a ControlNet (diffusers naming)"),
    ("transformer_blocks.0.norm1_context.linear.weight", "a FLUX diffusion model (diffusers naming)"),
    ("blocks.0.scale_shift_table", "a VOSR diffusion model"),
    ("encoder.layer.0.layer_scale1.lambda1", "a DINOv2 encoder (transformers naming)"),
    ("blocks.0.ls1.gamma", "a DINOv2 encoder (hub naming)"),
    ("vision_model.encoder.layers.0.layer_norm1.weight", "a CLIP or SigLIP vision encoder"),
    ("visual.transformer.resblocks.0.ln_1.weight", "a CLIP vision encoder (OpenAI naming)"),
    ("text_model.encoder.layers.0.layer_norm1.weight", "a CLIP text encoder"),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 text encoder"),
    ("input_blocks.0.0.weight", "a Stable Diffusion UNet"),
    ("joint_blocks.0.x_block.attn.qkv.weight", "a Stable Diffusion 3 model"),
    ("taesd_decoder.1.weight", "a TAESD preview decoder"),
    ("encoder.down.0.block.0.norm1.weight", "a KL autoencoder (latent-diffusion naming)"),
    ("encoder.down_blocks.0.resnets.0.norm1.weight", "a KL autoencoder (diffusers naming)"),
    ("encoder.downsamples.0.residual.0.gamma", "a Wan or Qwen-Image video VAE"),
    ("encoder.down_blocks.0.norm1.gamma", "a Qwen-Image VAE"),
    ("up_blocks.0.resnets.0.norm1.weight", "an image decoder"),
    ("lora_A.weight", "a LoRA"),
    ("lora_down.weight", "a LoRA"),
)
"""(the end of a tensor's name, what a file that has it is); the first match wins."""


def describe_state_dict(state_dict: Mapping[str, Any]) -> str:
    """What a file looks like, from its tensor names, for an error message."""
    keys = list(state_dict)
    for mark, meaning in FILE_MARKS:
        if any(key.endswith(mark) for key in keys):
            return meaning
    shown = ", ".join(sorted(keys)[:3])
    return f"a file unknown to this pack ({len(keys)} entries, such as {shown})" if keys else "an empty file"


def shapes_of(state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of the entries that are tensors."""
    return {key: tuple(value.shape) for key, value in state_dict.items() if isinstance(value, torch.Tensor)}


MOST_LAYERS = 512
"""Far beyond every network here, and built in seconds."""


def count_layers(names: Iterable[str], prefix: str) -> int:
    """How many layers `names` has tensors of, as in "blocks.0.weight" for the prefix "blocks.": 0, 1, 2 and so on
    up to the first that is absent, so that a stray high number makes no deep network.

    Raises ValueError for more than MOST_LAYERS.
    """
    found = {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    count = sum(1 for _ in takewhile(lambda index: str(index) in found, range(len(found))))
    if count > MOST_LAYERS:
        raise ValueError(f"{prefix}{count - 1} is beyond the {MOST_LAYERS} layers that a network here may have")
    return count


def require_layers(names: Iterable[str], prefix: str) -> int:
    """The same, at least one. Raises KeyError naming the first otherwise."""
    count = count_layers(names, prefix)
    if not count:
        raise KeyError(f"{prefix}0")
    return count


def first_few(names: list[str], count: int = 3) -> str:
    """The first `count` names and how many more there are, for an error message."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")


def require_tensors(what: str, source: str, state_dict: Mapping[str, Any]) -> None:
    """Raises ValueError naming what in the file `source` is no tensor, before the tensors of `what` are rearranged."""
    others = [
        f"{key} is a {type(value).__name__}" for key, value in state_dict.items() if not isinstance(value, torch.Tensor)
    ]
    if others:
        raise ValueError(f"{source} is not a {what}: not all it holds are tensors: {first_few(others)}.")


@contextmanager
def sizes_of(what: str, source: str, state_dict: Mapping[str, Any], advice: str = "") -> Iterator[None]:
    """While the sizes of `what` are read off the tensors of the file `source`, and a network of them is made without
    weights: a ValueError that says what the file lacks (a KeyError's name) or why its tensors make none, what the
    file looks like, and `advice`.
    """
    looks = f"It looks like {describe_state_dict(state_dict)}."
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{source} is not a {what}: it lacks {error}. {looks} {advice}".rstrip()) from error
    except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:
        # What Python says when a shape is read that is shorter or longer than it should be.
        dimensions = isinstance(error, IndexError) or "values to unpack" in str(error)
        why = "the number of dimensions of one is another" if dimensions else error
        raise ValueError(
            f"{source} is not a {what}: its tensors do not make one ({why}). {looks} {advice}".rstrip()
        ) from error


def require_keys(
    what: str, source: str, expected: Mapping[str, Any], state_dict: Mapping[str, Any], optional: tuple[str, ...] = ()
) -> None:
    """Check that `state_dict` has exactly the tensors of `expected` (a module's state_dict), in their shapes and as
    real numbers where those are. A layer that the host keeps quantised (with a `.comfy_quant`) may hold whole ones.

    what: the thing being loaded, as in "VOSR model". source: the file's name. optional: suffixes of names that
    may be missing or extra. Raises ValueError naming the first missing, unexpected, misshapen or mistyped tensors.
    """
    have, want = shapes_of(state_dict), shapes_of(expected)
    missing = [key for key in want if key not in have and not key.endswith(optional)]
    unexpected = [key for key in have if key not in want and not key.endswith(optional)]
    misshapen = [
        f"{key} is {list(have[key])}, expected {list(want[key])}"
        for key in want
        if key in have and have[key] != want[key]
    ]
    mistyped = [
        f"{key} holds {str(state_dict[key].dtype).removeprefix('torch.')} instead of real numbers"
        for key, value in expected.items()
        if key in have and value.is_floating_point() and not state_dict[key].is_floating_point()
        if f"{key.rpartition('.')[0]}.comfy_quant" not in have
    ]
    others = [
        f"{key} is a {type(state_dict[key]).__name__}"
        for key in state_dict
        if key not in have and not key.endswith(optional)
    ]
    problems = []
    if missing:
        problems.append(f"missing {first_few(missing)}")
    if unexpected:
        problems.append(f"unexpected {first_few(unexpected)}")
    if misshapen:
        problems.append(first_few(misshapen))
    if mistyped:
        problems.append(first_few(mistyped))
    if others:
        problems.append(f"no tensors: {first_few(others)}")
    if problems:
        raise ValueError(
            f"{source} does not fit a {what}: {'; '.join(problems)}. It looks like {describe_state_dict(state_dict)}."
        )

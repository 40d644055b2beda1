"""The restoration acceleration LoRA on FLUX, through PEFT: on for the removal forward alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

ADAPTER = "acceleration"
FILE_PREFIX = "transformer."
"""Before PEFT's names in files, as diffusers' pipelines and the host expect them."""

TWO_STREAM = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
ONE_STREAM = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
"""Layers of FLUX's blocks that get an update by default: every product of attention and MLPs. Our choice; the paper
states the rank alone."""


def all_targets(transformer: nn.Module) -> list[str]:
    """Names of the default layers in a FluxTransformer2DModel."""
    kinds = (("transformer_blocks", TWO_STREAM), ("single_transformer_blocks", ONE_STREAM))
    return [
        f"{group}.{index}.{layer}"
        for group, layers in kinds
        for index in range(len(getattr(transformer, group)))
        for layer in layers
    ]


def add_lora(transformer: nn.Module, rank: int, alpha: float, seed: int, targets: Sequence[str] = ()) -> None:
    """Put an untrained LoRA, scale alpha / rank, into the transformer; what it computes does not change yet.

    targets: ends of layer names, all of TWO_STREAM and ONE_STREAM by default. Raises ValueError when none fits.
    """
    from peft import LoraConfig

    names = all_targets(transformer)
    if targets:
        unknown = [target for target in targets if not any(name.endswith(target) for name in names)]
        if unknown:
            raise ValueError(f"lora.targets: FLUX's blocks have no layer {unknown[0]}; known: {', '.join(TWO_STREAM)}")
        names = [name for name in names if name.endswith(tuple(targets))]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)  # type: ignore[arg-type]  # alpha: any number
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=ADAPTER)
    for name, parameter in transformer.named_parameters():
        if is_lora(name):
            parameter.data = parameter.data.float()


def is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def lora_layers(transformer: nn.Module) -> list[nn.Module]:
    """The layers that hold an update; none where PEFT put none in."""
    return [module for module in transformer.modules() if hasattr(module, "lora_A")]


def use_lora(transformer: nn.Module, active: bool) -> None:
    """Switch the updates on or off until the next call, leaving what is trained as it is."""
    for layer in lora_layers(transformer):
        if layer.disable_adapters != active:
            continue
        # PEFT freezes what it switches off, and optimizers hold it.
        trained = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
        layer.enable_adapters(active)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def lora_file(tensors: Mapping[str, Tensor], rank: int, alpha: float) -> dict[str, Tensor]:
    """What a file holds of parameters by name in the transformer: PEFT's names, and alpha where it is not the rank."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not is_lora(name):
            continue
        stem = FILE_PREFIX + name.replace(f".{ADAPTER}.", ".")
        found[stem] = value.contiguous()
        if alpha != rank and ".lora_A." in stem:
            found[stem.partition(".lora_A.")[0] + ".alpha"] = torch.tensor(float(alpha))
    return found


def read_lora(transformer: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Take the updates of a file that `lora_file` made. Raises ValueError when it is another network's or rank."""
    parameters = {name: value for name, value in transformer.named_parameters() if is_lora(name)}
    wanted = {FILE_PREFIX + name.replace(f".{ADAPTER}.", "."): value for name, value in parameters.items()}
    found = {name: value for name, value in tensors.items() if not name.endswith(".alpha")}
    if {name: value.shape for name, value in wanted.items()} != {name: value.shape for name, value in found.items()}:
        odd = sorted(wanted.keys() ^ found.keys()) or [n for n in wanted if wanted[n].shape != found[n].shape]
        raise ValueError(f"lora.start: {source} does not fit this LoRA; the first that differs is {odd[0]}")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])

"""A LoRA that is added in the forward pass, W x + s B A x, and leaves the weights as they are.

For a LoRA that is on for a few forwards only: patching the weights for it would rewrite the whole network twice, keep a
copy of what it rewrote, and round quantised weights. Names are the host's business: whatever Load LoRA understands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.ops
import folder_paths
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from comfy.patcher_extension import PatcherInjection
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...models.state_dict import first_few, require_tensors
from ..copies import copy_of
from ..files import first_line, load_state_dict_file
from ..types import Model

KEY = "realisr_forward_lora"


@dataclass(frozen=True, eq=False)
class AccelerationLoRA:
    """The LoRA of the degradation removal."""

    weights: Mapping[str, Tensor]
    """The file's tensors, in any naming that Load LoRA understands."""
    name: str
    """The file's, for messages."""
    strength: float = 1.0

    @classmethod
    def load(cls, name: str, strength: float) -> AccelerationLoRA:
        """A file of the `loras` folder. Raises ValueError when it is damaged or holds anything but tensors."""
        weights, _ = load_state_dict_file(folder_paths.get_full_path_or_raise("loras", name))
        require_tensors("LoRA", name, weights)
        return cls(weights, name, strength)


@dataclass(frozen=True)
class Target:
    """Where a low-rank update goes: a layer, and the part of its output features (None: all of them)."""

    layer: str
    features: tuple[int, int] | None
    """(start, length)."""

    @classmethod
    def parse(cls, key: str | tuple[Any, ...]) -> Target:
        """From the host's patch key: a weight's name, or that with (dimension, start, length) of a fused weight."""
        name, part, *change = (key, None) if isinstance(key, str) else key
        if change or (part is not None and part[0] != 0):
            raise ValueError(f"it updates {name} otherwise than by adding to output features")
        return cls(name.removesuffix(".weight"), None if part is None else (part[1], part[2]))

    def require_fit(self, network: nn.Module, up: Tensor, down: Tensor) -> None:
        """Raise ValueError unless `network` has the layer, and it takes what the two matrices give."""
        try:
            layer = network.get_submodule(self.layer)
        except AttributeError as error:
            raise ValueError(f"the model has no layer {self.layer}") from error
        if not (up.is_floating_point() and down.is_floating_point() and down.shape[0]):
            raise ValueError(f"its matrices for {self.layer} hold no real numbers")
        outputs, inputs = (getattr(layer, name, 0) for name in ("out_features", "in_features"))
        part = outputs if self.features is None else self.features[1]
        if (up.shape[0], down.shape[1], up.shape[1]) != (part, inputs, down.shape[0]):
            raise ValueError(
                f"{self.layer} has {inputs} input and {part} output features, the LoRA's matrices are "
                f"{list(down.shape)} and {list(up.shape)}"
            )


class LowRankUpdate(nn.Module):
    """s B A x for one layer, added to (a part of) its output."""

    def __init__(self, adapter: LoRAAdapter, strength: float, features: tuple[int, int] | None):
        super().__init__()
        up, down, alpha = adapter.weights[:3]
        rank = down.shape[0]
        self.scale = strength * (1.0 if alpha is None else alpha / rank)
        self.features = features
        linear = comfy.ops.manual_cast.Linear
        self.down = linear(down.shape[1], rank, bias=False, dtype=down.dtype, device="meta")
        self.up = linear(rank, up.shape[0], bias=False, dtype=up.dtype, device="meta")
        self.load_state_dict({"down.weight": down, "up.weight": up}, assign=True)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """x: the layer's input `[..., in]`; output: what it gave for it, `[..., out]`."""
        update = self.up(self.down(x)) * self.scale
        if self.features is None:
            return output + update
        output = output.clone()
        output.narrow(-1, *self.features).add_(update)
        return output


class ForwardLoRA(nn.Module):
    """All updates of one LoRA; loaded, offloaded and counted by the host like any model."""

    def __init__(self, updates: Mapping[Target, LowRankUpdate]):
        super().__init__()
        self.targets = [target.layer for target in updates]
        self.updates = nn.ModuleList(updates.values())
        self.replaced: list[tuple[nn.Module, Callable[..., Tensor], Callable[..., Tensor] | None]] = []

    def by_layer(self) -> Iterator[tuple[str, list[LowRankUpdate]]]:
        layers: dict[str, list[LowRankUpdate]] = {}
        for layer, update in zip(self.targets, self.updates, strict=True):
            layers.setdefault(layer, []).append(update)
        yield from layers.items()

    def put_on(self, network: nn.Module) -> None:
        """Put the updates behind the forwards of `network`'s layers."""
        for name, updates in self.by_layer():
            layer = network.get_submodule(name)
            before = vars(layer).get("forward")
            ours = with_updates(layer.forward, updates)
            layer.forward = ours
            self.replaced.append((layer, ours, before))

    def take_off(self) -> None:
        for layer, ours, before in self.replaced:
            # Not ours any more: an injection from before ours was ejected first and put the layer's own back.
            if layer.forward is not ours:
                continue
            if before is None:
                del layer.forward
            else:
                layer.forward = before
        self.replaced.clear()


def with_updates(forward: Callable[..., Tensor], updates: list[LowRankUpdate]) -> Callable[..., Tensor]:
    def updated(x: Tensor, *args, **kwargs) -> Tensor:
        output = forward(x, *args, **kwargs)
        for update in updates:
            output = update(x, output)
        return output

    return updated


def read_adapters(model: Model, lora: AccelerationLoRA) -> dict[Target, LoRAAdapter]:
    """The LoRA's layers as the host maps them onto `model`.

    Raises ValueError, naming the file, when nothing or something does not fit the model, when the file is incomplete,
    and when a layer has something other than a plain low-rank update.
    """
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    try:
        loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora.weights)), keys)
    except KeyError as error:
        raise ValueError(f"{lora.name} is incomplete: it lacks {error}. Download it again.") from error
    # What the host's readers of the many kinds of LoRA make of tensors in other sizes than they expect.
    except (ValueError, TypeError, IndexError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{lora.name} cannot be read as a LoRA: {first_line(error)}. Download it again, or choose another."
        ) from error
    if not loaded:
        raise ValueError(
            f"No layer of {lora.name} belongs to this model ({type(model.model).__name__}). Its first names are "
            f"{first_few(sorted(lora.weights))}. Choose a LoRA made for this kind of model."
        )
    other = [str(key) for key, adapter in loaded.items() if not is_low_rank(adapter)]
    if other:
        raise ValueError(
            f"{lora.name} is not a plain LoRA: {first_few(other)} hold another kind of update (DoRA, LoHa, LoKr, full "
            "difference). Use Load LoRA for it."
        )
    try:
        adapters = {Target.parse(key): adapter for key, adapter in loaded.items()}
        for target, adapter in adapters.items():
            target.require_fit(model.model, *adapter.weights[:2])
    except ValueError as error:
        raise ValueError(
            f"{lora.name} does not fit this model ({type(model.model).__name__}): {error}. Choose a LoRA made for this "
            "model."
        ) from error
    return adapters


def is_low_rank(adapter) -> bool:
    """Two matrices and nothing else: no convolution's middle, no magnitude (DoRA), no reshaping."""
    if not isinstance(adapter, LoRAAdapter):
        return False
    up, down, _, *extras = adapter.weights
    return up.ndim == down.ndim == 2 and all(extra is None for extra in extras)


def with_forward_lora(model: Model, lora: AccelerationLoRA) -> Model:
    """A clone of `model` that runs with the LoRA on; the two share every weight.

    Raises ValueError as `read_adapters` does.
    """
    patched = copy_of(model)
    patched.set_injections(KEY, [PatcherInjection(inject=inject, eject=eject)])
    patched.set_additional_models(KEY, [managed(read_adapters(model, lora), lora.strength, model.load_device)])
    return patched


def managed(
    adapters: Mapping[Target, LoRAAdapter], strength: float, device: torch.device, disable_dynamic: bool = False
) -> Model:
    """A LoRA's updates under the host's memory management, which copies them to other devices by this function."""
    updates = ForwardLoRA(
        {target: LowRankUpdate(adapter, strength, target.features) for target, adapter in adapters.items()}
    )
    patcher_class = ModelPatcher if disable_dynamic else CoreModelPatcher
    patcher = patcher_class(updates, device, comfy.model_management.unet_offload_device())
    patcher.cached_patcher_init = (managed, (adapters, strength, device))
    return patcher


def updates_of(model: Model) -> ForwardLoRA:
    """The LoRA of a MODEL, or of one of its copies on other devices."""
    (patcher,) = model.get_additional_models_with_key(KEY)
    return patcher.model


def inject(model: Model) -> None:
    updates_of(model).put_on(model.model)


def eject(model: Model) -> None:
    updates_of(model).take_off()

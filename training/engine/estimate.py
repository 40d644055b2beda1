"""What a run would take, from shapes alone: trained parameters, memory, the activations of one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .draws import Draws
from .method import Batch, Method
from .optimizers import STATE_BYTES

AVERAGE_BYTES = 4
GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes, for one device that holds everything."""

    trained: int
    """Parameters, a count."""
    frozen: int
    """Parameters, a count."""
    weights: int
    gradients: int
    optimizer: int
    """Its state, and the average of the weights."""
    activations: int
    """What the forward pass of one micro-batch keeps for the backward pass: the largest of the turns."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def lines(self) -> list[str]:
        """For people."""
        parts = ("weights", "gradients", "optimizer", "activations", "total")
        sizes = [f"{name:<12}{getattr(self, name) / GIB:9.2f} GiB" for name in parts]
        return [f"trained parameters {self.trained:,}, frozen {self.frozen:,}", *sizes]


def estimate(method: Method[Any]) -> Estimate:
    """The estimate of a method built on the meta device.

    Counts what the network holds and keeps. Not in it: what encoders outside the network take, temporary tensors, what
    the device's own libraries take, and other devices' shares under FSDP.
    """
    network, config = method.network, method.config
    trained = [value for value in network.parameters() if value.requires_grad]
    frozen = [value for value in network.parameters() if not value.requires_grad]
    state = STATE_BYTES[config.optimizer.name] + (0 if config.ema is None else AVERAGE_BYTES)
    return Estimate(
        trained=count(trained),
        frozen=count(frozen),
        weights=size(trained) + size(frozen) + size(list(network.buffers())),
        gradients=size(trained),
        optimizer=state * count(trained),
        activations=max(measure_activations(method, turn) for turn in method.all_turns()),
    )


def count(tensors: list[Any]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def size(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure_activations(method: Method[Any], turn: str) -> int:
    """Bytes that a turn's forward pass of one micro-batch keeps for its backward pass, counted on fake tensors."""
    half = method.config.precision == "bf16"
    with FakeTensorMode(allow_non_fake_inputs=True), on_cpu(method.network):
        batch = method.example_batch()
        draws = FakeDraws()
        kept = SavedTensors(method.network, batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=half), kept.counting():
            method.network(turn, batch, draws)
    return kept.bytes


class FakeDraws(Draws):
    """Draws of fake tensors, which have no values."""

    def __init__(self) -> None:
        super().__init__(0, 0)

    def normal(self, *shape: int) -> Tensor:
        return torch.zeros(shape)

    def uniform(self, *shape: int) -> Tensor:
        return torch.zeros(shape)


class SavedTensors:
    """Counts the memory that autograd keeps, every storage once, without what the network and the batch hold anyway."""

    def __init__(self, network: nn.Module, batch: Batch):
        held = [
            *network.parameters(),
            *network.buffers(),
            *(item for item in batch.values() if isinstance(item, Tensor)),
        ]
        self.seen = {storage_of(tensor) for tensor in held}
        self.bytes = 0
        self.alive: list[Tensor] = []

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self.note, lambda tensor: tensor):
            yield

    def note(self, tensor: Tensor) -> Tensor:
        key = storage_of(tensor)
        if key not in self.seen:
            self.seen.add(key)
            self.alive.append(tensor)  # a freed storage's address would be counted as seen
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def on_cpu(network: nn.Module) -> Iterator[None]:
    """A meta network's parameters and buffers as fake CPU tensors within: autocast knows no meta device."""
    held = [(module, name, table) for module in network.modules() for name, table in tables(module)]
    before = [table[name] for _, name, table in held]
    swapped: dict[int, Any] = {}
    for (_, name, table), tensor in zip(held, before, strict=True):
        if id(tensor) not in swapped:
            fake = torch.empty_like(tensor, device="cpu")
            assert isinstance(fake, FakeTensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            swapped[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
        table[name] = swapped[id(tensor)]
    try:
        yield
    finally:
        for (_, name, table), tensor in zip(held, before, strict=True):
            table[name] = tensor


def tables(module: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, table) of a module's own parameters and buffers."""
    for table in (module._parameters, module._buffers):
        yield from ((name, table) for name, value in table.items() if value is not None)

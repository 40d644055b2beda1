"""What a method brings to the training engine: its networks, its data, its losses and what it writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .config import RunConfig
from .draws import Draws

Batch = dict[str, Any]
"""A collated micro-batch: tensors of equal length, and lists of what is no tensor."""

ConfigT = TypeVar("ConfigT", bound=RunConfig)


class Samples(Protocol):
    """Training samples by number: item n depends on the seed and n alone, whatever was read before.

    Items are dictionaries that torch's default collation can stack, or `collate` can.
    """

    def __len__(self) -> int:
        """Samples of an epoch; numbers may run past it."""
        ...

    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


class Method(ABC, Generic[ConfigT]):
    """One restorer in training. `build` is called once, before anything but `config`.

    A step takes the `turns` of its number one after another. A turn's loss moves only its own parameters, through an
    optimizer of its own: most methods have one turn, alternating and adversarial training have more.
    """

    config_type: ClassVar[type[RunConfig]]
    """What its YAML holds."""

    network: nn.Module
    """Every network the losses run through, trained and frozen; what is wrapped for several devices. Called as
    `network(turn, batch, draws)` it gives `{"loss": scalar, name: detached scalar, ...}`. Set by `build`."""

    def __init__(self, config: ConfigT):
        self.config = config

    @abstractmethod
    def build(self, device: torch.device) -> None:
        """Make `network` and whatever else is needed, reading files.

        On the meta device: from the headers of files alone, for the estimate of a dry run.
        Raises ValueError for settings that cannot work, naming them; FileNotFoundError for a missing file.
        """

    def turns(self, step: int) -> Sequence[str]:
        """Names of the turns of step 0, 1, ..."""
        return ("train",)

    def all_turns(self) -> Sequence[str]:
        """Every name that `turns` may give, each once, whatever the run's length."""
        return ("train",)

    def parameters(self, turn: str) -> Iterator[tuple[str, nn.Parameter]]:
        """What a turn trains, by name in `network`."""
        return ((name, value) for name, value in self.network.named_parameters() if value.requires_grad)

    def parameter_groups(self, turn: str) -> list[dict[str, Any]]:
        """Groups for the optimizer: `params` as (name, parameter) pairs, and `rate`, a factor of the learning rate."""
        return [{"params": list(self.parameters(turn)), "rate": 1.0}]

    @abstractmethod
    def samples(self) -> Samples:
        """The training data."""

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        """Items as a micro-batch."""
        return dict(torch.utils.data.default_collate(list(items)))

    @abstractmethod
    def pictures(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """A collated batch as pictures, `lq` and `hq` `[B, 3, H, W]` in [0, 1] on `draws.device`, without any network.

        `prepare` starts from these, and a dry run writes them to look at.
        """

    @abstractmethod
    def example_batch(self) -> Batch:
        """Zeros in the shapes of a prepared batch, on the CPU, to measure a forward pass: no file, no number read."""

    def prepare(self, batch: Batch, draws: Draws) -> Batch:
        """What needs no gradient, on `draws.device`: degradation, encoding, embeddings.

        The batch comes on the CPU; what this returns is on the device. Runs under no_grad and without autocast: the
        method knows which of its parts stand half precision.
        """
        return batch

    def after_step(self, step: int) -> None:
        """Called when step `step` has been taken by the optimizers."""

    @abstractmethod
    def validation(self) -> Batch | None:
        """The fixed validation images, collated on the CPU: at least `lq` and, if known, `hq`, both `[N, 3, H, W]` in
        [0, 1] with the same size. None for a run without."""

    @abstractmethod
    def restore(self, batch: Batch, draws: Draws) -> Tensor:
        """The validation images as the network in its present state restores them, `[N, 3, H, W]` in [0, 1]."""

    def measure(self, batch: Batch, restored: Tensor) -> dict[str, float]:
        """Figures of a validation beside the PSNR that the engine computes."""
        return {}

    @abstractmethod
    def export(self, folder: Path, tensors: Mapping[str, Tensor], steps: int) -> list[Path]:
        """Write the files that the nodes load and return their paths.

        tensors: trained parameters by name in `network`, whole, on the CPU; averaged where the run keeps an average.
        steps: how many the run has taken. Written through `files.write_atomically`.
        """

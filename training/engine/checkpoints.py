"""A run's checkpoints: folders that are whole or not there, of which the newest good one is resumed.

`checkpoints/step_00000500/` holds `network.safetensors` (trained parameters), `average.safetensors` where the run
keeps an average, `optimizers.pt` and `state.json`. Parameters that are spread over devices are put together, so that a
run may go on with another number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from .files import sync

PREFIX = "step_"
PARTIAL = ".partial"
DIVERGED = ".diverged"
"""Ending of a checkpoint that was set aside because the step after it gave no number."""
CHUNK = 2**24
STATE = "state.json"
NETWORK = "network.safetensors"
AVERAGE = "average.safetensors"
OPTIMIZERS = "optimizers.pt"
FROM_SETTINGS = ("betas", "eps", "weight_decay", "rate")
"""What of an optimizer's groups comes from the run's settings; the learning rate is set at every step."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the folder and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from, on the CPU."""

    step: int
    config: dict[str, Any]
    """The settings of the run that wrote it."""
    network: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizers: dict[str, list[dict[str, Any]]]
    """State dicts by turn."""


def whole(value: Any, keep: bool = True) -> Any:
    """A copy of a state on the CPU, its tensors put together where they are spread over devices.

    keep: false for a process that only helps to put them together, and gets empty tensors.
    """
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True) if keep else torch.empty(0)
    if isinstance(value, Mapping):
        return {key: whole(item, keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item, keep) for item in value)
    return value


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` lies: on its device, or over the devices it is spread on."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state dict into an optimizer whose parameters may be spread over devices.

    What the run's settings say stays as the optimizer has it. Raises ValueError when it belongs to other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    spread_state = {
        index: {
            name: spread(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in entries.items()
        }
        for index, entries in state["state"].items()
    }
    settings = [{key: group[key] for key in FROM_SETTINGS if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": spread_state, "param_groups": state["param_groups"]})
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write one into `folder`; checkpoints of later steps, which the run did not go on from, are deleted.

    A write that fails or is killed leaves the older ones as they are. Raises OSError when the disk is full.
    """
    target = folder / f"{PREFIX}{checkpoint.step:08d}"
    partial = target.with_name(target.name + PARTIAL)
    remove(partial)
    partial.mkdir(parents=True)
    try:
        save_file(checkpoint.network, partial / NETWORK)
        if checkpoint.average is not None:
            save_file(checkpoint.average, partial / AVERAGE)
        torch.save(checkpoint.optimizers, partial / OPTIMIZERS)
        written = sorted(partial.iterdir())
        state = {
            "step": checkpoint.step,
            "config": checkpoint.config,
            "sizes": {path.name: path.stat().st_size for path in written},
            "checksums": {path.name: checksum(path) for path in written},
        }
        content = {**state, "checksum": state_checksum(state)}
        (partial / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for path in partial.iterdir():
            sync(path)
        sync(partial)
        remove(target)
        os.replace(partial, target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError | RuntimeError):  # torch and safetensors hide the system's error
            raise OSError(f"cannot write the checkpoint {target}: {error}. The older checkpoints are whole.") from error
        raise
    sync(folder)
    for step, path in checkpoints(folder):
        if step > checkpoint.step:
            remove(path)
    return target


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total


def state_checksum(state: Mapping[str, Any]) -> int:
    """CRC-32 of the content of a state.json."""
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def prune(folder: Path, step: int, keep: int) -> None:
    """Delete the checkpoints up to a step but the newest `keep`, and what killed writes and deletions have left."""
    whole_ones = [path for found, path in checkpoints(folder) if found <= step]
    for path in whole_ones[keep:]:
        remove(path)
    for path in folder.glob(f"{PREFIX}*"):
        if path.suffix == PARTIAL or not (path / STATE).is_file():
            remove(path)


def set_aside(folder: Path, step: int) -> Path | None:
    """Take a checkpoint out of the way where there is an older one. Returns its new place, None when it stays."""
    path = folder / f"{PREFIX}{step:08d}"
    if not any(found < step for found, _ in checkpoints(folder)) or not path.is_dir():
        return None
    aside = path.with_name(path.name + DIVERGED)
    if aside.exists():
        shutil.rmtree(aside)
    os.replace(path, aside)
    return aside


def remove(folder: Path) -> None:
    """Delete a checkpoint so that a killed deletion leaves none that looks whole."""
    (folder / STATE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, folder) of complete ones, newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit()]
    steps = ((int(path.name[len(PREFIX) :]), path) for path in found if (path / STATE).is_file())
    return iter(sorted(steps, reverse=True))


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises CheckpointError when a file of it is missing, cut or damaged."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state.pop("checksum") != state_checksum(state):
            raise CheckpointError(f"{path / STATE} is damaged: its checksum is another")
        for name, size in state["sizes"].items():
            found = (path / name).stat().st_size
            if found != size:
                raise CheckpointError(f"{path / name} has {found} bytes, it was written with {size}")
            if checksum(path / name) != state["checksums"][name]:
                raise CheckpointError(f"{path / name} is damaged: its checksum is another")
        average = path / AVERAGE
        return Checkpoint(
            state["step"],
            state["config"],
            load_file(path / NETWORK),
            load_file(average) if average.name in state["sizes"] else None,
            torch.load(path / OPTIMIZERS, map_location="cpu", weights_only=True),
        )
    except CheckpointError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        EOFError,
        SafetensorError,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    except Exception as error:  # what unpickling a damaged file raises has no common type
        raise CheckpointError(f"{path / OPTIMIZERS} is damaged ({type(error).__name__}: {error})") from error


def newest_checkpoint(folder: Path, warn: Any) -> Checkpoint | None:
    """The newest one that can be read, None when there is none; `warn` is told of those that cannot.

    Raises CheckpointError when there are some and none can be read.
    """
    damage: list[CheckpointError] = []
    for _, path in checkpoints(folder):
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            damage.append(error)
            warn(f"{error}; trying an older one")
    if damage:
        raise CheckpointError(f"{damage[0]}. No older checkpoint is left: delete {folder} to start anew.")
    return None

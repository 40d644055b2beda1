"""What frozen networks make of texts and pictures, computed once and kept on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..engine.files import write_atomically

log = logging.getLogger(__name__)

Compute = Callable[[list[int]], Mapping[str, Tensor]]
"""Positions in the list of keys -> tensors whose first dimension is those positions."""


class FeatureCache:
    """A folder with one file for each key. Several processes, on several machines, may use it at once.

    settings: everything beside the key that decides the result: the model's file and its digest, precision, lengths.
    Other settings are other entries. A file that is damaged is made anew.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self.failed = False

    def fetch(self, keys: Sequence[str], compute: Compute) -> dict[str, Tensor]:
        """Tensors for all keys, stacked in their order, on the CPU.

        compute: called once, with the position of every key that is not there, each key once; not called when all are.
        On a full or forbidden disk the results are used and not kept, and that is said once.
        Raises ValueError when a key's tensors have other names or shapes than another's, which cannot be stacked.
        """
        found: dict[str, dict[str, Tensor]] = {}
        missing: dict[str, int] = {}
        for position, key in enumerate(keys):
            if key in found or key in missing:
                continue
            stored = self.load(key)
            if stored is None:
                missing[key] = position
            else:
                found[key] = stored
        if missing:
            made = compute(list(missing.values()))
            for row, key in enumerate(missing):
                found[key] = {name: value[row].detach().cpu().contiguous() for name, value in made.items()}
                self.store(key, found[key])
        return stack([found[key] for key in keys])

    def path(self, key: str) -> Path:
        """Where a key's file is."""
        digest = hashlib.sha256(json.dumps([self.settings, key]).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def load(self, key: str) -> dict[str, Tensor] | None:
        """A key's tensors; None where they are not there, or not whole."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if (metadata.get("key"), metadata.get("settings")) != (key, self.settings):
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("%s is damaged and made anew: %s", path, error)
            return None

    def store(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a key's file, whole or not at all; the last of several processes that write the same key stays."""
        path = self.path(key)
        # A name of its own: two processes may be writing this key.
        own = path.with_name(f".{path.stem}-{os.getpid()}-{uuid.uuid4().hex}")
        metadata = {"key": key, "settings": self.settings}
        # save_file keeps views of one storage apart only when each is a tensor of its own.
        whole = {name: value.clone() for name, value in tensors.items()}
        try:
            write_atomically(own, lambda file: save_file(whole, file, metadata=metadata))
            os.replace(own, path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                own.unlink()
            if not self.failed:
                log.warning("features cannot be kept in %s and will be computed again: %s", self.folder, error)
            self.failed = True


def stack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of equal names and shapes, stacked."""
    if not rows:
        return {}
    forms = {tuple(sorted((name, tuple(value.shape)) for name, value in row.items())) for row in rows}
    if len(forms) > 1:
        first, second = sorted(forms)[:2]
        raise ValueError(f"features of one batch differ in form, {first} and {second}: pad them to one length")
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def content_key(tensor: Tensor) -> str:
    """A key for what is computed from a tensor: equal for equal numbers, shapes and types."""
    flat = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{flat.dtype}{tuple(flat.shape)}".encode())
    digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Attacks drawn from a seed: how many, and from which number on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from harness.host import InProcessHost
from harness.vosr import TinyVOSR


@pytest.fixture(scope="session")
def attacks() -> int:
    """How many per loader: REALISR_ATTACKS, or a few."""
    return int(os.environ.get("REALISR_ATTACKS") or 25)


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_vosr(host: InProcessHost) -> TinyVOSR:
    return TinyVOSR.create(host, "hostile_tiny")

"""Tiny VOSR networks for the tests of the host, written once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from harness.host import InProcessHost
from harness.vosr import TinyVOSR


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Networks this small run faster on one thread than on several, on a busy machine by far."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def multi_step(host: InProcessHost) -> TinyVOSR:
    """SD 2.1 latents, vision features, no end time."""
    return TinyVOSR.create(host, "tiny_ms")


@pytest.fixture(scope="session")
def one_step(host: InProcessHost) -> TinyVOSR:
    """The same with an end time: a distilled student."""
    return TinyVOSR.create(host, "tiny_os", seed=1, has_end_time=True)


@pytest.fixture(scope="session")
def qwen_space(host: InProcessHost) -> TinyVOSR:
    """Qwen-Image latents."""
    return TinyVOSR.create(host, "tiny_qwen", seed=2, latent_channels=16, context_width=32)

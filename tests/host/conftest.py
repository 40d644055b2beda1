"""Tiny VOSR networks for the tests of the host, written once a session."""

from __future__ import annotations

import pytest
from harness.host import InProcessHost
from harness.vosr import TinyVOSR


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

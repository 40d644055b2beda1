"""Every method under flags and in weights of less precision, near to float32. All of them: benchmarks/precision.py."""

from __future__ import annotations

import numpy as np
import pytest

from harness.methods import METHODS, graphs, save_files
from harness.precision import LIMITS, distance, greedy, in_precision, save_stored_files, unrounded

FLAGS = ("--fast", "--cpu-vae", "--use-split-cross-attention")


@pytest.fixture(scope="module")
def exact(start_server) -> dict[str, np.ndarray]:
    """method -> its picture in float32 on a server without flags."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with start_server() as server:
            save_files(server.models)
            made = {name: greedy(graph) for name, graph in graphs(server.client).items()}
            return {name: unrounded(server, in_precision(graph, "fp32") or graph) for name, graph in made.items()}


@pytest.fixture(scope="module")
def flagged(start_server):
    """A server with flags, and its models in several precisions."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        with start_server(*FLAGS) as server:
            save_files(server.models)
            save_stored_files(server.models)
            yield server


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", ["fp32", "bf16", "fp8_e4m3fn"])
def test_near_to_float32(exact, flagged, method: str, weights: str):
    graph = in_precision(greedy(graphs(flagged.client)[method]), weights)
    assert graph is not None
    found = distance(unrounded(flagged, graph), exact[method])
    if method == "PURE" and weights != "fp32":
        # One token drawn otherwise changes all that follow; tests/host/test_pure_files.py compares before the draw.
        assert np.isfinite(found)
    else:
        assert found <= LIMITS[weights]
        assert weights == "fp32" or found > 0, "the weights are as they were"


def test_the_distance_tells_what_is_wrong():
    picture = np.linspace(0, 1, 48, dtype=np.float32).reshape(4, 4, 3)
    assert distance(picture, picture) == 0
    assert distance(picture + picture.std(), picture) == pytest.approx(1, rel=1e-4)
    assert distance(np.where(picture > 0.9, np.nan, picture), picture) == float("inf")
    assert distance(picture[:2], picture) == float("inf")

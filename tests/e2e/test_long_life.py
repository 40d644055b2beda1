"""A server that runs, fails, is cancelled and is killed, with every method. `make soak N=300` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_server import ComfyServer
from harness.kills import check, picture_of
from harness.methods import drop, graphs, save_files, with_seed
from harness.server_memory import READABLE
from harness.soak import KEPT_RESULTS, Footprint, Soak, save_damaged_files


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def own_server(start_server, temporary: Path):
    """A server of its own, which keeps what it loaded, and its temporary files in a folder of its own."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TMPDIR", str(temporary))
        environment.setenv("OMP_NUM_THREADS", "1")
        with start_server("--cache-lru", str(KEPT_RESULTS)) as server:
            save_files(server.models)
            save_damaged_files(server.models)
            yield server


@pytest.mark.slow
@pytest.mark.skipif(not READABLE, reason="reads the server's process from /proc (Linux)")
def test_after_failures_and_cancels_all_is_as_before(own_server: ComfyServer, temporary: Path):
    soak = Soak(own_server, temporary)
    for method in soak.graphs:
        soak.run(method, 9_999_999)
    weights = soak.digests()
    soak.round(0)
    before = Footprint.of(own_server, temporary)
    soak.round(1)
    after = Footprint.of(own_server, temporary)
    assert soak.wrong == []
    assert soak.counts["runs"] == 3 * len(soak.graphs)
    assert soak.digests() == weights
    assert [name for name in soak.threads if name.startswith("realisr")] == []
    assert after.temporary == before.temporary
    drop(own_server.client)
    assert Footprint.of(own_server, temporary).tensors < 0.1
    soak.again(2)
    assert soak.wrong == []


@pytest.mark.slow
def test_a_server_killed_while_it_samples_makes_the_same_picture_later(own_server: ComfyServer):
    graph = with_seed(graphs(own_server.client)["VOSR, guided"], 3)
    expected = picture_of(own_server, graph)
    before = own_server.process
    assert check(own_server, "VOSR, guided", graph, "sampling", expected) == []
    assert own_server.process is not before

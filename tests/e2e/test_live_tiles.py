"""What is seen of a restoration in tiles while it runs: over the API, and on the node in the browser."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from PIL import Image

from comfy_server import ComfyServer, PromptResult
from harness.waiting import wait_until

SAMPLER, RESULT = "4", "5"


def restoration(seed: int, scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    """The photo that comes with the pack, restored by the network that comes with it in tiles of 64 pixels."""
    inputs = {
        "model": ["2", 0],
        "vae": ["3", 0],
        "image": ["1", 0],
        "resize": "scale factor",
        "resize.scale": scale,
        "steps": 0,
        "restoration_scale": 0.5,
        "seed": seed,
        "color_alignment": "adain",
        "tiling": "auto",
        "weak_strength": 0.15,
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "posterior": "mean",
        "vae_tile_size": 0,
    }
    loader = {"model_name": "VOSR nano (bundled)", "weight_dtype": "default", "variant": "auto"}
    vae = {"vae_name": "pixel unshuffle x2 (no file)", "decoder_name": "none (the VAE's own)"}
    return {
        "1": {"class_type": "RealISR_ExamplePhoto", "inputs": {"photo": "moose"}},
        "2": {"class_type": "RealISR_LoadVOSRModel", "inputs": loader},
        "3": {"class_type": "RealISR_LoadVOSRVAE", "inputs": vae},
        SAMPLER: {"class_type": "RealISR_RestorationCFGSampler", "inputs": inputs | changes},
        RESULT: {"class_type": "PreviewImage", "inputs": {"images": [SAMPLER, 0]}},
    }


def texts(result: PromptResult) -> list[str]:
    return [text for node, text in result.texts if node == SAMPLER]


def require_rising(result: PromptResult) -> None:
    shares = [value / total for value, total in result.progress(SAMPLER)]
    assert 0 < shares[0] < 0.02 and shares[-1] == 1.0
    assert all(before <= after for before, after in pairwise(shares))


def test_pictures_a_line_and_one_bar(server: ComfyServer):
    seen = server.client.run(restoration(seed=1))
    require_rising(seen)
    assert seen.previews
    assert {Image.open(io.BytesIO(picture)).size for picture in seen.previews} == {(512, 341)}
    assert texts(seen)[0] == "reading the picture"
    assert re.fullmatch(r"done in \d+:\d\d", texts(seen)[-1])
    assert any(text.startswith("tiles 1 to ") for text in texts(seen))
    # An input that neither changes the result nor is part of it: run again without.
    unseen = server.client.run(restoration(seed=1, preview=False))
    require_rising(unseen)
    assert unseen.previews == [] and texts(unseen) == []
    with_it, without = (server.client.image(result.images(RESULT)[0]) for result in (seen, unseen))
    assert with_it.tobytes() == without.tobytes()


SEEN_IN_CLASSIC = "(id) => window.app.graph.getNodeById(id).imgs?.[0]?.naturalWidth === 512"
SEEN_IN_NODES2 = """
(id) => [...document.querySelectorAll(`[data-node-id="${id}"] img`)]
    .some(({ src, naturalWidth }) => src.startsWith("blob:") && naturalWidth === 512)
"""
LINE = """
(id) => window.app.graph.getNodeById(id).widgets.map(({ value }) => value)
    .find((value) => /^tiles \\d+ to \\d+ of \\d+ · \\d+:\\d\\d left$/.test(value))
"""


@pytest.fixture
def ended(server: ComfyServer) -> Iterator[None]:
    """Cancels what still runs. Asked for before the page, it comes after the page's last look."""
    yield
    server.client.interrupt()
    wait_until(lambda: server.client.get("/prompt")["exec_info"]["queue_remaining"] == 0)


def test_the_node_shows_the_picture_while_it_runs(ended, canvas):
    """Large enough to take longer than looking does."""
    canvas.open_api(restoration(seed=2, scale=4.0))
    canvas.page.evaluate(
        """(id) => {
            const { graph, canvas } = window.app;
            graph.getNodeById(id).pos = [420, 20];
            Object.assign(canvas.ds, { scale: 0.9, offset: [60, 80] });
            canvas.setDirty(true, true);
        }""",
        SAMPLER,
    )
    nodes2 = canvas.page.evaluate("window.app.extensionManager.setting.get('Comfy.VueNodes.Enabled')")
    canvas.page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
    canvas.page.wait_for_function(SEEN_IN_NODES2 if nodes2 else SEEN_IN_CLASSIC, arg=SAMPLER, timeout=60_000)
    canvas.page.wait_for_function(LINE, arg=SAMPLER, timeout=60_000)

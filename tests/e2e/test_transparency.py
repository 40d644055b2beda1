"""A PNG with transparency from Load Image, which takes it out into a mask, to Save Image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from _pack import ROOT
from comfy_server import ComfyServer
from demo import node_of

WORKFLOW = ROOT / "workflows" / "api" / "vosr_nano_restore.json"
SIZE = (37, 26)


def restored(server: ComfyServer, picture: Image.Image, scale: float, mask: bool = True) -> Image.Image:
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    loader, sampler = node_of(graph, "LoadImage"), node_of(graph, "RealISR_RestorationCFGSampler")
    graph[loader]["inputs"]["image"] = server.client.upload_image(picture, f"transparency_{picture.mode}.png")
    assert graph[sampler]["inputs"]["mask"] == [loader, 1]
    graph[sampler]["inputs"]["resize.scale"] = scale
    if not mask:
        del graph[sampler]["inputs"]["mask"]
    (file,) = server.client.run(graph).images(node_of(graph, "SaveImage"))
    return server.client.image(file)


def noise(channels: int) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 256, (SIZE[1], SIZE[0], channels), np.uint8)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_transparency_comes_through(server: ComfyServer, scale: float):
    picture = Image.fromarray(noise(4), "RGBA")
    result = restored(server, picture, scale)
    size = round(SIZE[0] * scale), round(SIZE[1] * scale)
    assert (result.mode, result.size) == ("RGBA", size)
    expected = picture.getchannel("A").resize(size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(result.getchannel("A")), np.asarray(expected))
    without = restored(server, picture, scale, mask=False)
    assert without.mode == "RGB"
    assert np.array_equal(np.asarray(without), np.asarray(result.convert("RGB")))


def test_a_photo_without_transparency_stays_as_it_was(server: ComfyServer):
    picture = Image.fromarray(noise(3), "RGB")
    result = restored(server, picture, 2.0)
    assert result.mode == "RGB"
    assert np.array_equal(np.asarray(result), np.asarray(restored(server, picture, 2.0, mask=False)))

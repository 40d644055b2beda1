"""Restore a degraded photo with the bundled model on a headless ComfyUI: `make demo`.

Runs workflows/api/vosr_nano_quickstart.json through the HTTP API: the pack's example photo, or one of your own, is
degraded by Degrade Image, restored in tiles in one step, and compared with bicubic enlargement. Writes
demo_output/<photo>.png and prints PSNR and SSIM against the original. The model never saw the example photo.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _pack import ROOT, load_pack

load_pack()
try:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from _scores import Score
    from comfy_server import ComfyClient, ComfyServer
    from host_env import HostError, make_host
except ModuleNotFoundError as missing:
    sys.exit(
        f"The demo needs {missing.name}. Start it with `make demo`, not by itself. For a ComfyUI of your own "
        "(COMFYUI_PATH), first install in its Python: pip install scikit-image websocket-client"
    )

QUICKSTART = ROOT / "workflows" / "api" / "vosr_nano_quickstart.json"
EXAMPLE = "RealISR_ExamplePhoto"
EXAMPLE_PHOTO = ROOT / "workflows" / "photos" / "moose.jpg"
PANEL = 384
MARGIN = 8
LABEL = 28
ZOOM = 3

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Picture:
    """One result."""

    label: str
    image: Image.Image
    seconds: float = 0
    """The time of the run that made it, 0 for one that is not a method's."""


def node_of(graph: Graph, class_type: str) -> str:
    """The id of the only node of a class."""
    (found,) = (node for node, content in graph.items() if content["class_type"] == class_type)
    return found


def preview(graph: Graph, node: str) -> Graph:
    """A graph that ends in showing the first output of `node`, whose own inputs stay."""
    needed: Graph = {}
    waiting = [node]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed[name] = graph[name]
        waiting += [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
    return {**needed, "preview": {"class_type": "PreviewImage", "inputs": {"images": [node, 0]}}}


def fetch(client: ComfyClient, graph: Graph, class_type: str, label: str) -> Picture:
    """Run the part of the graph that makes the image of a node, and fetch it."""
    result = client.run(preview(graph, node_of(graph, class_type)))
    return Picture(label, client.image(result.images("preview")[0]), result.seconds)


def with_photo(graph: Graph, client: ComfyClient, photo: Image.Image) -> None:
    """Put Load Image with this photo in the place of Example Photo."""
    name = client.upload_image(photo, "demo.png")
    graph[node_of(graph, EXAMPLE)] = {"class_type": "LoadImage", "inputs": {"image": name}}


def restore(client: ComfyClient, photo: Image.Image, own: bool) -> list[Picture]:
    """The degraded photo, its bicubic enlargement, its restoration and the photo. own: it is not the example."""
    graph: Graph = json.loads(QUICKSTART.read_text(encoding="utf-8"))
    if own:
        with_photo(graph, client, photo)
    return [
        fetch(client, graph, "RealISR_DegradeImage", "degraded"),
        fetch(client, graph, "RealISR_UpscaleForRestoration", "bicubic"),
        fetch(client, graph, "RealISR_RestorationCFGSampler", "VOSR nano"),
        Picture("original", photo),
    ]


def report(pictures: list[Picture]) -> None:
    original = np.asarray(pictures[-1].image)
    print(f"\n{'':22}{'PSNR':>9}{'SSIM':>8}{'time':>9}")
    for picture in pictures[1:-1]:
        score = Score.of(np.asarray(picture.image.convert("RGB")), original)
        print(f"{picture.label:22}{score.psnr:6.2f} dB{score.ssim:8.4f}{picture.seconds:7.1f} s")


def side_by_side(pictures: list[Picture]) -> Image.Image:
    """The pictures in a row under their labels, and below them the same detail of each, enlarged."""
    width, height = pictures[-1].image.size
    shown = (PANEL, round(PANEL * height / width))
    side = min(PANEL // ZOOM, width, height)
    left, top = (width - side) // 2, (height - side) // 3
    step = PANEL + MARGIN
    sheet = Image.new("RGB", (step * len(pictures) + MARGIN, LABEL + shown[1] + PANEL + 3 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        x = MARGIN + index * step
        draw.text((x, MARGIN), picture.label, "black", ImageFont.load_default(18))
        whole = picture.image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(whole.resize(shown, Image.Resampling.LANCZOS), (x, LABEL + MARGIN))
        detail = whole.crop((left, top, left + side, top + side))
        sheet.paste(detail.resize((PANEL, PANEL), Image.Resampling.NEAREST), (x, LABEL + shown[1] + 2 * MARGIN))
    return sheet


def read_photo(path: Path) -> Image.Image:
    """A photo, of even size so that x2 gives it back."""
    photo = Image.open(path).convert("RGB")
    return photo.crop((0, 0, photo.width // 2 * 2, photo.height // 2 * 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=EXAMPLE_PHOTO, help="a sharp photo (default: the pack's example)")
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output", help="folder (default: demo_output)")
    asked = parser.parse_args()
    start = time.monotonic()
    name, photo = asked.image.stem, read_photo(asked.image)
    print("starting ComfyUI ...", flush=True)
    with tempfile.TemporaryDirectory() as base, ComfyServer(make_host(), Path(base), {"realisr": ROOT}) as server:
        print(f"ComfyUI answers at {server.url} after {time.monotonic() - start:.0f} s; restoring {name}", flush=True)
        pictures = restore(server.client, photo, asked.image != EXAMPLE_PHOTO)
    report(pictures)
    asked.output.mkdir(parents=True, exist_ok=True)
    target = asked.output / f"{name}.png"
    side_by_side(pictures).save(target)
    print(f"\nwrote {target} ({time.monotonic() - start:.0f} s in all)")


if __name__ == "__main__":
    try:
        main()
    except HostError as error:
        sys.exit(f"error: {error}")

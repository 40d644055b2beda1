"""Presets and the estimate of a run on the canvas, in both renderers; both over the API."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from PIL import Image

from _pack import ROOT
from comfy_client import PromptError
from comfy_frontend import Frontend
from comfy_server import ComfyServer

SAMPLER = "RealISR_RestorationCFGSampler"
SEEDS = count(100)
VALUE = """([type, name]) => {
    const node = window.app.graph.nodes.find((node) => node.type === type);
    return node.widgets.find((widget) => widget.name === name).value;
}"""
SET = """([type, name, value]) => {
    const node = window.app.graph.nodes.find((node) => node.type === type);
    const widget = node.widgets.find((each) => each.name === name);
    widget.value = value;
    widget.callback?.(value, window.app.canvas, node);
    const { changeTracker } = window.app.extensionManager.workflow.activeWorkflow;
    (changeTracker.captureCanvasState ?? changeTracker.checkState).call(changeTracker);
}"""


def nano(server: ComfyServer, **changes: Any) -> dict[str, Any]:
    graph = json.loads((ROOT / "workflows" / "api" / "vosr_nano_restore.json").read_text(encoding="utf-8"))
    picture = Image.effect_noise((60, 44), 40).convert("RGB")
    graph["2"]["inputs"]["image"] = server.client.upload_image(picture, "estimate_small.png")
    graph["5"]["inputs"] |= {"preset": "custom", **changes}
    return graph


def put(canvas: Frontend, name: str, value: Any, kind: str = SAMPLER) -> None:
    canvas.page.evaluate(SET, [kind, name, value])


def value(canvas: Frontend, name: str, kind: str = SAMPLER) -> Any:
    return canvas.page.evaluate(VALUE, [kind, name])


def estimated(canvas: Frontend, *parts: str, level: str = "fine") -> str:
    """The panel's text, once it says all of the parts at that level."""
    canvas.page.wait_for_function(
        """([parts, level]) => {
            const box = document.querySelector(".realisr-estimate");
            return box?.dataset.level === level && parts.every((part) => box.textContent.includes(part));
        }""",
        arg=[list(parts), level],
    )
    return canvas.page.text_content(".realisr-estimate") or ""


def test_a_preset_writes_what_it_sets_and_an_edit_makes_it_custom(canvas: Frontend, server: ComfyServer):
    canvas.open_api(nano(server, restoration_scale=1.0))
    assert (value(canvas, "preset"), value(canvas, "restoration_scale")) == ("custom", 1.0)
    for preset, scale in (("faithful", 2.0), ("creative", -0.5), ("balanced", 0.5)):
        put(canvas, "preset", preset)
        # What presets set is asked of the server once, when the page is loaded.
        canvas.page.wait_for_function(f"(asked) => ({VALUE})(asked) === {scale}", arg=[SAMPLER, "restoration_scale"])
        assert (value(canvas, "preset"), value(canvas, "restoration_scale")) == (preset, scale)
    put(canvas, "steps", 3)
    assert value(canvas, "preset") == "balanced", "the preset says nothing of steps"
    put(canvas, "restoration_scale", 0.7)
    assert (value(canvas, "preset"), value(canvas, "restoration_scale")) == ("custom", 0.7)
    put(canvas, "preset", "faithful")

    def kept() -> None:
        assert (value(canvas, "preset"), value(canvas, "restoration_scale")) == ("faithful", 2.0)

    saved = canvas.export_ui()
    canvas.open(saved)
    kept()
    canvas.switch_tab_and_back()
    kept()
    canvas.undo_a_move()
    kept()
    (sampler,) = [node for node in canvas.export_api().values() if node["class_type"] == SAMPLER]
    assert (sampler["inputs"]["preset"], sampler["inputs"]["restoration_scale"]) == ("faithful", 2.0)


def test_the_estimate_follows_the_picture_and_the_widgets(canvas: Frontend, server: ComfyServer):
    canvas.open_api(nano(server))
    line = estimated(canvas, "60×44 → 120×88", "6 tiles", "about", "No effect here: Preset")
    assert "GB" in line
    put(canvas, "resize.scale", 4)
    estimated(canvas, "60×44 → 240×176")
    put(canvas, "image", "example.png", "LoadImage")
    with Image.open(server.base / "input" / "example.png") as example:
        width, height = example.size
    estimated(canvas, f"{width}×{height} → {4 * width}×{4 * height}")
    put(canvas, "steps", 9)
    estimated(canvas, "is a one-step model", level="impossible")
    put(canvas, "steps", 0)
    put(canvas, "tiling", "custom")
    put(canvas, "tiling.tile_size", 16)
    put(canvas, "tiling.tile_overlap", 16)
    estimated(canvas, "smaller than the tile size", level="impossible")
    put(canvas, "tiling.tile_overlap", 8)
    put(canvas, "resize.scale", 8)
    estimated(canvas, "forwards for one image, which takes long", level="tight")
    put(canvas, "resize.scale", 4)
    put(canvas, "tiling", "auto")
    line = estimated(canvas, f"{4 * width}×{4 * height}", "tiles")

    canvas.open(canvas.export_ui())
    assert estimated(canvas, f"{4 * width}×{4 * height}", "tiles") == line
    canvas.switch_tab_and_back()
    assert estimated(canvas, f"{4 * width}×{4 * height}", "tiles") == line
    canvas.undo_a_move()
    assert estimated(canvas, f"{4 * width}×{4 * height}", "tiles") == line


def test_a_size_nobody_knows_is_that_of_the_last_run(canvas: Frontend, server: ComfyServer):
    graph = nano(server)
    # Another picture each time: a node whose result the server has kept says nothing.
    noise = {"seed": next(SEEDS), "width": 30, "height": 20, "batch": 1}
    graph["7"] = {"class_type": "RealISRTest_RandomImage", "inputs": noise}
    graph["5"]["inputs"]["image"] = ["7", 0]
    canvas.open_api(graph)
    estimated(canvas, "known after the first run", level="unknown")
    canvas.run()
    estimated(canvas, "30×20 → 60×40")
    canvas.open(canvas.export_ui())
    estimated(canvas, "30×20 → 60×40")


SEEN = """async (type) => {
    const { upstream } = await import("/extensions/realisr/frontend.js");
    const { graph } = window.app;
    const find = (type) => graph.nodes.find((node) => node.type === type);
    const seen = (node) => {
        const { id, graph } = upstream(node);
        const from = (name) => graph[graph[id].inputs[name]?.[0]];
        const kinds = Object.values(graph).map((each) => each.class_type).sort();
        return [kinds, from("image") ?? from("images"), graph[id].inputs["resize.scale"]];
    };
    const found = { plain: seen(find(type)) };
    find("ImageScaleBy").mode = 4;
    found.bypassed = seen(find(type));
    const { node: outer } = graph.convertToSubgraph(new Set([find(type)]));
    found.inside = seen(outer.subgraph.nodes.find((node) => node.type === type));
    found.beyond = seen(find("SaveImage"));
    return found;
}"""


def test_a_graph_is_seen_through_subgraphs_and_bypassed_nodes(canvas: Frontend, server: ComfyServer):
    graph = nano(server)
    graph["7"] = {"class_type": "ImageScaleBy", "inputs": {"image": ["2", 0], "upscale_method": "area", "scale_by": 2}}
    graph["5"]["inputs"]["image"] = ["7", 0]
    canvas.open_api(graph)
    estimated(canvas, "120×88 → 240×176")
    found = canvas.page.evaluate(SEEN, SAMPLER)
    loaders = ["LoadImage", "RealISR_LoadVOSRModel", "RealISR_LoadVOSRVAE"]
    assert found["plain"][0] == sorted([*loaders, SAMPLER, "ImageScaleBy"])
    assert found["plain"][1]["class_type"] == "ImageScaleBy"
    for name in ("bypassed", "inside"):
        kinds, image, scale = found[name]
        assert (kinds, image["class_type"], scale) == (sorted([*loaders, SAMPLER]), "LoadImage", 2), name
    kinds, image, _ = found["beyond"]
    assert (kinds, image["class_type"]) == (sorted([*loaders, SAMPLER, "SaveImage"]), SAMPLER)


def test_a_preset_that_is_none_is_refused(server: ComfyServer):
    with pytest.raises(PromptError, match=r"Value not in list.*preset"):
        server.client.run(nano(server, preset="wild"))


def test_a_run_that_cannot_be_is_refused_with_its_numbers(server: ComfyServer):
    tiles = {"tiling": "custom", "tiling.tile_size": 16, "tiling.tile_overlap": 15}
    with pytest.raises(PromptError, match=r"[\d,]+ tiles come to [\d,]+ forwards for one image.*Lower the overlap"):
        server.client.run(nano(server, **{**tiles, "resize": "target size", "resize.width": 8192, "resize.height": 0}))
    whole = {"tiling": "off", "resize": "target size", "resize.width": 16384, "resize.height": 16384}
    answer = server.client.post("/realisr/estimate", {"graph": nano(server, **whole), "node": "5"})
    assert answer["to"] == [16384, 16384] and answer["tiles"] == 1 and answer["memory"] > answer["free"]
    assert answer["level"] in ("tight", "impossible")


@pytest.mark.parametrize(
    "body",
    [[], {}, {"graph": {"1": None}, "node": "1"}, {"graph": {"1": {"class_type": "LoadImage"}}, "node": "1"}],
)
def test_odd_questions_are_refused(server: ComfyServer, body: Any):
    with pytest.raises(Exception, match="400"):
        server.client.post("/realisr/estimate", body)


def test_graphs_from_outside_do_no_harm(server: ComfyServer):
    """Rings of links, paths out of the input folder, numbers that are none: not known, and nothing else."""
    for image in (["5", 0], ["2", 0], ["9", 0], [], "2"):
        for name in ("../../etc/passwd", "/etc/passwd", 7, None, ["2", 0]):
            for scale in (2, "wide", None, 1e308, True):
                graph = nano(server)
                graph["2"]["inputs"]["image"] = name
                graph["5"]["inputs"] |= {"image": image, "resize.scale": scale}
                answer = server.client.post("/realisr/estimate", {"graph": graph, "node": "5", "last_size": "large"})
                assert answer["level"] in ("unknown", "impossible") and "from" not in answer

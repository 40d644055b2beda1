"""What people read: the node search, the help panel, links, dropdowns and advanced widgets, in the real frontend."""

from __future__ import annotations

import pytest

from _pack import ROOT
from comfy_frontend import Frontend

VOSR = "VOSR Restore (Restoration-CFG Sampler)"
PURE = "PURE Restore (Entropy AR Token Restorer)"
DREAMSR = "DreamSR Restore (Two-Stage Tiled FLUX)"
WHOLE_METHODS = {VOSR, PURE, DREAMSR}

SEARCHES = ("default", "v1 (legacy)")

# The names of the results, and which of them are the pack's.
RESULTS = """() => [...document.querySelectorAll("[role=option]")].filter((row) => row.innerText.trim()).map((row) => {
    const lines = row.innerText.split("\\n").map((line) => line.trim()).filter(Boolean);
    return [lines[0], lines.includes("realisr")];
})"""


def search(frontend: Frontend, box: str, query: str) -> list[tuple[str, bool]]:
    """(name, whether it is the pack's) of what the search box offers, its first result first."""
    page = frontend.page
    page.evaluate("async (box) => { await app.extensionManager.setting.set('Comfy.NodeSearchBoxImpl', box); }", box)
    page.evaluate("async () => { await app.extensionManager.command.execute('Workspace.SearchBox.Toggle'); }")
    page.wait_for_function("document.activeElement?.tagName === 'INPUT'")
    page.keyboard.insert_text(query)
    # Results follow the field with a delay of the frontend's own: ours are there once our first node is.
    page.wait_for_function(f"({RESULTS})().some(([, ours]) => ours)")
    found = page.evaluate(RESULTS)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_function(f"({RESULTS})().length === 0")
    return [(name, ours) for name, ours in found]


@pytest.mark.parametrize("box", SEARCHES)
def test_searches_lead_to_the_whole_methods(frontend: Frontend, box: str):
    frontend.open({"nodes": [], "links": [], "version": 0.4})
    ours, before = {}, {}
    for query in (
        "restore",
        "upscale",
        "super resolution",
        "denoise photo",
        "old photo",
        "realisr",
        "ar token restorer",
    ):
        found = search(frontend, box, query)
        ours[query] = [name for name, is_ours in found if is_ours]
        before[query] = [name for name, _ in found[: next(i for i, (_, is_ours) in enumerate(found) if is_ours)]]
    assert ours["restore"][:3] == [VOSR, PURE, DREAMSR]
    for query in ("super resolution", "denoise photo", "old photo"):
        assert ours[query][0] == VOSR and set(ours[query]) == WHOLE_METHODS
    # A node with the word in its id comes before those that are found by other words.
    assert ours["upscale"][:2] == ["Upscale for Restoration", VOSR]
    # Those that begin with the word come in the order of their ids' length.
    assert set(ours["realisr"]) >= WHOLE_METHODS
    assert ours["ar token restorer"][0] == PURE
    # The pack's blueprints, whole methods themselves, may come first; of ComfyUI's nodes those that say the words.
    blueprints = {path.stem for path in (ROOT / "subgraphs").glob("*.json")}
    others = {query for query, names in before.items() if not blueprints.issuperset(names)}
    assert others <= {"upscale", "super resolution"}, before


HELP = "[data-testid='properties-panel'] .node-help-content"

# What of a help page lies outside of it. Commands and examples to copy scroll by themselves.
CLIPPED = """(page) => [page, ...page.querySelectorAll("*:not(pre, pre *)")]
    .filter((part) => part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).display !== "inline"
        || part.getBoundingClientRect().right > page.getBoundingClientRect().right + 1)
    .map((part) => `${part.tagName} ${part.scrollWidth} > ${part.clientWidth}: ${part.textContent.slice(0, 60)}`)"""


def test_help_fits_the_panel(canvas: Frontend):
    page = canvas.page
    names = {"RealISR_LoadARRestorer": "Load PURE Model", "RealISR_RestorationCFGSampler": VOSR}
    canvas.open_api({str(id): {"class_type": name, "inputs": {}} for id, name in enumerate(names, 1)})
    # The button floats over the node, which a view left by another test may have put out of the window.
    page.evaluate("() => { app.canvas.ds.scale = 0.8; app.canvas.ds.offset = [100, 150]; app.canvas.setDirty(true); }")
    for id, title in enumerate(names.values(), 1):
        page.evaluate("(id) => { app.canvas.deselectAll(); app.canvas.selectNode(app.graph.getNodeById(id)); }", id)
        page.get_by_test_id("info-button").click()
        page.locator(HELP, has=page.get_by_role("heading", name=title)).wait_for()
        assert page.locator(HELP).evaluate(CLIPPED) == []
        assert page.locator(HELP).evaluate("(page) => page.clientWidth") < 320, "wider than the panel's default"
    picture = page.locator(f"{HELP} img")
    page.wait_for_function("(image) => image.complete", arg=picture.element_handle())
    assert picture.evaluate("(image) => image.naturalWidth") > 500


TILED = {
    "1": {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 3, "width": 64, "height": 64, "batch": 1}},
    "2": {"class_type": "RealISR_TileGrid", "inputs": {"size_of": ["1", 0], "tile_size": 64, "overlap": 16}},
    "3": {"class_type": "RealISR_VOSRConditioning", "inputs": {"image": ["1", 0], "tile_grid": ["2", 0]}},
}
TYPE = "REALISR_TILE_GRID"


def test_links_of_the_packs_types_keep_a_colour(canvas: Frontend):
    canvas.open_api(TILED)
    settings = "app.extensionManager.setting"
    palette = canvas.page.evaluate(f"{settings}.get('Comfy.ColorPalette')")
    try:
        for name in ("light", palette):
            canvas.page.evaluate(f"async (name) => {{ await {settings}.set('Comfy.ColorPalette', name); }}", name)
            canvas.page.wait_for_function(
                "(type) => /^#/.test(LGraphCanvas.link_type_colors[type])"
                " && /^#/.test(app.canvas.default_connection_color_byType[type])"
                " && /^#/.test(getComputedStyle(document.body).getPropertyValue(`--color-datatype-${type}`))",
                arg=TYPE,
            )
    finally:
        canvas.page.evaluate(f"async (name) => {{ await {settings}.set('Comfy.ColorPalette', name); }}", palette)
    # A colour that a palette does have for the type is taken.
    canvas.page.evaluate("(type) => { LGraphCanvas.link_type_colors[type] = '#123456'; }", TYPE)
    assert canvas.page.evaluate("(type) => LGraphCanvas.link_type_colors[type]", TYPE) == "#123456"
    canvas.page.evaluate("(type) => { LGraphCanvas.link_type_colors[type] = ''; }", TYPE)


# Labels of the widgets that the classic renderer shows, if only as the row of a link.
SHOWN = """(id) => {
    const node = app.graph.getNodeById(id);
    const isShown = node.isWidgetRowVisible ?? node.isWidgetVisible;
    return node.widgets.filter((widget) => isShown.call(node, widget)).map((widget) => widget.label ?? widget.name);
}"""


def test_advanced_widgets_are_folded(canvas: Frontend):
    canvas.open_api(TILED | {"4": {"class_type": "PrimitiveFloat", "inputs": {"value": 0.2}}})
    page = canvas.page
    if page.evaluate("LiteGraph.vueNodesMode"):
        page.get_by_text("Show advanced inputs").first.wait_for()
        return
    plain = ["Tile size", "Tile overlap"]
    assert page.evaluate(SHOWN, 3) == plain
    height = "app.graph.getNodeById(3).size[1]"
    folded = page.evaluate(height)
    menu = "app.canvas.getNodeMenuOptions(app.graph.getNodeById(3)).map((entry) => entry?.content)"
    assert "Show Advanced" in page.evaluate(menu)
    # One with a link stays, so that the link ends somewhere.
    page.evaluate("""() => {
        const node = app.graph.getNodeById(3);
        app.graph.getNodeById(4).connect(0, node, node.inputs.findIndex(({ name }) => name === "weak_strength"));
    }""")
    assert page.evaluate(SHOWN, 3) == ["Weak strength", *plain]
    page.evaluate("app.graph.getNodeById(3).disconnectInput('weak_strength')")
    assert page.evaluate(SHOWN, 3) == plain
    page.evaluate("app.graph.getNodeById(3).toggleAdvanced()")
    assert page.evaluate(SHOWN, 3)[:3] == ["Weak strength", *plain]
    assert len(page.evaluate(SHOWN, 3)) == 7
    assert page.evaluate(height) > folded + 80
    # What is saved with the fold open opens so, and what is queued holds the folded ones.
    canvas.open(canvas.export_ui())
    assert len(page.evaluate(SHOWN, 3)) == 7
    page.evaluate("app.graph.getNodeById(3).toggleAdvanced()")
    assert canvas.export_api()["3"]["inputs"]["weak_strength"] == -1

"""What the pack costs the frontend: time at its start, and what a deleted node leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfy_frontend import Frontend

OURS = "/extensions/realisr/"
MILLISECONDS = 30
LOADS = 3

PANELS = [
    "RealISR_EditPatchPrompts",
    "RealISR_AgentRefinementLoop",
    "RealISR_NRIQABestOfN",
    "RealISR_NRIQAScore",
    "RealISR_EvaluateAgainstReference",
    "RealISR_CompareSheet",
    "RealISR_LoadVOSRModel",
    "RealISR_RestorationCFGSampler",
    "RealISR_DreamSRRestore",
    "RealISR_ARTokenRestorer",
]
"""One node of each kind that shows a panel."""

# What our code hears of, watches or repeats, other than on the elements it made: those go with the node.
WATCH = """() => {
    const living = (window.realisrLiving = new Map());
    const isOurs = () => new Error().stack.includes("/extensions/realisr/");
    const { addEventListener: add, removeEventListener: remove } = EventTarget.prototype;
    const { setInterval: set, clearInterval: clear, ResizeObserver: Observer } = window;
    const ids = new WeakMap();
    const idOf = (object) => ids.get(object) ?? (ids.set(object, Math.random()), ids.get(object));
    EventTarget.prototype.addEventListener = function (type, hear, ...rest) {
        const key = `${idOf(this ?? window)} ${type} ${idOf(hear ?? this)}`;
        if (hear && !(this instanceof Node) && isOurs()) living.set(key, `listener: ${type}`);
        return add.call(this, type, hear, ...rest);
    };
    EventTarget.prototype.removeEventListener = function (type, hear, ...rest) {
        if (hear) living.delete(`${idOf(this ?? window)} ${type} ${idOf(hear)}`);
        return remove.call(this, type, hear, ...rest);
    };
    window.setInterval = (...given) => {
        const id = set(...given);
        if (isOurs()) living.set(id, "interval");
        return id;
    };
    window.clearInterval = (id) => (living.delete(id), clear(id));
    window.ResizeObserver = class extends Observer {
        observe(box) { if (isOurs()) living.set(this, "observer"); super.observe(box); }
        disconnect() { living.delete(this); super.disconnect(); }
    };
    window.realisrUnwatch = () => {
        Object.assign(EventTarget.prototype, { addEventListener: add, removeEventListener: remove });
        Object.assign(window, { setInterval: set, clearInterval: clear, ResizeObserver: Observer });
    };
}"""

PLACE = """async (types) => {
    const { graph } = window.app;
    const nodes = types.map((type) => LiteGraph.createNode(type));
    for (const node of nodes) graph.add(node);
    for (let frame = 0; frame < 4; frame++) await new Promise(requestAnimationFrame);
    const there = [...window.realisrLiving.values()];
    for (const node of nodes) graph.remove(node);
    for (let frame = 0; frame < 4; frame++) await new Promise(requestAnimationFrame);
    return [there, [...window.realisrLiving.values()]];
}"""


def test_deleted_nodes_leave_nothing_behind(canvas: Frontend):
    canvas.open_api({})
    canvas.page.evaluate(WATCH)
    try:
        there, left = canvas.page.evaluate(PLACE, PANELS)
    finally:
        canvas.page.evaluate("() => window.realisrUnwatch()")
    assert {"observer", "interval", "listener: execution_success", "listener: refresh"} <= set(there)
    assert left == []


def preparing(events: list[dict[str, Any]]) -> float:
    """Milliseconds of the page's thread for reading our modules and style sheet. events: of a trace."""
    kinds = ("v8.compileModule", "ParseAuthorStyleSheet")
    ours = [event for event in events if event["name"] in kinds and OURS in json.dumps(event.get("args", {}))]
    return sum(event.get("tdur", event["dur"]) for event in ours if event["ph"] == "X") / 1000


def running(profile: dict[str, Any]) -> float:
    """Milliseconds of our code and of what it called. profile: of V8's sampling profiler."""
    nodes = {node["id"]: node for node in profile["nodes"]}
    ours: set[int] = set()
    todo = [node["id"] for node in profile["nodes"] if OURS in node["callFrame"]["url"]]
    while todo:
        node = todo.pop()
        if node not in ours:
            ours.add(node)
            todo += nodes[node].get("children", [])
    samples = zip(profile["samples"], profile["timeDeltas"], strict=True)
    return sum(delta for node, delta in samples if node in ours) / 1000


def test_loading_the_modules_takes_little_time(frontend: Frontend, tmp_path: Path):
    """The least of some loads: a machine that does other things at the same time only adds to it."""
    page = frontend.page
    browser = page.context.browser
    assert browser is not None
    profiler = page.context.new_cdp_session(page)
    profiler.send("Profiler.enable")
    profiler.send("Profiler.setSamplingInterval", {"interval": 200})
    spent = []
    for load in range(LOADS):
        trace = tmp_path / f"{load}.json"
        browser.start_tracing(page=page, path=trace, categories=["devtools.timeline", "v8"])
        profiler.send("Profiler.start")
        page.reload(wait_until="domcontentloaded", timeout=120_000)
        page.wait_for_function("() => window.app?.vueAppReady", timeout=120_000)
        profile = profiler.send("Profiler.stop")["profile"]
        browser.stop_tracing()
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        spent.append((preparing(events), running(profile)))
    profiler.detach()
    frontend.errors.clear()
    assert all(read > 0 and ran > 0 for read, ran in spent), spent
    assert min(map(sum, spent)) <= MILLISECONDS, spent

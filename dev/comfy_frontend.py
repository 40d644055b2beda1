"""ComfyUI's own frontend in headless Chromium: opens workflow files as a user does and exports their API form."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

RENDERERS = ("classic", "nodes2")
"""How the frontend can draw nodes: litegraph's canvas, or Vue ("Nodes 2.0")."""

BROWSER_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")

# The frontend asks other sites about a workflow's model links and unknown nodes, which the host's policy forbids.
CONTENT_SECURITY_POLICY = "Content Security Policy"

# A first visit opens a template gallery; the settings are those of someone who has been here before.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingNodesWarning": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Workflow.Persist": False,
}

NODE_TYPES_WITHOUT_CLASS = """
(graph) => {
    const subgraphs = graph.definitions?.subgraphs ?? [];
    const known = new Set([...Object.keys(LiteGraph.registered_node_types), ...subgraphs.map((s) => s.id)]);
    const nodes = [graph, ...subgraphs].flatMap((g) => g.nodes);
    return [...new Set(nodes.map((n) => n.type).filter((type) => !known.has(type)))];
}
"""

# What is drawn of each node, title bar included, in the graph's coordinates. Nodes that are out of sight are not drawn
# by Nodes 2.0, and a note is as high as its text, not as its box.
NODE_BOXES = """
async ([subgraph, moments]) => {
    const { canvas, rootGraph } = window.app;
    const graph = subgraph === null ? rootGraph : rootGraph.subgraphs.get(subgraph);
    if (canvas.graph !== graph) canvas.setGraph(graph);
    const moment = () => new Promise((resolve) => setTimeout(() => requestAnimationFrame(resolve), 150));
    const hidden = (box) => (box ? Math.max(0, box.scrollHeight - box.clientHeight) : 0);
    const measure = () => {
        const { scale, offset } = canvas.ds;
        const page = canvas.canvas.getBoundingClientRect();
        return graph.nodes.map((node) => {
            const drawn = document.querySelector(`[data-node-id="${node.id}"]`);
            const frame = drawn ?? node.widgets?.[0]?.element;
            const note = node.type.endsWith("Note") && frame?.querySelector(".comfy-markdown-content");
            if (!drawn) return [node.id, node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30 + hidden(note)];
            const { x, y, width, height } = drawn.getBoundingClientRect();
            const at = [(x - page.x) / scale - offset[0], (y - page.y) / scale - offset[1]];
            return [node.id, ...at, width / scale, height / scale + hidden(note)];
        }).map(([id, ...box]) => [id, box.map((length) => Math.round(length))]);
    };
    await window.app.extensionManager.command.execute("Comfy.Canvas.FitView");
    let before;
    // What is missing is marked a moment later, below the node.
    for (let same = 0, i = 0; same < moments && i < 60; i++) {
        await moment();
        const now = JSON.stringify([measure(), canvas.ds.scale]);
        same = now === before ? same + 1 : 0;
        before = now;
    }
    return measure();
}
"""

# The page's address comes to name the graph on the canvas a moment late, and the frontend opens the tab that holds the
# graph so named: before another workflow is loaded, and after it, the address must be that of the canvas.
COME_TO_REST = """
async () => {
    const { canvas, rootGraph } = window.app;
    if (canvas.graph !== rootGraph) canvas.setGraph(rootGraph);
    for (let same = 0, i = 0; same < 3 && i < 100; i++) {
        same = location.hash.slice(1) === rootGraph.id ? same + 1 : 0;
        if (!same) location.replace(`#${rootGraph.id}`);
        await new Promise((resolve) => setTimeout(resolve, 70));
    }
}
"""

QUEUE_REMAINING = """
async () => (await (await window.app.api.fetchApi("/prompt")).json()).exec_info.queue_remaining
"""


def find_browser() -> Path | None:
    """The system's Chromium or Chrome, or None."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return Path(found) if found else None


@dataclass(frozen=True)
class OpenedWorkflow:
    """What came of opening a workflow: node types nothing provides, and errors of the page meanwhile."""

    missing_nodes: list[str]
    errors: list[str]


class Frontend:
    """One browser page on a running ComfyUI at `url`."""

    page: Page

    def __init__(self, url: str, executable: Path):
        self.url = url
        self.executable = executable
        self.errors: list[str] = []

    def __enter__(self) -> Frontend:
        self._playwright = sync_playwright().start()
        try:
            browser = self._playwright.chromium.launch(executable_path=self.executable, args=list(BROWSER_ARGUMENTS))
            self.page = browser.new_page(viewport={"width": 1600, "height": 1000})
            self._connect()
        except BaseException:
            self._playwright.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._playwright.stop()

    def _connect(self) -> None:
        self.page.request.post(f"{self.url}/api/settings", data=SETTINGS)
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(self.url, wait_until="domcontentloaded", timeout=120_000)
        self.page.wait_for_function("() => window.app?.vueAppReady", timeout=120_000)

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and CONTENT_SECURITY_POLICY not in message.text:
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def use_renderer(self, name: str) -> None:
        """Draw nodes by "classic" (litegraph's canvas) or "nodes2" (Vue). Open a workflow after it."""
        enabled = {"classic": False, "nodes2": True}[name]
        self.page.evaluate(
            "async (on) => { await window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on); }", enabled
        )

    def node_boxes(self, subgraph: str | None = None, moments: int = 2) -> dict[int, tuple[int, int, int, int]]:
        """id -> (x, y, width, height) of what is drawn of every node, title bar included, in the graph's pixels.

        subgraph: id of the subgraph to show and measure; the whole workflow's own graph if None. moments: for
        how many, of about 0.15 s, nothing may have changed any more.
        """
        return {int(node): tuple(box) for node, box in self.page.evaluate(NODE_BOXES, [subgraph, moments])}

    def run(self, timeout: float = 120) -> None:
        """Queue the open workflow as the Run button does, and wait until the server is idle again.

        What an execution shows on its nodes may arrive a moment later: wait for that too.
        """
        self.page.evaluate("async () => { await window.app.queuePrompt(0, 1); }")
        self.wait_until_idle(timeout)

    def wait_until_idle(self, timeout: float = 120) -> None:
        """Wait until the server runs nothing more. Raises TimeoutError after `timeout` seconds."""
        # Not with wait_for_function, which takes the promise of an async function for its answer.
        deadline = time.monotonic() + timeout
        while self.page.evaluate(QUEUE_REMAINING):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server still runs something after {timeout:g} s")
            self.page.wait_for_timeout(50)

    def open(self, workflow: Mapping[str, Any]) -> OpenedWorkflow:
        """Load a workflow in UI form, in place of the one that is open."""
        self.errors.clear()
        missing = self.page.evaluate(NODE_TYPES_WITHOUT_CLASS, workflow)
        self.page.evaluate(COME_TO_REST)
        self.page.evaluate("async (graph) => { await window.app.loadGraphData(graph); }", workflow)
        self.page.evaluate(COME_TO_REST)
        return OpenedWorkflow(missing, list(self.errors))

    def open_file(self, path: Path) -> OpenedWorkflow:
        return self.open(json.loads(path.read_text(encoding="utf-8")))

    def open_api(self, workflow: Mapping[str, Any], name: str = "workflow") -> None:
        """Lay out a workflow that is given in API form, in place of the one that is open."""
        self.page.evaluate(COME_TO_REST)
        self.page.evaluate("async ([graph, name]) => { await window.app.loadApiJson(graph, name); }", [workflow, name])
        self.page.evaluate(COME_TO_REST)

    def switch_tab_and_back(self) -> None:
        """Open an empty workflow in a tab of its own and return to this one."""
        active = "window.app.extensionManager.workflow.activeWorkflow.path"
        here = self.page.evaluate(active)
        for command, arrived in (
            ("Comfy.NewBlankWorkflow", f"(here) => {active} !== here && window.app.graph.nodes.length === 0"),
            ("Workspace.PreviousOpenedWorkflow", f"(here) => {active} === here && window.app.graph.nodes.length > 0"),
        ):
            self.page.evaluate("async (name) => { await window.app.extensionManager.command.execute(name); }", command)
            self.page.wait_for_function(arrived, arg=here)
        self.page.wait_for_timeout(300)

    def undo_a_move(self) -> None:
        """Move the first node and undo that: the frontend makes every node anew."""
        self.page.evaluate(
            """async () => {
                const node = window.app.graph.nodes[0];
                const { changeTracker } = window.app.extensionManager.workflow.activeWorkflow;
                const capturing = changeTracker.captureCanvasState ? "captureCanvasState" : "checkState";
                const capture = () => changeTracker[capturing]();
                capture();
                const before = node.pos[0];
                node.pos = [before + 40, node.pos[1]];
                capture();
                await changeTracker.undo();
                const undone = window.app.graph.nodes.find(({ id }) => id === node.id).pos[0];
                if (Math.abs(undone - before) > 1) throw new Error(`not undone: ${before}, ${undone}`);
            }"""
        )
        self.page.wait_for_timeout(300)

    def export_ui(self) -> dict[str, Any]:
        """The open workflow as the frontend would save it."""
        return self._json("window.app.graph.serialize()")

    def export_api(self) -> dict[str, Any]:
        """The open workflow in API form: node id -> class_type and inputs."""
        return self._json("(await window.app.graphToPrompt()).output")

    def _json(self, expression: str) -> dict[str, Any]:
        # As text: Playwright's own conversion turns absent fields into nulls.
        return json.loads(self.page.evaluate(f"async () => JSON.stringify({expression})"))

    def screenshot(self, path: Path) -> None:
        self.page.screenshot(path=path)

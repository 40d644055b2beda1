// All that this pack asks of ComfyUI's frontend, in one place: what the frontend calls unstable is used here alone.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const STATE = "realisr";

// --- nodes ----------------------------------------------------------------------------------------------------------

/** Call setUp(node) for every new node of these classes, before its saved widgets and properties are read. */
export function onNewNodes(extension, classes, setUp) {
    app.registerExtension({
        name: `RealISR.${extension}`,
        nodeCreated(node) {
            if (classes.includes(node.comfyClass)) setUp(node);
        },
        // Outputs that come back with a tab or an undo reach no node by themselves.
        onNodeOutputsUpdated(outputs) {
            for (const [id, output] of Object.entries(outputs)) {
                const node = nodeOfLocator(id);
                if (classes.includes(node?.comfyClass)) node[RESTORED]?.forEach((draw) => draw(output));
            }
        },
    });
}

const RESTORED = Symbol("realisr outputs restored");

/** Call after(...) whenever object.name(...) has run, with the same `this`. */
export function chain(object, name, after) {
    const before = object[name];
    object[name] = function (...given) {
        const result = before?.apply(this, given);
        after.apply(this, given);
        return result;
    };
}

/** Call draw(output) with what the node's `ui` holds: after a run, and again after a tab switch. */
export function onOutput(node, draw) {
    chain(node, "onExecuted", draw);
    (node[RESTORED] ??= []).push(draw);
}

/** Call draw() when the node is complete: new, or read from a file, a tab, an undo or the clipboard. */
export function onReady(node, draw) {
    chain(node, "onConfigure", () => queueMicrotask(draw));
    queueMicrotask(draw);
}

const PLACED = new Set();

/** Call begin() when a hand has placed the node: not when it is read from a file, a tab, an undo or the clipboard. */
export function onPlaced(node, begin) {
    PLACED.add(node);
    chain(node, "onConfigure", () => PLACED.delete(node));
    queueMicrotask(() => PLACED.delete(node) && begin());
}

// A file in API form is laid out without configuring nodes.
if (app.loadApiJson) chain(app, "loadApiJson", () => PLACED.clear());

/** Call end() once when the node is deleted or its graph is closed. */
export function onRemoved(node, end) {
    chain(node, "onRemoved", end);
}

/** Listen for an event as long as the node is there. target: an EventTarget, such as `api` for the server's messages. */
export function listen(node, target, type, hear) {
    target.addEventListener(type, hear);
    onRemoved(node, () => target.removeEventListener(type, hear));
}

/** Listen for a message that the server sends with `send_sync`. */
export function onMessage(node, type, hear) {
    listen(node, api, type, ({ detail }) => hear(detail));
}

/** Small results that belong to a node and are saved with the workflow (they are in the picture's metadata too). */
export function recall(node, key) {
    return node.properties?.[STATE]?.[key];
}

export function remember(node, key, value) {
    node.properties[STATE] = { ...node.properties[STATE], [key]: value };
}

/** The node that a message of the server means: "12", or "7:12" for node 12 in the subgraph that node 7 stands for. */
export function nodeOf(executionId) {
    let graph = app.rootGraph ?? app.graph;
    let node;
    for (const id of String(executionId).split(":")) {
        node = graph?.getNodeById(id);
        graph = node?.subgraph;
    }
    return node;
}

/** The id by which the server calls a node, or undefined when it is in no open graph. A subgraph placed twice: its first. */
export function executionIdOf(node) {
    return executionPath(app.rootGraph ?? app.graph, node);
}

function executionPath(graph, node) {
    if (node.graph === graph) return String(node.id);
    for (const outer of graph.nodes) {
        const inner = outer.subgraph && executionPath(outer.subgraph, node);
        if (inner) return `${outer.id}:${inner}`;
    }
}

// "12", or "<id of the subgraph>:12".
function nodeOfLocator(id) {
    const root = app.rootGraph ?? app.graph;
    const [inner, outer] = String(id).split(":").reverse();
    return (outer ? root.subgraphs?.get(outer) : root)?.getNodeById(inner);
}

/** Select a node and bring it to the middle of the canvas. */
export function goTo(node) {
    if (app.canvas.graph !== node.graph) app.canvas.setGraph(node.graph);
    app.canvas.selectNode(node, false);
    app.canvas.centerOnNode(node);
}

/** Every node of the open workflow, those of subgraphs included. */
export function allNodes() {
    const root = app.rootGraph ?? app.graph;
    return [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => graph.nodes);
}

/** Queue the open workflow, as the Run button does. */
export function run() {
    return app.queuePrompt(0, 1);
}

// --- widgets --------------------------------------------------------------------------------------------------------

export function widgetOf(node, name) {
    return node.widgets?.find((widget) => widget.name === name);
}

/** Set a widget as a user's hand would: its callback runs, and the change can be undone. */
export function setWidget(node, name, value) {
    const widget = widgetOf(node, name);
    if (!widget || widget.value === value) return;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    changed();
}

/** Call hear(value) when a widget's value changes, by hand or by setWidget. */
export function onWidget(node, name, hear) {
    const widget = widgetOf(node, name);
    if (widget) chain(widget, "callback", hear);
}

/** Whether a widget's value comes over a wire. */
export function isLinked(node, name) {
    return Boolean(node.inputs?.some((input) => input.widget?.name === name && input.link != null));
}

/** Call hear() when a wire of the node is put in or taken out. */
export function onWires(node, hear) {
    chain(node, "onConnectionsChange", () => queueMicrotask(hear));
}

/** Take a widget out of sight; its value stays and is saved. */
export function hideWidget(node, name) {
    const widget = widgetOf(node, name);
    if (!widget) return;
    widget.hidden = true;
    widget.options = { ...widget.options, hidden: true };
}

/** Let the frontend note what changed, for undo and for the mark of an unsaved tab. */
export function changed() {
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
    app.canvas?.setDirty(true, true);
}

/**
 * A box of constant height under the node's widgets, alike in both renderers; what is higher scrolls.
 *
 * Make it with the node, not with its first result: the node then never grows. Returns the box's element.
 */
export function addPanel(node, name, height, className) {
    const size = `min-height: ${height}px; height: ${height}px; max-height: ${height}px`;
    const box = element("div", { className: `realisr-panel ${className}`, style: size, "data-panel": name });
    // A wheel over the box scrolls the box, and zooms where there is nothing to scroll.
    box.addEventListener("wheel", (event) => scrolls(event.target, box) && event.stopPropagation(), { passive: true });
    const fixed = () => height + 2 * MARGIN;
    const size_of = { getMinHeight: fixed, getMaxHeight: fixed, getHeight: fixed, margin: MARGIN };
    node.addDOMWidget(name, "realisr_panel", box, { serialize: false, ...size_of });
    const [width, least] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], least)]);
    onReady(node, () => setTimeout(() => putInPlace(node, box)));
    return box;
}

// Around a panel in the classic renderer.
const MARGIN = 6;

function scrolls(inner, box) {
    for (let part = inner; part && box.contains(part); part = part.parentElement) {
        if (part.scrollHeight > part.clientHeight && getComputedStyle(part).overflowY === "auto") return true;
    }
    return false;
}

// Nodes 2.0 goes on showing the panel of the node that had this id before an undo or another file: put ours there.
function putInPlace(node, box) {
    if (box.isConnected || app.canvas?.graph !== node.graph) return;
    const shown = document.querySelector(`[data-node-id="${CSS.escape(node.id)}"] [data-panel="${box.dataset.panel}"]`);
    shown?.replaceWith(box);
}

// --- elements and texts ---------------------------------------------------------------------------------------------

/** An element with properties, data-* and aria-* attributes and children. Strings become text, never markup. */
export function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
        if (value === undefined) continue;
        if (name.includes("-") || name === "style" || name === "role") made.setAttribute(name, value);
        else made[name] = value;
    }
    made.append(...children.filter((child) => child !== undefined && child !== null));
    return made;
}

/** A button; press is called on a click and on Enter. */
export function button(label, press, properties = {}) {
    return element("button", { type: "button", textContent: label, onclick: press, ...properties });
}

/** Put a text on the clipboard, also on a page that came over plain HTTP. */
export async function copyText(copied) {
    try {
        await navigator.clipboard.writeText(copied);
    } catch {
        const area = element("textarea", { value: copied });
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
}

/** Put a rule into the page's style sheet. */
export function addStyle(rules) {
    document.head.append(element("style", { textContent: rules }));
}

/** The address of a picture that a run wrote. file: {filename, subfolder, type}. */
export function pictureUrl({ filename, subfolder = "", type = "output" }) {
    return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** Ask a route of this pack. Returns its JSON; throws an Error whose message is the server's sentence. */
export async function ask(path, body) {
    const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await api.fetchApi(`/realisr/${path}`, options);
    const read = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(read.error ?? `${answer.status} ${answer.statusText}`);
    return read;
}

let texts = {};
let reading;

/** Wait for the texts of locales/; every panel is drawn after this. */
export function textsRead() {
    return (reading ??= readTexts());
}

async function readTexts() {
    const languages = await (await api.fetchApi("/i18n")).json();
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
    texts = { ...languages.en?.realisr, ...languages[language]?.realisr };
}

/** A text of `realisr` in locales/<language>/main.json, its [names] replaced; in English where there is no other. */
export function text(key, values = {}) {
    return (texts[key] ?? key).replace(/\[(\w+)\]/g, (whole, name) => values[name] ?? whole);
}

addStyle(`
    .realisr-panel { overflow: auto; box-sizing: border-box; font: 12px/1.4 sans-serif; color: var(--input-text); background: var(--comfy-input-bg); border-radius: 6px; }
    .realisr-panel button { font: inherit; color: inherit; background: var(--comfy-menu-bg); border: 1px solid var(--border-color); border-radius: 4px; padding: 1px 8px; cursor: pointer; }
    .realisr-panel button:hover, .realisr-panel button:focus-visible { border-color: currentColor; }
    .realisr-panel button:disabled { opacity: 0.5; cursor: default; }
`);

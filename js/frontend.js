// All that this pack asks of ComfyUI's frontend, in one place: what the frontend calls unstable is used here alone.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const STATE = "realisr";

// --- nodes ----------------------------------------------------------------------------------------------------------

/** For onNewNodes: every node of this pack. */
export const ALL_OURS = { includes: (type) => Boolean(type?.startsWith("RealISR_")) };

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
    queueMicrotask(() => PLACED.delete(node) && !layingOut && begin());
}

let layingOut = 0;
// The workflow over which such a file was laid out; the new one becomes the open one a moment later, if it is another.
let covered = {};

// A file in API form is laid out without configuring nodes; newer frontends take their time for it.
if (app.loadApiJson) {
    const lay = app.loadApiJson;
    app.loadApiJson = function (...given) {
        layingOut++;
        covered = { workflow: openWorkflow(), until: performance.now() + 5000 };
        const laid = lay.apply(this, given);
        Promise.resolve(laid).catch(() => {}).finally(() => layingOut--);
        return laid;
    };
}

const graphs = new EventTarget();

app.registerExtension({ name: "RealISR.Graphs", afterConfigureGraph: () => void graphs.dispatchEvent(new Event("complete")) });

/** Call draw() when a workflow was opened, with all its subgraphs: only then has each node an id by which it runs. */
export function onGraphComplete(node, draw) {
    listen(node, graphs, "complete", draw);
}

/** Call end() once when the node is deleted or its graph is closed. */
export function onRemoved(node, end) {
    chain(node, "onRemoved", end);
}

/** Listen for an event as long as the node is there; without a node, as long as the page is. target: an EventTarget. */
export function listen(node, target, type, hear) {
    target.addEventListener(type, hear);
    if (node) onRemoved(node, () => target.removeEventListener(type, hear));
}

/** Listen for a message that the server sends with `send_sync`. */
export function onMessage(node, type, hear) {
    listen(node, api, type, ({ detail }) => hear(detail));
}

/** Call end() when a run is over, however it ended. */
export function onRunEnd(node, end) {
    for (const type of ["execution_success", "execution_error", "execution_interrupted"]) onMessage(node, type, end);
}

const refreshes = new EventTarget();

app.registerExtension({
    name: "RealISR.Refresh",
    refreshComboInNodes: () => void refreshes.dispatchEvent(new Event("refresh")),
});

/** Call hear() when the user has the frontend read the lists of files again (R). */
export function onRefresh(node, hear) {
    listen(node, refreshes, "refresh", () => hear());
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

/** The open workflow's own id, which the server is sent with it. */
export function workflowId() {
    return (app.rootGraph ?? app.graph)?.id;
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

/** Queue the open workflow, as the Run button does; given an output node, only it and what it needs. */
export function run(node) {
    return app.queuePrompt(0, 1, node && [executionIdOf(node)]);
}

/** The node whose output an input gets, seen through reroutes and subgraphs; undefined where nothing is connected. */
export async function sourceOf(node, input) {
    const { output } = await app.graphToPrompt();
    const link = output[executionIdOf(node)]?.inputs[input];
    return Array.isArray(link) ? nodeOf(link[0]) : undefined;
}

export function isLinked(node, input) {
    return (node.inputs?.find(({ name }) => name === input)?.link ?? null) !== null;
}

const SUBGRAPH_INPUT = -10;
const NEVER = 2;
const BYPASS = 4;

/**
 * A node and all that it is made from, in the form of a prompt: {id: {class_type, inputs}}, and the node's id in it.
 *
 * As they stand now and without asking any widget to prepare itself, as queueing does. Reroutes, bypassed nodes and
 * subgraphs are seen through.
 */
export function upstream(node) {
    const graph = {};
    const add = (found, outers) => {
        const id = [...outers, found].map((each) => each.id).join(":");
        if (graph[id]) return id;
        const inputs = {};
        graph[id] = { class_type: found.comfyClass ?? found.type, inputs };
        for (const { name, value } of found.widgets ?? []) {
            if (["string", "number", "boolean"].includes(typeof value)) inputs[name] = value;
        }
        for (const { name, link } of found.inputs ?? []) {
            if (link == null) continue;
            const from = originOf(found.graph, link, outers);
            if (from) inputs[name] = from.node ? [add(from.node, from.outers), from.slot] : from.value;
        }
        return id;
    };
    return { id: add(node, outersOf(app.rootGraph ?? app.graph, node) ?? []), graph };
}

/** The subgraph nodes around a node, the outermost first; of a subgraph placed twice, its first place. */
function outersOf(graph, node) {
    if (node.graph === graph) return [];
    for (const outer of graph.nodes) {
        const inner = outer.subgraph && outersOf(outer.subgraph, node);
        if (inner) return [outer, ...inner];
    }
}

/** Where a link really begins: {node, slot, outers}, or {value} of a widget; undefined for nowhere. */
function originOf(graph, linkId, outers) {
    const link = graph.getLink?.(linkId) ?? graph.links?.get?.(linkId) ?? graph.links?.[linkId];
    if (!link) return undefined;
    if (Number(link.origin_id) === SUBGRAPH_INPUT) {
        const outer = outers.at(-1);
        const input = outer?.inputs[link.origin_slot];
        if (!input) return undefined;
        if (input.link != null) return originOf(outer.graph, input.link, outers.slice(0, -1));
        const widget = widgetOf(outer, input.widget?.name ?? input.name);
        return widget && { value: widget.value };
    }
    const node = graph.getNodeById(link.origin_id);
    if (!node || node.mode === NEVER) return undefined;
    if (node.mode === BYPASS) {
        const { type } = node.outputs[link.origin_slot];
        const passed = node.inputs.find((input) => input.type === type && input.link != null);
        return passed && originOf(graph, passed.link, outers);
    }
    if (node.subgraph) {
        const [inner] = node.subgraph.outputs[link.origin_slot]?.linkIds ?? [];
        return inner === undefined ? undefined : originOf(node.subgraph, inner, [...outers, node]);
    }
    if (node.isVirtualNode) {
        const [input] = node.inputs ?? [];
        return input ? input.link != null && originOf(graph, input.link, outers) : { value: node.widgets?.[0]?.value };
    }
    return { node, slot: link.origin_slot, outers };
}

/** The workflow whose tab is open: the same object as long as it is open. */
export function openWorkflow() {
    return app.extensionManager?.workflow?.activeWorkflow;
}

/** Whether another workflow, or an undo, is being laid out: its nodes may not be those of openWorkflow() yet. */
export function isOpening() {
    const workflow = openWorkflow();
    if (layingOut > 0 || workflow?.changeTracker?.constructor.isLoadingGraph) return true;
    return workflow === covered.workflow && performance.now() < covered.until;
}

async function workflowLaidOut() {
    while (isOpening()) await new Promise((resolve) => setTimeout(resolve, 30));
    return openWorkflow();
}

/** Call hear({workflow, promptId, nodeErrors}) when the server has accepted or refused to run a workflow.
 *
 * workflow: a promise. promptId: undefined when it refused all. nodeErrors: execution id -> {class_type, errors}; what
 * hear takes out of it at once the frontend does not show.
 */
export function onQueued(hear) {
    const queue = api.queuePrompt;
    api.queuePrompt = async function (...given) {
        const workflow = workflowLaidOut();
        try {
            const answer = await queue.apply(this, given);
            hear({ workflow, promptId: answer.prompt_id, nodeErrors: answer.node_errors ?? {} });
            return answer;
        } catch (error) {
            hear({ workflow, nodeErrors: error.response?.node_errors ?? {} });
            throw error;
        }
    };
}

/** Call hear(detail) for a message of the server that belongs to no node, such as "execution_error". */
export function onServer(type, hear) {
    api.addEventListener(type, ({ detail }) => hear(detail));
}

/** The node that feeds an input, or undefined. Out of a subgraph it leads to the node outside. */
export function upstreamOf(node, input) {
    let origin = node.graph?.getLink?.(input.link) ?? node.graph?.links?.[input.link];
    let graph = node.graph;
    // -10 is the box of a subgraph's own inputs.
    while (origin && Number(origin.origin_id) === -10) {
        const outer = allNodes().find(({ subgraph }) => subgraph === graph);
        const fed = outer?.inputs?.[origin.origin_slot];
        if (!fed) return outer;
        graph = outer.graph;
        origin = graph.getLink(fed.link);
    }
    return origin && graph.getNodeById(origin.origin_id);
}

/** What of "7:12", node 12 in the subgraph of node 7, is on the canvas: node 7, node 12 once one has gone inside. */
export function shownNodeOf(executionId) {
    const ids = String(executionId).split(":");
    return ids.map((_, index) => nodeOf(ids.slice(0, index + 1).join(":"))).findLast((node) => node?.graph === app.canvas.graph);
}

/** Where a node of the open graph is on the page, {left, top, width, height} in pixels, its title included. */
export function nodeBox(node) {
    const drawn = document.querySelector(`[data-node-id="${CSS.escape(node.id)}"]`);
    if (drawn) return drawn.getBoundingClientRect();
    const { scale, offset } = app.canvas.ds;
    const frame = canvasBox();
    const [x, y, width, height] = node.boundingRect ?? node.getBounding();
    return { left: frame.left + (x + offset[0]) * scale, top: frame.top + (y + offset[1]) * scale, width: width * scale, height: height * scale };
}

/** Where the canvas is on the page, or undefined while something else is shown in its place. */
export function canvasBox() {
    const { canvas } = app.canvas;
    return canvas.checkVisibility?.() === false ? undefined : canvas.getBoundingClientRect();
}

export function canvasScale() {
    return app.canvas.ds.scale;
}

/** Lay an element over the canvas and its nodes, under the frontend's panels. */
export function overCanvas(made) {
    app.canvas.canvas.parentElement.append(made);
    return made;
}

// --- widgets --------------------------------------------------------------------------------------------------------

export function widgetOf(node, name) {
    return node.widgets?.find((widget) => widget.name === name);
}

/** Set a widget as a user's hand would: its callback runs, and the change can be undone. typing: call changed() later. */
export function setWidget(node, name, value, typing = false) {
    const widget = widgetOf(node, name);
    if (!widget || widget.value === value) return;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    if (!typing) changed();
}

/** Call hear(value) when a widget's value changes, by hand or by setWidget. */
export function onWidget(node, name, hear) {
    const widget = widgetOf(node, name);
    if (widget) chain(widget, "callback", hear);
}

/** Call hear() when a wire of the node is put in or taken out. */
export function onWires(node, hear) {
    chain(node, "onConnectionsChange", () => queueMicrotask(hear));
}

/** Take a widget out of sight, or back; its value stays and is saved. */
export function hideWidget(node, name, hidden = true) {
    const widget = widgetOf(node, name);
    if (!widget) return;
    widget.hidden = hidden;
    // In place: Nodes 2.0 keeps these very options.
    widget.options = Object.assign(widget.options ?? {}, { hidden });
}

/** Call see() now, and again when widgets came (an option of a dynamic dropdown brings its own) and are complete. */
export function onWidgetsChanged(node, see) {
    chain(node, "addCustomWidget", () => {
        see();
        queueMicrotask(see);
    });
    see();
}

/** Show label(value) for the values of a node's dropdowns that have one; what is stored and sent stays the value. */
export function labelChoices(node, label) {
    for (const { type, options } of node.widgets ?? []) {
        if (type !== "combo" || options.getOptionLabel || !Array.isArray(options.values)) continue;
        if (options.values.some(label)) options.getOptionLabel = (value) => label(value) ?? value ?? "";
    }
}

/**
 * Hide advanced widgets on the classic canvas until the node's menu says "Show Advanced"; Nodes 2.0 does so by itself.
 *
 * One with a link stays in sight, as there. The room of hidden ones is given up: the classic layout would keep it.
 */
export function foldAdvanced(node) {
    const fold = () => {
        for (const widget of node.widgets ?? []) {
            // A seed's "control after generate" comes and goes with it.
            if (widget.options?.advanced) [widget, ...(widget.linkedWidgets ?? [])].forEach((each) => foldWidget(node, each, widget.name));
        }
    };
    onWidgetsChanged(node, fold);
    chain(node, "onConnectionsChange", fold);
    chain(node, "onConfigure", fold);
    node.setSize([node.size[0], Math.min(node.size[1], node.computeSize()[1])]);
}

const FOLDED = Symbol("realisr folded");

function foldWidget(node, widget, input) {
    const isNew = !(FOLDED in widget);
    widget[FOLDED] = !node.inputs?.some(({ widget: of, link }) => of?.name === input && link != null);
    widget.advanced = widget[FOLDED];
    if (!isNew) return;
    const shown = widget.computeSize;
    // The layout adds a gap of 4 below each widget.
    const nothing = () => [0, -4];
    const isFolded = () => widget[FOLDED] && !node.showAdvanced && !LiteGraph.vueNodesMode;
    Object.defineProperty(widget, "computeSize", { configurable: true, get: () => (isFolded() ? nothing : shown) });
}

/** Colours of links and slots by type, where the palette has none of its own. colours: type -> "#rrggbb". */
export function colourLinks(colours) {
    const variables = Object.entries(colours).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    addStyle(`:root { ${variables.join(" ")} }`);
    app.registerExtension({
        name: "RealISR.Links",
        setup() {
            for (const table of [app.canvas.default_connection_color_byType, app.canvas.constructor.link_type_colors]) {
                for (const [type, colour] of Object.entries(colours)) colourType(table, type, colour);
            }
        },
    });
}

// Each palette that is loaded writes "" for types that it does not know.
function colourType(table, type, colour) {
    let ofPalette = table?.[type];
    if (table) Object.defineProperty(table, type, { enumerable: true, configurable: true, get: () => ofPalette || colour, set: (given) => (ofPalette = given) });
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
    const box = element("div", { className: `realisr-panel ${className}`, style: size });
    // A wheel over the box scrolls the box, and zooms where there is nothing to scroll.
    box.addEventListener("wheel", (event) => scrolls(event.target, box) && event.stopPropagation(), { passive: true });
    const fixed = () => height + 2 * MARGIN;
    const heights = { getMinHeight: fixed, getMaxHeight: fixed, getHeight: fixed, margin: MARGIN };
    node.addDOMWidget(name, "realisr_panel", box, { serialize: false, ...heights });
    const [width, least] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], least)]);
    owners.set(box, { node, name });
    onReady(node, () => requestAnimationFrame(() => requestAnimationFrame(() => takePlace(box))));
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

/** Call draw() when an element of the node gets another size. */
export function onResize(node, box, draw) {
    const observer = new ResizeObserver(draw);
    observer.observe(box);
    onRemoved(node, () => observer.disconnect());
}

/** Box -> the node and the widget it was made for. */
const owners = new WeakMap();

// After an undo Nodes 2.0 goes on showing the element of the node that was there before, which has the same id.
function takePlace(box) {
    if (box.isConnected) return;
    const { node, name } = owners.get(box);
    for (const other of document.querySelectorAll("[data-node-id] .realisr-panel")) {
        const owner = owners.get(other);
        const left = owner.node !== node && owner.node.graph?.getNodeById(owner.node.id) !== owner.node;
        if (left && owner.name === name && String(owner.node.id) === String(node.id)) other.replaceWith(box);
    }
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

/** Put a rule into the page's style sheet. */
export function addStyle(rules) {
    document.head.append(element("style", { textContent: rules }));
}

/** Put a text into the clipboard; the button that was pressed says so for a moment. */
export async function copy(value, pressed) {
    try {
        await navigator.clipboard.writeText(value);
    } catch {
        // No clipboard for pages that come over plain http from another machine.
        const field = element("textarea", { value, style: "position: fixed; opacity: 0" });
        document.body.append(field);
        field.select();
        document.execCommand("copy");
        field.remove();
    }
    const label = pressed.textContent;
    pressed.textContent = text("copied");
    setTimeout(() => (pressed.textContent = label), 1200);
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

function language() {
    return app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
}

/** Let the frontend make no node before the texts are here, where node texts are shown in another language. */
export function readTextsFirst() {
    app.registerExtension({ name: "RealISR.Texts", init: () => (language() === "en" ? undefined : textsRead()) });
}

/** Wait for the texts of locales/; every panel is drawn after this. */
export function textsRead() {
    return (reading ??= readTexts());
}

async function readTexts() {
    const languages = await (await api.fetchApi("/i18n")).json();
    texts = { ...languages.en?.realisr, ...languages[language()]?.realisr };
}

/** Whether there is a text of this key. */
export function hasText(key) {
    return key in texts;
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

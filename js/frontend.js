// All that this pack asks of ComfyUI's frontend, in one place: what the frontend calls unstable is used here alone.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const root = () => app.rootGraph ?? app.graph;
const ids = (nodes) => nodes.map(({ id }) => id).join(":");

// --- nodes ---

/** For onNewNodes: every node of this pack. */
export const ALL_OURS = { includes: (type) => Boolean(type?.startsWith("RealISR_")) };

const RESTORED = Symbol("realisr outputs restored");
const setUps = [];
const page = new EventTarget();
const tell = (type) => () => void page.dispatchEvent(new Event(type));

app.registerExtension({
  name: "RealISR",
  init: () => reading,
  nodeCreated(node) {
    for (const [classes, setUp] of setUps) if (classes.includes(node.comfyClass)) setUp(node);
  },
  // Outputs that come back with a tab or an undo reach no node by themselves.
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const [id, subgraph] = locator.split(":").reverse();
      const graph = subgraph ? root().subgraphs?.get(subgraph) : root();
      graph?.getNodeById(id)?.[RESTORED]?.forEach((draw) => draw(output));
    }
  },
  afterConfigureGraph: tell("opened"),
  refreshComboInNodes: tell("refresh"),
});

/** Call setUp(node) for new nodes of these classes, before what is saved of them is read. */
export function onNewNodes(classes, setUp) {
  setUps.push([classes, setUp]);
}

// Call after(...) whenever object.name(...) has run.
function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    after(...given);
    return result;
  };
}

/** Call draw(output) with the node's `ui`: after a run, and again after a tab switch. */
export function onOutput(node, draw) {
  chain(node, "onExecuted", draw);
  (node[RESTORED] ??= []).push(draw);
}

/** Remember a result that the node's `ui` holds, and call draw(result). */
export function onResult(node, key, draw) {
  onOutput(node, ({ [key]: found }) => {
    if (!found) return;
    remember(node, key, found);
    draw(found);
  });
}

/** Call draw() when the node is complete: new, or read from wherever. */
export function onReady(node, draw) {
  chain(node, "onConfigure", () => queueMicrotask(draw));
  queueMicrotask(draw);
}

const PLACED = new Set();

/** Call begin() when a hand has placed the node. */
export function onPlaced(node, begin) {
  PLACED.add(node);
  chain(node, "onConfigure", () => PLACED.delete(node));
  queueMicrotask(() => PLACED.delete(node) && !layingOut && begin());
}

let layingOut = 0;
// The workflow over which such a file was laid out; the new one becomes the open one a moment later, if it is another.
let covered = {};

// A file in API form is laid out without configuring nodes; newer frontends take their time for it.
const lay = app.loadApiJson;
app.loadApiJson = async function (...given) {
  layingOut++;
  covered = { workflow: openWorkflow(), until: performance.now() + 5000 };
  try {
    return await lay.apply(this, given);
  } finally {
    layingOut--;
  }
};

/** Call end() when the node is deleted or its graph is closed. */
export function onRemoved(node, end) {
  chain(node, "onRemoved", end);
}

// As long as the node is there, or the page if there is none.
function listen(node, target, type, hear) {
  target.addEventListener(type, hear);
  if (node) onRemoved(node, () => target.removeEventListener(type, hear));
}

/** Call hear(detail) for messages of the server. */
export function onMessage(node, type, hear) {
  listen(node, api, type, ({ detail }) => hear(detail));
}

/** Call end() when a run is over, however it ended. */
export function onRunEnd(node, end) {
  for (const type of ["execution_success", "execution_error", "execution_interrupted"]) onMessage(node, type, end);
}

/** Call hear() when a graph is "opened" (file, tab, undo) and at a "refresh" of lists (R). */
export function onPage(node, type, hear) {
  listen(node, page, type, () => hear());
}

/** A small result that is saved with the node. */
export function recall(node, key) {
  return node.properties?.realisr?.[key];
}

export function remember(node, key, value) {
  node.properties.realisr = { ...node.properties.realisr, [key]: value };
}

// Of "7:12", node 12 in the subgraph that node 7 stands for: both nodes.
function nodesOf(executionId) {
  let graph = root();
  return String(executionId).split(":").map((id) => {
    const node = graph?.getNodeById(id);
    graph = node?.subgraph;
    return node;
  });
}

/** The node that a message of the server means: "12" or "7:12". */
export function nodeOf(executionId) {
  return nodesOf(executionId).at(-1);
}

/** What of "7:12" is on the canvas: node 7, or node 12 once one has gone inside. */
export function shownNodeOf(executionId) {
  return nodesOf(executionId).findLast((node) => node?.graph === app.canvas.graph);
}

/** The id by which the server calls a node, or undefined when it is in no open graph. */
export function executionIdOf(node) {
  const outers = outersOf(node);
  return outers && ids([...outers, node]);
}

/** The open workflow's own id. */
export function workflowId() {
  return root()?.id;
}

/** Select a node and bring it to the middle of the canvas. */
export function goTo(node) {
  if (app.canvas.graph !== node.graph) app.canvas.setGraph(node.graph);
  app.canvas.selectNode(node, false);
  app.canvas.centerOnNode(node);
}

/** Run the open workflow, or of it only an output node and what it needs. */
export function run(node) {
  return app.queuePrompt(0, 1, node && [executionIdOf(node)]);
}

const inputOf = (node, name) => node.inputs?.find((input) => input.name === name);

export function isLinked(node, name) {
  return inputOf(node, name)?.link != null;
}

/** The node whose output an input gets, if any. */
export function sourceOf(node, name) {
  return isLinked(node, name) ? originOf(node.graph, inputOf(node, name).link, outersOf(node) ?? [])?.node : undefined;
}

const SUBGRAPH_INPUT = -10;
const NEVER = 2;
const BYPASS = 4;

/**
 * A node and all it is made from as a prompt, {id: {class_type, inputs}}, and the node's id in it.
 *
 * No widget is asked to prepare itself, as queueing does. Reroutes, bypassed nodes and subgraphs are seen through.
 */
export function upstream(node) {
  const graph = {};
  const add = (found, outers) => {
    const id = ids([...outers, found]);
    if (graph[id]) return id;
    const inputs = {};
    graph[id] = { class_type: found.comfyClass ?? found.type, inputs };
    for (const { name, value } of found.widgets ?? []) {
      if (["string", "number", "boolean"].includes(typeof value)) inputs[name] = value;
    }
    for (const { name, link } of found.inputs ?? []) {
      if (link == null) continue;
      const from = originOf(found.graph, link, outers);
      if (from) inputs[name] = from.outers ? [add(from.node, from.outers), from.slot] : from.value;
    }
    return id;
  };
  return { id: add(node, outersOf(node) ?? []), graph };
}

// The subgraph nodes around a node, the outermost first; of a subgraph placed twice, its first place.
function outersOf(node, graph = root()) {
  if (node.graph === graph) return [];
  for (const outer of graph.nodes) {
    const inner = outer.subgraph && outersOf(node, outer.subgraph);
    if (inner) return [outer, ...inner];
  }
}

// Where a link really begins: {node, slot, outers}, or {node, value} of its widget; undefined for nowhere.
function originOf(graph, linkId, outers) {
  const link = graph.getLink(linkId);
  if (!link) return undefined;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const outer = outers.at(-1);
    const input = outer?.inputs[link.origin_slot];
    if (!input) return undefined;
    if (input.link != null) return originOf(outer.graph, input.link, outers.slice(0, -1));
    const widget = widgetOf(outer, input.widget?.name ?? input.name);
    return { node: outer, value: widget?.value };
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
    return input ? input.link != null && originOf(graph, input.link, outers) : { node, value: node.widgets?.[0]?.value };
  }
  return { node, slot: link.origin_slot, outers };
}

/** The workflow whose tab is in front: the same object as long as it is open. */
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

/**
 * Call hear({workflow, promptId, nodeErrors}) when the server has answered to a wish to run.
 *
 * workflow: a promise. promptId: undefined when it refused. nodeErrors: execution id -> {class_type, errors}; the
 * frontend shows what hear leaves of them at once.
 */
export function onQueued(hear) {
  const queue = api.queuePrompt;
  api.queuePrompt = async function (...given) {
    const workflow = workflowLaidOut();
    const told = (promptId, nodeErrors = {}) => hear({ workflow, promptId, nodeErrors });
    try {
      const answer = await queue.apply(this, given);
      told(answer.prompt_id, answer.node_errors);
      return answer;
    } catch (error) {
      told(undefined, error.response?.node_errors);
      throw error;
    }
  };
}

/** {box, scale, end}: a node's place on the page, the canvas's scale and its lower end; undefined while it is not shown. */
export function nodeBox(node) {
  const { canvas, ds } = app.canvas;
  if (canvas.checkVisibility?.() === false) return undefined;
  const { scale, offset } = ds;
  const { left, top, bottom: end } = canvas.getBoundingClientRect();
  const [x, y, ...size] = node.boundingRect ?? node.getBounding();
  const [width, height] = size.map((length) => length * scale);
  const onCanvas = new DOMRect(left + (x + offset[0]) * scale, top + (y + offset[1]) * scale, width, height);
  const drawn = document.querySelector(`[data-node-id="${CSS.escape(node.id)}"]`);
  return { box: drawn?.getBoundingClientRect() ?? onCanvas, scale, end };
}

/** Lay an element over the canvas and its nodes. */
export function overCanvas(made) {
  app.canvas.canvas.parentElement.append(made);
}

// --- widgets ---

export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** Set a widget as a hand would: its callback runs, and it can be undone. typing: call changed() later. */
export function setWidget(node, name, value, typing = false) {
  const widget = widgetOf(node, name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  if (!typing) changed();
}

/** Call hear(value) when a widget's value changes. */
export function onWidget(node, name, hear) {
  const widget = widgetOf(node, name);
  if (widget) chain(widget, "callback", hear);
}

/** Call hear() when a wire of the node changes. */
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

/** Call see() now and whenever widgets came (with an option of a dynamic dropdown) and are complete. */
export function onWidgetsChanged(node, see) {
  chain(node, "addCustomWidget", () => {
    see();
    queueMicrotask(see);
  });
  see();
}

/** Show label(value) for the values of dropdowns that have one; stored and sent is the value. */
export function labelChoices(node, label) {
  for (const { type, options } of node.widgets ?? []) {
    if (type !== "combo" || options.getOptionLabel || !Array.isArray(options.values)) continue;
    if (options.values.some(label)) options.getOptionLabel = (value) => label(value) ?? value ?? "";
  }
}

/**
 * Hide advanced widgets on the classic canvas until the node's menu says "Show Advanced", as Nodes 2.0 does.
 *
 * One with a link stays. The room of hidden ones is given up: the classic layout would keep it.
 */
export function foldAdvanced(node) {
  const fold = () => {
    for (const widget of node.widgets?.filter(({ options }) => options?.advanced) ?? []) {
      // A seed's "control after generate" comes and goes with it.
      for (const each of [widget, ...(widget.linkedWidgets ?? [])]) foldWidget(node, each, widget.name);
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
  widget[FOLDED] = widget.advanced = !isLinked(node, input);
  if (!isNew) return;
  const shown = widget.computeSize;
  // The layout adds a gap of 4 below each widget.
  const nothing = () => [0, -4];
  const isFolded = () => widget[FOLDED] && !node.showAdvanced && !LiteGraph.vueNodesMode;
  Object.defineProperty(widget, "computeSize", { configurable: true, get: () => (isFolded() ? nothing : shown) });
}

/** Colours of links and slots where the palette has none. colours: type -> "#rrggbb". */
export function colourLinks(colours) {
  const types = Object.entries(colours);
  const variables = types.map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
  document.head.append(element("style", `:root { ${variables.join(" ")} }`));
  const setup = () => {
    for (const table of [app.canvas.default_connection_color_byType, app.canvas.constructor.link_type_colors]) {
      if (table) for (const [type, colour] of types) colourType(table, type, colour);
    }
  };
  app.registerExtension({ name: "RealISR.Links", setup });
}

// Each palette that is loaded writes "" for types that it does not know.
function colourType(table, type, colour) {
  let ofPalette = table[type];
  const [get, set] = [() => ofPalette || colour, (given) => (ofPalette = given)];
  Object.defineProperty(table, type, { enumerable: true, configurable: true, get, set });
}

/** Let the frontend note what changed, for undo. */
export function changed() {
  const tracker = openWorkflow()?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  app.canvas?.setDirty(true, true);
}

/** A box of constant height under the node's widgets, of class "realisr-<name>"; what is higher scrolls. width: at least.
 *
 * Make it with the node, not with its first result: the node then never grows.
 */
export function addPanel(node, name, height, width = 0) {
  const style = `min-height: ${height}px; height: ${height}px; max-height: ${height}px`;
  const box = element(`div.realisr-panel.realisr-${name}`, { style });
  // A wheel zooms where there is nothing to scroll.
  box.addEventListener("wheel", (event) => scrolls(event.target, box) && event.stopPropagation(), { passive: true });
  const fixed = () => height + 2 * MARGIN;
  const heights = { getMinHeight: fixed, getMaxHeight: fixed, getHeight: fixed, margin: MARGIN };
  node.addDOMWidget(`realisr_${name}`, "realisr_panel", box, { serialize: false, ...heights });
  const [least, high] = node.computeSize();
  node.setSize([Math.max(node.size[0], least, width), Math.max(node.size[1], high)]);
  owners.set(box, { node, name });
  onReady(node, () => requestAnimationFrame(() => requestAnimationFrame(() => takePlace(box))));
  return box;
}

const MARGIN = 6;

function scrolls(inner, box) {
  for (let part = inner; part && box.contains(part); part = part.parentElement) {
    if (part.scrollHeight > part.clientHeight && getComputedStyle(part).overflowY === "auto") return true;
  }
  return false;
}

/** Call draw() when an element gets another size. */
export function onResize(node, box, draw) {
  const observer = new ResizeObserver(draw);
  observer.observe(box);
  onRemoved(node, () => observer.disconnect());
}

// Box -> the node and the widget it was made for.
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

// --- elements and texts ---

/** element("span.note", {title: "..."}, ...children): children are elements, texts (never markup), lists of them or nothing. */
export function element(tag, ...parts) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  const properties = parts[0]?.constructor === Object ? parts.shift() : {};
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (key.includes("-") || key === "style" || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...parts.flat(2).filter((child) => (child ?? false) !== false));
  return made;
}

export function button(label, press, properties = {}) {
  return element("button", { type: "button", textContent: label, onclick: press, ...properties });
}

/** A button that puts a text into the clipboard, and says so for a moment. */
export function copier(label, value) {
  return button(label, ({ target }) => copy(value, target), { title: value });
}

/** The canvas below an element takes none of these events. */
export function keepFromCanvas(made, ...types) {
  for (const type of types) made.addEventListener(type, (event) => event.stopPropagation());
}

/** A picture that a run wrote; gone (a restart empties the temporary folder) it leaves no broken icon. */
export function picture(file, alt = "") {
  return element("img", { src: pictureUrl(file), alt, draggable: false, onerror: ({ target }) => target.remove() });
}

async function copy(value, pressed) {
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

/** file: {filename, subfolder, type}. */
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
// Begun as early as can be: the frontend makes no node before it is done.
const reading = readTexts();

async function readTexts() {
  const answer = await api.fetchApi("/i18n").catch(() => undefined);
  if (answer?.ok) texts = await answer.json();
}

function findText(key) {
  const language = app.extensionManager?.setting?.get("Comfy.Locale");
  return texts[language]?.realisr?.[key] ?? texts.en?.realisr?.[key];
}

export function hasText(key) {
  return findText(key) !== undefined;
}

/** A text of locales/<language>/main.json, its [names] replaced; in English where there is no other. */
export function text(key, values = {}) {
  return (findText(key) ?? key).replace(/\[(\w+)\]/g, (whole, name) => values[name] ?? whole);
}

document.head.append(element("link", { rel: "stylesheet", href: new URL("./realisr.css", import.meta.url).href }));

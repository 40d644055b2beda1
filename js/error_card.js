// What went wrong with one of our nodes, on the node: the cause, what to do, and the way to what has to be changed.
import {
  button, copier, element, goTo, isOpening, keepFromCanvas, nodeBox, nodeOf, onMessage, onPage, onQueued, openWorkflow,
  overCanvas, shownNodeOf, sourceOf, text,
} from "./frontend.js";

const VALIDATION = "custom_validation_failed";
const OURS = /^RealISR_/;
const LINK = /https:\/\/[^\s"'<>]*[^\s"'<>.,;:)]/;
const FOLDER = /"((?:\/|[A-Za-z]:\\|\\\\)[^"\n]+)"/;

// workflow -> execution id of the node -> what is wrong with it. A closed workflow takes its errors along.
const errors = new WeakMap();
const cards = new Map();
// Number of a run -> its workflow.
const queued = new Map();
// Errors of runs whose number the answer to the request to run has not told yet.
const early = new Map();
let frame;

const errorsOf = (workflow) => (workflow && errors.get(workflow)) ?? new Map();

function note(workflow, id, type, message, ran) {
  if (!workflow || !OURS.test(type) || !message) return;
  if (!errors.has(workflow)) errors.set(workflow, new Map());
  errors.get(workflow).set(String(id), { type, message: message.trim(), ran });
  follow();
}

function noteRun(workflow, { node_id, node_type, exception_message }) {
  note(workflow, node_id, node_type, exception_message, true);
}

// The host repeats what `validate_inputs` says for every input: leave each its own lines.
function keepOwnLines(nodeError) {
  const names = nodeError.errors.map(({ extra_info }) => extra_info?.input_name);
  nodeError.errors = nodeError.errors.filter((error) => {
    const input = error.extra_info?.input_name;
    const start = `${input} - `;
    if (error.type !== VALIDATION || !error.details?.startsWith(start)) return true;
    const lines = error.details.slice(start.length).split("\n").map((line) => line.split(": "));
    if (!lines.every(([name]) => names.includes(name))) return true;
    const own = lines.filter(([name]) => name === input);
    error.details = start + own.map(([, ...said]) => said.join(": ")).join("\n");
    return own.length > 0;
  });
}

function refusal({ errors }) {
  const said = errors.map(({ type, message, details, extra_info }) =>
    type === VALIDATION ? details.slice(`${extra_info.input_name} - `.length) : `${message}: ${details}.`,
  );
  return [...new Set(said)].join("\n");
}

onQueued(async ({ workflow: asked, promptId, nodeErrors }) => {
  const ours = Object.entries(nodeErrors).filter(([, { class_type }]) => OURS.test(class_type));
  ours.forEach(([, nodeError]) => keepOwnLines(nodeError));
  const workflow = await asked;
  errors.get(workflow)?.clear();
  for (const [id, nodeError] of ours) note(workflow, id, nodeError.class_type, refusal(nodeError), false);
  if (!promptId) return;
  queued.set(promptId, workflow);
  if (early.has(promptId)) noteRun(workflow, early.get(promptId));
  early.delete(promptId);
});

onMessage(null, "execution_error", (detail) => {
  const workflow = queued.get(detail.prompt_id);
  queued.delete(detail.prompt_id);
  if (workflow) noteRun(workflow, detail);
  else early.set(detail.prompt_id, detail);
});

onMessage(null, "execution_interrupted", ({ prompt_id }) => queued.delete(prompt_id));

onMessage(null, "execution_success", ({ prompt_id }) => {
  const mended = errorsOf(queued.get(prompt_id));
  for (const [id, { ran }] of [...mended]) if (ran) mended.delete(id);
  queued.delete(prompt_id);
});

onPage(null, "opened", follow);

/** The first sentence, and the others. A dot in a file's name ends none. */
function split(message) {
  const [, cause, remedy = ""] = /^([^]*?[.!?])(?:\s+(?=[A-Z'"(])|\n|$)([^]*)$/.exec(message) ?? [, message];
  return [cause, remedy.trim()];
}

/** Where a message speaks of an input or a type, as a word; -1 where it does not. Types are written in capitals. */
function placeOf(word, message) {
  const written = word.replace(/\W/g, "\\$&").replaceAll("_", "[_ ]");
  return message.search(new RegExp(`(?<![\\w./-])${written}(?![\\w/-]|\\.\\w)`, word === word.toUpperCase() ? "" : "i"));
}

// The node whose output is to blame: that of the input which the message names first, by name or by type.
function guilty(node, message) {
  const place = ({ name, type }) => {
    const found = [name, String(type)].map((word) => placeOf(word, message)).filter((at) => at >= 0);
    return Math.min(...found);
  };
  const [named] = (node.inputs ?? []).filter((input) => input.link != null && place(input) < Infinity).sort((a, b) => place(a) - place(b));
  return named && sourceOf(node, named.name);
}

// A change of these may have mended it; seeds change by themselves after a run.
function settings(node) {
  const fed = (node.inputs ?? []).map(({ name }) => sourceOf(node, name));
  const counts = ({ name, serialize }) => serialize !== false && !/seed|control_after_generate/.test(name);
  const values = (each) => each?.widgets?.filter(counts).map(({ value }) => value) ?? [];
  return JSON.stringify([values(node), fed.map((each) => each && [each.id, values(each)])]);
}

function draw(workflow, id, { message }, node, shown) {
  const [cause, remedy] = split(message);
  const link = LINK.exec(message)?.[0];
  const folder = FOLDER.exec(message)?.[1];
  const way = (to) => to && button(text("error.go", { node: to.title }), () => goTo(to));
  const actions = [
    shown !== node && way(node),
    way(guilty(node, message)),
    link && copier(text("error.copy_link"), link),
    folder && copier(text("error.copy_folder"), folder),
  ].filter(Boolean);
  const close = text("error.close");
  const card = element(
    "section.realisr-error",
    { role: "alert", "aria-label": text("error.title"), "data-node": id },
    button("✕", () => errorsOf(workflow).delete(id), { title: close, "aria-label": close }),
    element("strong", cause),
    remedy && element("p", remedy),
    actions.length > 0 && element("nav", actions),
  );
  keepFromCanvas(card, "pointerdown", "wheel", "dblclick", "contextmenu");
  overCanvas(card);
  return card;
}

// Under its node, as wide; where that end is out of sight, at the end of the canvas.
function place(card, node) {
  const found = nodeBox(node);
  card.hidden = !found;
  if (!found) return;
  const { box, end } = found;
  const scale = Math.min(1.5, Math.max(0.75, found.scale));
  card.style.width = `${Math.max(280, box.width / scale)}px`;
  const top = Math.max(box.top + 30 * scale, Math.min(box.bottom, end - card.offsetHeight * scale - 8));
  card.style.transform = `translate(${box.left}px, ${top}px) scale(${scale})`;
}

function tick() {
  frame = undefined;
  const workflow = openWorkflow();
  const current = errorsOf(workflow);
  // The nodes of a tab are there before it is the active one: meanwhile there are no cards.
  const opening = isOpening();
  const wanted = new Map();
  for (const [id, error] of opening ? [] : [...current]) {
    const [node, shown] = [nodeOf(id), shownNodeOf(id)];
    // A deleted node may come back with an undo.
    if (node?.comfyClass !== error.type || !shown) continue;
    const now = settings(node);
    error.settings ??= now;
    if (error.settings === now) wanted.set(error, { id, node, shown });
    else current.delete(id);
  }
  for (const [error, { card, shown }] of cards) {
    if (wanted.get(error)?.shown === shown) continue;
    card.remove();
    cards.delete(error);
  }
  for (const [error, { id, node, shown }] of wanted) {
    if (!cards.has(error)) cards.set(error, { shown, card: draw(workflow, id, error, node, shown) });
    place(cards.get(error).card, shown);
  }
  if (opening || current.size) follow();
}

function follow() {
  frame ??= requestAnimationFrame(tick);
}

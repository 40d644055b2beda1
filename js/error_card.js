// What went wrong with one of our nodes, on the node: the cause, what to do, and the way to what has to be changed.
import * as frontend from "./frontend.js";

const { addStyle, button, copy, element, onGraphComplete, onQueued, onServer, openWorkflow, text, textsRead } = frontend;
const OURS = /^RealISR_/;
const LINK = /https:\/\/[^\s"'<>]*[^\s"'<>.,;:)]/;
const FOLDER = /"((?:\/|[A-Za-z]:\\|\\\\)[^"\n]+)"/;

addStyle(`
    .realisr-error { position: fixed; left: 0; top: 0; z-index: 10; transform-origin: 0 0; box-sizing: border-box; padding: 8px 10px; border-radius: 0 0 8px 8px; border: 1px solid #ef4444; border-top: 3px solid #ef4444; background: color-mix(in srgb, #7f1d1d 35%, var(--comfy-menu-bg)); color: var(--input-text); font: 12px/1.45 sans-serif; box-shadow: 0 6px 16px #0008; overflow-wrap: anywhere; pointer-events: auto; user-select: text; }
    .realisr-error strong { display: block; padding-right: 18px; font-weight: 600; }
    .realisr-error p { margin: 4px 0 0; opacity: 0.85; max-height: 9em; overflow: auto; white-space: pre-line; }
    .realisr-error nav { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 8px; }
    .realisr-error button { font: inherit; color: inherit; background: #0003; border: 1px solid color-mix(in srgb, currentColor 35%, transparent); border-radius: 4px; padding: 1px 8px; cursor: pointer; }
    .realisr-error button:hover, .realisr-error button:focus-visible { border-color: currentColor; }
    .realisr-error > button { position: absolute; right: 4px; top: 3px; border: none; background: none; padding: 2px 6px; }
`);

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

/** The host repeats what `validate_inputs` says for every input it takes: leave each input its own lines. */
function keepOwnLines(nodeError) {
    const names = new Set(nodeError.errors.map(({ extra_info }) => extra_info?.input_name));
    nodeError.errors = nodeError.errors.filter((error) => {
        const start = `${error.extra_info?.input_name} - `;
        if (error.type !== "custom_validation_failed" || !error.details?.startsWith(start)) return true;
        const lines = error.details.slice(start.length).split("\n");
        if (!lines.every((line) => names.has(/^([\w.]+): /.exec(line)?.[1]))) return true;
        const own = lines.filter((line) => line.startsWith(`${error.extra_info.input_name}: `));
        error.details = start + own.map((line) => line.slice(start.length - 1)).join("\n");
        return own.length > 0;
    });
}

/** What is wrong with a node before a run, each thing once. */
function refusal({ errors }) {
    const said = errors.map(({ type, message, details, extra_info }) =>
        type === "custom_validation_failed" ? details.slice(`${extra_info.input_name} - `.length) : `${message}: ${details}.`,
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

onServer("execution_error", (detail) => {
    const workflow = queued.get(detail.prompt_id);
    queued.delete(detail.prompt_id);
    if (workflow) noteRun(workflow, detail);
    else early.set(detail.prompt_id, detail);
});

onServer("execution_interrupted", ({ prompt_id }) => queued.delete(prompt_id));

onServer("execution_success", ({ prompt_id }) => {
    const mended = errorsOf(queued.get(prompt_id));
    for (const [id, { ran }] of [...mended]) if (ran) mended.delete(id);
    queued.delete(prompt_id);
});

onGraphComplete(undefined, follow);

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

/** The node whose output is to blame: that of the linked input which the message names first, by name or by type. */
function guilty(node, message) {
    const named = (node.inputs ?? [])
        .filter(({ link }) => link != null)
        .flatMap((input) => [input.name, String(input.type)].map((word) => ({ input, place: placeOf(word, message) })))
        .filter(({ place }) => place >= 0)
        .sort((a, b) => a.place - b.place);
    return named.length ? frontend.upstreamOf(node, named[0].input) : undefined;
}

/** What a change of which may have mended it: widgets and links of the node, widgets of those that feed it. No seeds:
 * they change by themselves after a run. */
function settings(node) {
    const fed = (node.inputs ?? []).map((input) => (input.link == null ? undefined : frontend.upstreamOf(node, input)));
    const values = (each) => each?.widgets?.filter(({ name, serialize }) => serialize !== false && !/seed|control_after_generate/.test(name)).map(({ value }) => value) ?? [];
    return JSON.stringify([values(node), fed.map((each) => each && [each.id, values(each)])]);
}

function draw(workflow, id, error, node) {
    const [cause, remedy] = split(error.message);
    const origin = guilty(node, error.message);
    const shown = frontend.shownNodeOf(id);
    const link = LINK.exec(error.message)?.[0];
    const folder = FOLDER.exec(error.message)?.[1];
    const actions = [
        shown !== node && button(text("error.go", { node: node.title }), () => frontend.goTo(node)),
        origin && button(text("error.go", { node: origin.title }), () => frontend.goTo(origin)),
        link && button(text("error.copy_link"), ({ target }) => copy(link, target), { title: link }),
        folder && button(text("error.copy_folder"), ({ target }) => copy(folder, target), { title: folder }),
    ].filter(Boolean);
    const close = () => errorsOf(workflow).delete(id);
    const card = element(
        "section",
        { className: "realisr-error", role: "alert", "aria-label": text("error.title") },
        button("✕", close, { title: text("error.close"), "aria-label": text("error.close") }),
        element("strong", {}, cause),
        remedy ? element("p", {}, remedy) : null,
        actions.length ? element("nav", {}, ...actions) : null,
    );
    card.dataset.node = id;
    // What is done on the card is not done to the canvas below it.
    for (const type of ["pointerdown", "wheel", "dblclick", "contextmenu"]) card.addEventListener(type, (event) => event.stopPropagation());
    return frontend.overCanvas(card);
}

/** Put a card under its node, as wide; where the node's end is out of sight, at the end of the canvas. */
function place(card, node) {
    const canvas = frontend.canvasBox();
    if (!canvas) return (card.hidden = true);
    card.hidden = false;
    const box = frontend.nodeBox(node);
    const scale = Math.min(1.5, Math.max(0.75, frontend.canvasScale()));
    const width = Math.max(280, box.width / scale);
    card.style.width = `${width}px`;
    const bottom = box.top + box.height;
    const top = Math.max(box.top + 30 * scale, Math.min(bottom, canvas.bottom - card.offsetHeight * scale - 8));
    card.style.transform = `translate(${box.left}px, ${top}px) scale(${scale})`;
}

function tick() {
    frame = undefined;
    const workflow = openWorkflow();
    const current = errorsOf(workflow);
    // The nodes of a tab are there before it is the active one: meanwhile there are no cards.
    const opening = frontend.isOpening();
    const wanted = new Map();
    for (const [id, error] of opening ? [] : [...current]) {
        const node = frontend.nodeOf(id);
        const shown = frontend.shownNodeOf(id);
        // A deleted node may come back with an undo.
        if (node?.comfyClass !== error.type || !shown) continue;
        const now = settings(node);
        error.settings ??= now;
        if (error.settings === now) wanted.set(error, { id, node, shown });
        else current.delete(id);
    }
    for (const [error, card] of cards) {
        if (wanted.get(error)?.shown === card.shown) continue;
        card.made.remove();
        cards.delete(error);
    }
    for (const [error, { id, node, shown }] of wanted) {
        if (!cards.has(error)) cards.set(error, { shown, made: draw(workflow, id, error, node) });
        place(cards.get(error).made, shown);
    }
    if (opening || current.size) follow();
}

function follow() {
    frame ??= requestAnimationFrame(() => textsRead().then(tick));
}

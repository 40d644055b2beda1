// What a run will take, under the whole-method nodes: size, tiles, memory; amber where it is tight, red where it cannot be.
import { addPanel, addStyle, ask, element, hasText, onNewNodes, onOutput, onReady, onRemoved, recall, remember, text, textsRead, upstream, widgetOf } from "./frontend.js";

const NODES = ["RealISR_RestorationCFGSampler", "RealISR_DreamSRRestore", "RealISR_ARTokenRestorer"];
const HEIGHT = 72;
const LOOK_EVERY = 400;

addStyle(`
    .realisr-estimate { padding: 3px 8px; border-left: 3px solid transparent; }
    .realisr-estimate div { overflow-wrap: anywhere; }
    .realisr-estimate small { opacity: 0.7; font-size: 11px; display: block; }
    .realisr-estimate[data-level="tight"] { border-color: #e8a33d; background: color-mix(in srgb, #e8a33d 18%, var(--comfy-input-bg)); }
    .realisr-estimate[data-level="impossible"] { border-color: #e5534b; background: color-mix(in srgb, #e5534b 20%, var(--comfy-input-bg)); }
    .realisr-estimate[data-level="unknown"] div { opacity: 0.7; }
`);

const gigabytes = (bytes) => (bytes / 1e9).toFixed(bytes < 9.95e9 ? 1 : 0);
const size = ([width, height]) => `${width}×${height}`;

function facts({ from, to, tiles, memory, needs }) {
    const found = [from && to ? `${size(from)} → ${size(to)}` : from && size(from)];
    if (tiles) found.push(text(tiles === 1 ? "estimate.whole" : "estimate.tiles", { n: tiles.toLocaleString() }));
    if (memory) found.push(text("estimate.memory", { n: gigabytes(memory) }));
    found.push(...needs.map((name) => text("estimate.needs", { name })));
    return found.filter(Boolean).join(" · ");
}

function details({ stages = [], forwards, free }) {
    const lines = stages.map(([name, weights, work]) => text("estimate.stage", { name: text(`estimate.stage.${name}`), weights: gigabytes(weights), work: gigabytes(work) }));
    if (forwards) lines.push(text("estimate.forwards", { n: forwards.toLocaleString() }));
    if (free) lines.push(text("estimate.free", { n: gigabytes(free) }));
    return lines.join("\n");
}

function unknown({ level, unknown: what }) {
    if (level !== "unknown") return undefined;
    const key = `estimate.unknown.${what ?? "model"}`;
    return text(hasText(key) ? key : "estimate.unknown.input", { name: what });
}

function draw(node, box, found) {
    const label = (name) => widgetOf(node, name)?.label || node.inputs?.find((input) => input.name === name)?.label || name;
    const unused = found.unused.length ? text("estimate.unused", { names: found.unused.map(label).join(", ") }) : undefined;
    const lines = [unknown(found), found.reason, unused].filter(Boolean);
    box.dataset.level = found.level;
    box.title = [found.reason, details(found)].filter(Boolean).join("\n\n");
    box.replaceChildren(element("div", {}, facts(found)), ...lines.map((line) => element("small", {}, line)));
}

// One clock for all panels: whatever changed a value, by hand, a tab, an undo or a script, is seen.
const looking = new Set();
let clock;

function look(see) {
    looking.add(see);
    clock ??= setInterval(() => document.hidden || looking.forEach((each) => each()), LOOK_EVERY);
    return () => {
        looking.delete(see);
        if (!looking.size) clock = clearInterval(clock);
    };
}

onNewNodes("Estimate", NODES, (node) => {
    const box = addPanel(node, "estimate", HEIGHT, "realisr-estimate");
    let last;
    const see = async (again = false) => {
        if (!node.graph) return;
        const { id, graph } = upstream(node);
        const question = JSON.stringify({ node: id, graph, last_size: recall(node, "input_size") ?? null });
        if (question === last && !again) return;
        last = question;
        try {
            const [found] = await Promise.all([ask("estimate", JSON.parse(question)), textsRead()]);
            if (question === last) draw(node, box, found);
        } catch {
            // Without an answer nothing is claimed; the next change asks again.
            if (question === last) box.replaceChildren();
        }
    };
    onOutput(node, ({ realisr_input_size: sizes }) => {
        if (sizes) remember(node, "input_size", sizes[0]);
        see(true);
    });
    onReady(node, () => see());
    onRemoved(node, look(() => see()));
});

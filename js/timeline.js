// The rounds on Agent Refinement Loop, each as it finishes: its picture, what changed in the prompt and why.
import {
    addPanel, addStyle, ask, button, element, executionIdOf, hideWidget, nodeOf, onGraphComplete, onMessage, onNewNodes, onReady, onRunEnd, onWidget, pictureUrl, recall, remember, run,
    setWidget, text, textsRead, widgetOf, workflowId,
} from "./frontend.js";
import { wordDiff, wordsOf } from "./word_diff.js";

const HEIGHT = 340;
const EDITS = "edited_prompts";
const SHOWN = 6; // Words at either end of a longer stretch that stayed the same.

addStyle(`
    .realisr-timeline { display: flex; flex-direction: column; overflow: hidden; }
    .realisr-timeline header { display: flex; align-items: center; gap: 6px; padding: 5px 8px; border-bottom: 1px solid var(--border-color); }
    .realisr-timeline header > span { flex: 1; }
    .realisr-timeline .next { background: color-mix(in srgb, #d9a032 18%, transparent); }
    .realisr-timeline ol { flex: 1; overflow: auto; margin: 0; padding: 0; list-style: none; }
    .realisr-timeline .stale { opacity: 0.5; }
    .realisr-timeline .empty { padding: 12px 8px; opacity: 0.7; }
    .realisr-timeline li { display: flex; gap: 8px; padding: 8px; border-bottom: 1px solid var(--border-color); }
    .realisr-timeline li.large { flex-direction: column; }
    .realisr-timeline .picture { flex: none; width: 72px; height: 72px; padding: 0; overflow: hidden; background: none; cursor: zoom-in; }
    .realisr-timeline .large .picture { width: 100%; height: auto; cursor: zoom-out; }
    .realisr-timeline img { display: block; width: 100%; height: 100%; object-fit: cover; }
    .realisr-timeline .round { flex: 1; min-width: 0; overflow-wrap: anywhere; }
    .realisr-timeline .facts { display: flex; align-items: baseline; gap: 8px; margin-bottom: 2px; }
    .realisr-timeline .end { display: flow-root; margin-top: 3px; }
    .realisr-timeline .end button { float: right; margin-left: 8px; }
    .realisr-timeline .facts b { flex: 1; }
    .realisr-timeline .facts small, .realisr-timeline .why { opacity: 0.7; }
    .realisr-timeline .why { font-style: italic; }
    .realisr-timeline ins { color: #4caf6e; text-decoration: underline; text-underline-offset: 2px; }
    .realisr-timeline del { color: #d9705f; text-decoration: line-through; }
    .realisr-timeline .more { padding: 0 4px; margin-right: 4px; line-height: 1; }
    .realisr-timeline textarea { display: block; box-sizing: border-box; width: 100%; height: 84px; resize: vertical; font: inherit; color: inherit; background: var(--comfy-menu-bg); border: 1px solid var(--border-color); border-radius: 4px; padding: 4px; }
    .realisr-timeline .editing { display: flex; flex-wrap: wrap; align-items: center; justify-content: flex-end; gap: 6px; margin-top: 4px; }
    .realisr-timeline .editing small { flex: 100%; opacity: 0.7; }
`);

// What loops told while this page is open, so that a run goes on being noted while another tab is in front.
const heard = new Map();
const keyOf = (workflow, node) => `${workflow ?? workflowId()}/${node}`;

onMessage(null, "realisr.timeline", (detail) => {
    const key = keyOf(detail.workflow, detail.node);
    heard.set(key, joined(heard.get(key), detail));
});
onRunEnd(null, () => {
    for (const told of heard.values()) if (told.state === "running") told.state = "ended";
});

/** What a message adds to what was told before. A loop that has just begun has no rows yet: those there are stale. */
function joined(known, { state, total, rows, fresh }) {
    if (!fresh && !rows.length) return { state, total, rows: known?.rows ?? [], stale: true, time: Date.now() };
    const told = (row) => rows.some(({ round, image }) => round === row.round && image === row.image);
    const before = fresh ? [] : (known?.rows ?? []).filter((row) => !told(row));
    return { state, total, rows: [...before, ...rows], time: Date.now() };
}

class Timeline {
    constructor(node) {
        this.node = node;
        this.box = addPanel(node, "timeline", HEIGHT, "realisr-timeline");
        hideWidget(node, EDITS);
        this.open = undefined; // The round whose prompt is being edited, and the field for it.
        this.large = new Set();
        onWidget(node, EDITS, () => this.draw());
        const ready = async () => {
            await textsRead();
            this.draw();
        };
        onReady(node, ready);
        onGraphComplete(node, ready);
    }

    get key() {
        return keyOf(undefined, executionIdOf(this.node));
    }

    /** The newer of what the file holds and what came since the page was opened. */
    get told() {
        const [saved, since] = [recall(this.node, "timeline"), heard.get(this.key)];
        return (since?.time ?? 0) > (saved?.time ?? 0) ? since : saved;
    }

    hear(told) {
        remember(this.node, "timeline", told);
        this.draw();
    }

    get edits() {
        try {
            return JSON.parse(widgetOf(this.node, EDITS)?.value || "{}");
        } catch {
            return {};
        }
    }

    draw() {
        const { state, total, rows = [], stale } = this.told ?? {};
        const running = state === "running" && heard.get(this.key)?.state === "running";
        const made = running && stale ? 0 : new Set(rows.map(({ round }) => round)).size;
        const list = this.box.querySelector("ol");
        const typing = this.open && document.activeElement === this.open.field;
        const atEnd = !list || list.scrollTop + list.clientHeight > list.scrollHeight - 8;
        const drawn = element("ol", { className: running && stale ? "stale" : "" }, ...rows.map((row) => this.row(row, rows)));
        if (!rows.length) drawn.append(element("li", { className: "empty", textContent: text("timeline.empty") }));
        this.box.replaceChildren(...this.heads(running, made, state, total, rows), drawn);
        if (typing) this.open.field.focus({ preventScroll: true });
        drawn.scrollTop = running && atEnd && !this.open ? drawn.scrollHeight : (list?.scrollTop ?? 0);
    }

    heads(running, made, state, total, rows) {
        const count = running && made < total ? "timeline.running" : state === "stopped" ? "timeline.stopped" : made ? "timeline.done" : "timeline.none";
        const stop = button(text(this.stopping ? "timeline.stopping" : "timeline.stop"), () => this.stop(), { disabled: !running || this.stopping || made + 1 >= total });
        const heads = [element("header", {}, element("span", { role: "status", textContent: text(count, { round: made + 1, made, total }) }), stop)];
        const edited = Object.keys(this.edits).map(Number).sort((a, b) => a - b);
        if (edited.length) {
            const waiting = edited.some((round) => rows.find((row) => row.round === round)?.prompt !== this.edits[round]);
            heads.push(element(
                "header", { className: "next" }, element("span", { textContent: text(edited.length > 1 ? "timeline.edits" : "timeline.edit", { rounds: edited.join(", ") }) }),
                waiting ? button(text("timeline.run"), run) : null, button(text("timeline.over"), () => setWidget(this.node, EDITS, ""), { title: text("timeline.over.why") }),
            ));
        }
        return heads;
    }

    row(row, rows) {
        const id = `${row.round}/${row.image}`;
        const before = rows.find(({ round, image }) => round === row.round - 1 && image === row.image);
        const title = text(row.images > 1 ? "timeline.round.image" : "timeline.round", { round: row.round, image: row.image });
        const facts = element("div", { className: "facts" }, element("b", { textContent: title }));
        if (row.drift !== null && row.drift !== undefined) facts.append(element("small", { textContent: text("timeline.drift", { drift: row.drift.toFixed(2) }), title: text("timeline.drift.why") }));
        if (row.seconds >= 0.1) facts.append(element("small", { textContent: text("timeline.seconds", { seconds: row.seconds.toFixed(1) }) }));
        const content = element("div", { className: "round" }, facts);
        if (this.open?.round === row.round && row.images === 1) {
            content.append(...this.open.elements);
        } else {
            content.append(element("div", { className: "prompt" }, ...(before ? this.difference(before.prompt, row.prompt) : [row.prompt])));
            const why = row.edited ? text("timeline.yours") : row.round === 1 ? text("timeline.initial") : row.reason || row.changes;
            const go = row.images === 1 ? button(text("timeline.continue"), () => this.edit(row), { title: text("timeline.continue.why", { next: row.round + 1 }) }) : null;
            content.append(element("div", { className: "end" }, go, element("span", { className: "why", textContent: why })));
        }
        const image = element("img", { src: pictureUrl(row.picture ?? {}), alt: title, onerror: ({ target }) => target.parentElement.replaceChildren() });
        const line = element("li", { className: this.large.has(id) ? "large" : "" });
        const enlarge = () => line.classList.toggle("large", !this.large.delete(id) && !!this.large.add(id));
        line.append(element("button", { type: "button", className: "picture", onclick: enlarge, "aria-label": text("timeline.picture", { title }) }, image), content);
        return line;
    }

    /** The prompt with its changes marked; of long stretches that stayed only the ends, until asked for. */
    difference(before, after) {
        return wordDiff(before, after).flatMap(({ kind, text: words }) => {
            const bare = words.trimEnd();
            if (kind !== "same") return [element(kind === "added" ? "ins" : "del", { textContent: bare }), words.slice(bare.length)];
            const all = wordsOf(words);
            if (all.length <= 3 * SHOWN) return [words];
            const hidden = all.slice(SHOWN, -SHOWN).join("");
            const more = button("…", () => more.replaceWith(hidden), { className: "more", title: text("timeline.more") });
            return [all.slice(0, SHOWN).join(""), more, all.slice(-SHOWN).join("")];
        });
    }

    edit(row) {
        const next = row.round + 1;
        const field = element("textarea", { value: this.edits[next] ?? row.prompt, "aria-label": text("timeline.prompt", { next }) });
        const use = button(text("timeline.use", { next }), () => this.use(next, field.value.trim()));
        const check = () => (use.disabled = !field.value.trim() || field.value.trim() === row.prompt.trim());
        const leave = () => {
            this.open = undefined;
            this.draw();
        };
        field.addEventListener("input", check);
        // The canvas takes no keys and no wheel that are meant for the text.
        for (const type of ["keydown", "wheel", "pointerdown"]) field.addEventListener(type, (event) => event.stopPropagation());
        check();
        const hint = element("small", { textContent: text("timeline.hint", { round: row.round, next }) });
        const buttons = element("div", { className: "editing" }, hint, button(text("timeline.cancel"), leave), use);
        this.open = { round: row.round, field, elements: [field, buttons] };
        this.draw();
        const line = field.closest("li");
        line.parentElement.scrollTop = line.offsetTop - line.parentElement.offsetTop;
        field.focus({ preventScroll: true });
    }

    /** From the next run on: rounds up to this one as they are, the one after it with this prompt. */
    use(next, prompt) {
        const before = Object.entries(this.edits).filter(([round]) => Number(round) < next);
        this.open = undefined;
        setWidget(this.node, "rounds", Math.max(widgetOf(this.node, "rounds").value, next));
        setWidget(this.node, EDITS, JSON.stringify({ ...Object.fromEntries(before), [next]: prompt }));
    }

    async stop() {
        this.stopping = true;
        this.draw();
        try {
            await ask("agent_loop/stop", { node: executionIdOf(this.node) });
        } catch {
            this.stopping = false; // The run has just ended by itself.
            this.draw();
        }
    }
}

onNewNodes("Timeline", ["RealISR_AgentRefinementLoop"], (node) => {
    const timeline = new Timeline(node);
    onMessage(node, "realisr.timeline", (detail) => {
        if (nodeOf(detail.node) !== node || (detail.workflow && detail.workflow !== workflowId())) return;
        if (detail.state !== "running") timeline.stopping = false;
        timeline.hear(heard.get(timeline.key));
    });
    onRunEnd(node, () => {
        timeline.stopping = false;
        timeline.draw();
    });
});

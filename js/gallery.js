// The candidates of NR-IQA Best-of-N Selector as cards: a click pins one in place of the scores' choice, two are compared.
import {
    addPanel, addStyle, button, element, hideWidget, onNewNodes, onReady, onWidget, pictureUrl, recall, remember, setWidget, text, textsRead, widgetOf,
} from "./frontend.js";
import { addMetricChoice } from "./metrics.js";
import { drawTables, onScores } from "./score_table.js";
import { makeSlider } from "./slider.js";

const HEIGHT = 340;
const WIDTH = 400;

addStyle(`
    .realisr-gallery { display: flex; flex-direction: column; overflow: hidden; }
    .realisr-gallery .bar { display: flex; flex-wrap: wrap; gap: 4px 6px; align-items: center; padding: 6px; }
    .realisr-gallery .bar .space { flex: 1; }
    .realisr-gallery .note { flex: 1; min-width: 60%; }
    .realisr-gallery .warn { color: #e8a33d; }
    .realisr-gallery [aria-pressed=true]:not(.card) { background: var(--primary-background, #2563a8); color: #fff; border-color: transparent; }
    .realisr-gallery .body { flex: 1; min-height: 0; overflow: auto; padding: 0 6px 6px; }
    .realisr-gallery h4 { margin: 6px 0 4px; font: inherit; opacity: 0.7; }
    .realisr-gallery .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 6px; }
    .realisr-gallery .card { display: block; padding: 4px; text-align: left; border-width: 2px; border-color: transparent; }
    .realisr-gallery .card.chosen { border-color: var(--primary-background, #2563a8); }
    .realisr-gallery .card.marked { border-color: #e8a33d; }
    .realisr-gallery .card.vetoed .picture { opacity: 0.45; }
    .realisr-gallery .picture { position: relative; display: grid; place-items: center; aspect-ratio: 4 / 3; overflow: hidden; border-radius: 3px; background: #0003; font-size: 28px; }
    .realisr-gallery .picture img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
    .realisr-gallery .line { display: flex; gap: 6px; align-items: baseline; white-space: nowrap; }
    .realisr-gallery .line b { flex: 1; }
    .realisr-gallery .star { color: #e8a33d; }
    .realisr-gallery .tag { padding: 0 5px; border-radius: 8px; background: var(--primary-background, #2563a8); color: #fff; font-size: 10px; }
    .realisr-gallery .card small { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 6px; font-size: 11px; opacity: 0.75; }
    .realisr-gallery .realisr-slider { height: 100%; }
`);

/** The widget's text as numbers; null where the scores choose. */
function pinsIn(value) {
    const parts = String(value ?? "").split(",").map((part) => part.trim());
    return parts.map((part) => (/^\d+$/.test(part) ? Number(part) : null));
}

function picture(row) {
    const file = row.pictures?.small;
    if (!file) return undefined;
    const image = element("img", { src: pictureUrl(file), alt: "", draggable: false });
    // Temporary pictures are gone after the server's restart: what is behind shows then.
    image.onerror = () => image.remove();
    return image;
}

class Gallery {
    constructor(node) {
        this.node = node;
        this.box = addPanel(node, "gallery", HEIGHT, "realisr-gallery");
        this.bar = element("div", { className: "bar" });
        this.body = element("div", { className: "body realisr-scores" });
        this.box.append(this.bar, this.body);
        // Enter and space press a card, and are no shortcuts of the canvas meanwhile.
        this.box.addEventListener("keydown", (event) => ["Enter", " "].includes(event.key) && event.stopPropagation());
        this.tables = [];
        this.order = {};
        this.marking = false;
        this.marked = [];
    }

    get sections() {
        return this.tables.flatMap(({ sections }) => sections);
    }

    show(tables) {
        this.tables = tables;
        this.marking = false;
        this.marked = [];
        this.draw();
    }

    async draw() {
        await textsRead();
        if (this.marked.length === 2) this.drawComparison();
        else this.drawOverview();
    }

    // --- pinning ---

    pins() {
        return pinsIn(widgetOf(this.node, "pinned")?.value);
    }

    pin(section, index) {
        const pins = this.sections.map((_, number) => this.pins()[number] ?? null);
        pins[section] = pins[section] === index ? null : index;
        this.write(pins);
    }

    write(pins) {
        const contents = pins.map((pin, number) => this.sections[number]?.rows[pin]?.content);
        remember(this.node, "pinned", contents);
        setWidget(this.node, "pinned", pins.some((pin) => pin !== null) ? pins.map((pin) => pin ?? "-").join(", ") : "");
        this.draw();
    }

    // --- overview ---

    drawOverview() {
        const table = recall(this.node, "view") === "table";
        const view = (name, on) => button(text(`gallery.${name}`), () => this.choose(name), { "aria-pressed": String(on) });
        const few = this.sections.every(({ rows }) => rows.length < 2);
        const compare = button(text("gallery.compare"), () => this.mark(), { "aria-pressed": String(this.marking), disabled: few, title: text("gallery.compare_how") });
        this.bar.replaceChildren(view("cards", !table), view("table", table), element("span", { className: "space" }), compare, ...this.notes());
        if (!this.sections.length) this.body.replaceChildren(element("p", {}, text("gallery.empty")));
        else if (table) drawTables(this.body, this.tables, this.order);
        else this.replaceCards(this.sections.flatMap((section, number) => this.drawCards(section, number)));
    }

    // The card that has the keyboard keeps it.
    replaceCards(cards) {
        const focused = this.body.contains(document.activeElement) && document.activeElement.dataset.candidate;
        this.body.replaceChildren(...cards);
        if (focused) [...this.body.querySelectorAll(".card")].find((card) => card.dataset.candidate === focused)?.focus({ preventScroll: true });
    }

    choose(view) {
        remember(this.node, "view", view);
        this.marking = false;
        this.marked = [];
        this.draw();
    }

    notes() {
        const note = (said, className = "note") => element("span", { className }, said);
        if (this.marking || this.marked.length) return [note(text("gallery.mark_two"))];
        const pins = this.pins();
        if (pins.every((pin) => pin === null)) return this.sections.length ? [note(text("gallery.scores_choose"))] : [];
        const known = recall(this.node, "pinned") ?? [];
        const rows = pins.map((pin, number) => this.sections[number]?.rows[pin]);
        const said = [note(text(rows.every((row, number) => pins[number] === null || row?.chosen) ? "gallery.pinned" : "gallery.pinned_next"))];
        // Other pictures have come than those that were looked at.
        const moved = rows.some((row, number) => row && known[number] && row.content !== known[number]);
        if (moved || (this.sections.length && rows.some((row, number) => pins[number] !== null && !row))) {
            said.push(note(text(moved ? "gallery.new_pictures" : "gallery.too_few"), "note warn"));
        }
        return [...said, button(text("gallery.unpin"), () => this.write(pins.map(() => null)))];
    }

    drawCards({ rows }, number) {
        const cards = element("div", { className: "cards" }, ...rows.map((row) => this.drawCard(row, number)));
        return this.sections.length > 1 ? [element("h4", {}, text("gallery.image", { n: number })), cards] : [cards];
    }

    drawCard(row, section) {
        const pin = this.pins()[section] ?? null;
        const pinned = pin === row.index;
        const marked = this.marked.some((each) => each.section === section && each.index === row.index);
        // Framed is what the next run hands on.
        const states = { chosen: pin === null ? row.best : pinned, vetoed: row.vetoed, marked };
        const line = element("span", { className: "line" }, element("b", {}, String(row.index)));
        if (row.best ?? row.chosen) line.append(element("span", { className: "star", title: text("gallery.star") }, "★"));
        if (pinned) line.append(element("span", { className: "tag" }, text("gallery.tag")));
        const figures = [text("gallery.sum", { sum: row.rank_sum }), text("gallery.mean", { mean: row.mean.toFixed(2) })];
        const drift = typeof row.drift === "number" ? text(row.vetoed ? "gallery.vetoed" : "gallery.drift", { drift: row.drift.toFixed(2) }) : undefined;
        return element(
            "button",
            {
                type: "button",
                className: ["card", ...Object.keys(states).filter((name) => states[name])].join(" "),
                title: row.prompt || text(pinned ? "gallery.unpin_card" : "gallery.pin_card"),
                "aria-pressed": String(pinned),
                "data-candidate": `${section}:${row.index}`,
                onclick: (event) => (this.marking || event.shiftKey ? this.mark(section, row.index) : this.pin(section, row.index)),
            },
            element("span", { className: "picture" }, String(row.index), picture(row)),
            line,
            element("small", {}, ...figures.map((figure) => element("span", {}, figure))),
            drift && element("small", {}, drift),
        );
    }

    // --- comparing ---

    /** Mark a candidate for the comparison, or take the mark off; without one begin or give up marking. */
    mark(section, index) {
        if (index === undefined) {
            this.marking = !this.marking;
            this.marked = [];
            if (this.marking) remember(this.node, "view", "cards");
        } else {
            const others = this.marked.filter((each) => each.index !== index || each.section !== section);
            // Pictures of one image are compared.
            if (others.length === this.marked.length) others.push({ section, index });
            this.marked = others.filter((each) => each.section === section);
        }
        this.draw();
    }

    drawComparison() {
        const [a, b] = this.marked.map(({ section, index }) => this.sections[section].rows[index]);
        const section = this.marked[0].section;
        const back = () => {
            this.marking = false;
            this.marked = [];
            this.draw();
        };
        const choose = (row) => {
            const pinned = this.pins()[section] === row.index;
            return button(text(pinned ? "gallery.unpin_n" : "gallery.pin_n", { n: row.index }), () => this.pin(section, row.index), { "aria-pressed": String(pinned) });
        };
        const space = () => element("span", { className: "space" });
        this.bar.replaceChildren(button(text("gallery.back"), back), space(), choose(a), element("span", {}, "◂ ▸"), choose(b));
        const pair = `${a.content} ${b.content}`;
        if (this.body.firstChild?.pair === pair) return;
        const gone = () => this.body.replaceChildren(element("p", {}, text("gallery.gone")));
        const slider = makeSlider(text("gallery.slide"), gone);
        slider.element.pair = pair;
        this.body.replaceChildren(slider.element);
        const sides = [a, b].map((row) => row.pictures?.large && { url: pictureUrl(row.pictures.large), label: String(row.index) });
        if (sides.every(Boolean)) slider.show(...sides);
        else gone();
    }
}

onNewNodes("Gallery", ["RealISR_NRIQABestOfN"], (node) => {
    hideWidget(node, "pinned");
    addMetricChoice(node);
    const gallery = new Gallery(node);
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);
    onWidget(node, "pinned", () => gallery.draw());
    onReady(node, () => {
        // Files from before there was this widget have something else in its place.
        const widget = widgetOf(node, "pinned");
        if (widget && typeof widget.value !== "string") widget.value = "";
    });
    onScores(node, (tables) => gallery.show(tables));
});

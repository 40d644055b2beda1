// Edit Patch Prompts: the photo with its tiles, and under it the prompt of those that are chosen. The node's text widget
// holds what was written; every other tile has its caption, which comes with the node's `tile_editor` output.
import {
    addPanel, addStyle, button, changed, element, hideWidget, isLinked, onMessage, onNewNodes, onOutput, onReady, onRemoved,
    onResize, onWidget, pictureUrl, recall, remember, run, setWidget, sourceOf, text, textsRead, widgetOf,
} from "./frontend.js";
import { COLOURS, TileMap } from "./tile_map.js";
import { gridOf, placeOf, readPrompts, writePrompts } from "./tile_text.js";

const EDITOR = "RealISR_EditPatchPrompts";
const CAPTIONER = "RealISR_PatchPromptCaptioner";
const DATA = "tile_editor";
const BASES = "captions_edited";
const HEIGHT = 540;
const WIDTH = 500;
const WHOLE = 0;
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

addStyle(`
    .realisr-tiles { display: flex; flex-direction: column; gap: 6px; padding: 6px; overflow: hidden; }
    .realisr-tiles .line { display: flex; gap: 6px; align-items: center; min-height: 22px; }
    .realisr-tiles .line > :first-child { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
    .realisr-tiles button { white-space: nowrap; }
    .realisr-tiles button[aria-pressed="true"] { border-color: #4fa8ff; box-shadow: inset 0 0 0 1px #4fa8ff; }
    .realisr-tiles .count::before { content: ""; display: inline-block; width: 9px; height: 9px; margin: 0 4px 0 0; border-radius: 2px; background: var(--colour); box-shadow: 0 0 0 1px #0008; }
    .realisr-tiles .count { margin-right: 10px; }
    .realisr-tiles .stage { position: relative; flex: 1; min-height: 0; border-radius: 4px; outline-offset: 2px; background: #0003; }
    .realisr-tiles .stage:focus-visible { outline: 2px solid #4fa8ff; }
    .realisr-tiles canvas { position: absolute; inset: 0; width: 100%; height: 100%; cursor: pointer; }
    .realisr-tiles .hint { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center; pointer-events: none; }
    .realisr-tiles .hint span { background: #000c; color: #fff; border-radius: 4px; padding: 3px 8px; }
    .realisr-tiles textarea { height: 92px; flex: none; box-sizing: border-box; width: 100%; resize: none; font: inherit; color: inherit; background: var(--comfy-menu-bg); border: 1px solid var(--border-color); border-radius: 4px; padding: 4px 6px; }
    .realisr-tiles textarea:focus { border-color: #4fa8ff; outline: none; }
    .realisr-tiles .below { font-style: italic; opacity: 0.8; }
    .realisr-tiles .as-text { flex: 1; font-family: monospace; white-space: pre-wrap; }
    .realisr-tiles .mark { color: #4fa8ff; }
    .realisr-tiles [hidden] { display: none; }
`);

class TileEditor {
    constructor(node) {
        this.node = node;
        this.chosen = new Set([1]);
        this.anchor = this.current = 1;
        this.pending = new Map();
        hideWidget(node, "text");
        const box = addPanel(node, "tile_editor", HEIGHT, "realisr-tiles");
        node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);
        this.counts = element("div");
        this.whole = button("", () => this.choose(WHOLE));
        this.asText = button("", () => this.showText(this.written.hidden));
        this.canvas = element("canvas", { "aria-hidden": "true" });
        this.hint = element("div", { className: "hint" });
        this.stage = element("div", { className: "stage", tabIndex: 0, role: "application" }, this.canvas, this.hint);
        this.told = element("div", { role: "status" });
        this.prompt = element("textarea", { spellcheck: false });
        this.below = element("div", { className: "below" });
        this.revert = button("", () => this.write(undefined));
        this.keep = button("", () => this.keepEdits());
        this.again = button("", () => this.captionAgain());
        this.upToHere = button("", () => run(node));
        this.parts = [
            this.stage, element("div", { className: "line" }, this.told, this.whole), this.prompt,
            element("div", { className: "line" }, this.below, this.keep, this.revert, this.again),
        ];
        this.written = element("textarea", { className: "as-text", spellcheck: false, hidden: true });
        box.append(element("div", { className: "line" }, this.counts, this.asText, this.upToHere), ...this.parts, this.written);
        this.map = new TileMap(this.canvas);
        this.hear();
        textsRead().then(() => this.label());
    }

    label() {
        for (const [part, key] of [
            [this.whole, "whole"], [this.asText, "as_text"], [this.revert, "revert"], [this.keep, "keep"], [this.upToHere, "run"],
        ]) part.textContent = text(`tiles.${key}`);
        this.upToHere.title = text("tiles.run_told");
        this.keep.title = text("tiles.keep_told");
        this.stage.setAttribute("aria-label", text("tiles.stage"));
        this.prompt.setAttribute("aria-label", text("tiles.prompt"));
        this.written.setAttribute("aria-label", text("tiles.as_text"));
        this.show();
    }

    hear() {
        const { node, canvas, stage, prompt, written } = this;
        canvas.onpointermove = (event) => this.hover(this.map.at(event.offsetX, event.offsetY));
        canvas.onpointerleave = () => this.hover(undefined);
        canvas.onpointerdown = (event) => {
            if (event.button) return;
            event.stopPropagation();
            event.preventDefault();
            stage.focus({ preventScroll: true });
            const number = this.map.at(event.offsetX, event.offsetY);
            if (number) this.choose(number, event.shiftKey, event.ctrlKey || event.metaKey);
        };
        canvas.ondblclick = () => prompt.focus();
        stage.onkeydown = (event) => this.key(event);
        prompt.oninput = () => this.write(prompt.value, true);
        written.oninput = () => setWidget(node, "text", written.value, true);
        for (const area of [prompt, written]) {
            area.onchange = changed;
            area.onwheel = (event) => area.scrollHeight > area.clientHeight && event.stopPropagation();
            area.onkeydown = (event) => {
                if (event.key !== "Escape") return;
                event.stopPropagation();
                (area === prompt ? stage : this.asText).focus();
            };
        }
        onWidget(node, "text", () => this.show());
        onResize(node, canvas, () => this.lay());
        for (const type of ["execution_error", "execution_interrupted", "execution_success"]) {
            onMessage(node, type, () => this.waitNoMore());
        }
        onRemoved(node, () => this.load(undefined));
        onOutput(node, ({ [DATA]: outputs }) => outputs && this.take(outputs[0]));
        onReady(node, () => this.restore());
    }

    // --- what is there ---

    take(data) {
        const { text: whole, ...kept } = data;
        remember(this.node, DATA, isLinked(this.node, "text") ? data : kept);
        for (const [number, before] of this.pending) {
            if (this.captionOf(number) === before) this.same = true;
        }
        this.pending.clear();
        this.restore();
    }

    restore() {
        hideWidget(this.node, "text", !isLinked(this.node, "text"));
        this.load(this.data.picture);
        this.lay();
    }

    load(file) {
        const address = file && pictureUrl(file);
        if (this.address === address) return;
        this.address = address;
        this.picture = undefined;
        if (!address) return;
        const picture = new Image();
        picture.onload = () => {
            if (this.address !== address) return;
            this.picture = picture;
            this.lay();
        };
        picture.src = address;
    }

    get data() {
        return recall(this.node, DATA) ?? {};
    }

    /** Where the tiles are; a text that was never run tells how many there are. */
    get grid() {
        return this.data.columns ? this.data : gridOf(this.text);
    }

    get text() {
        return (isLinked(this.node, "text") ? this.data.text : widgetOf(this.node, "text").value) ?? "";
    }

    captionOf(number) {
        const { captions } = this.data;
        return number === WHOLE ? captions?.whole : captions?.tiles[number - 1];
    }

    /** prompt: what counts. state: see COLOURS. changed: another caption has come since the tile was edited. */
    tile(number, written = readPrompts(this.text)) {
        const caption = this.captionOf(number);
        const own = written.get(number);
        const prompt = own ?? caption ?? "";
        const edited = own !== undefined && own !== caption;
        const base = recall(this.node, BASES)?.[number];
        const reason = this.data.captions?.failed[number];
        let state = "captioned";
        if (edited) state = "edited";
        else if (reason !== undefined) state = "failed";
        if (!prompt) state = "empty";
        return { prompt, caption, reason, state, changed: edited && base !== undefined && base !== caption };
    }

    // --- drawing ---

    lay() {
        this.map.lay(this.grid, this.picture);
        this.show();
    }

    show() {
        const written = readPrompts(this.text);
        const count = this.count;
        this.tiles = Array.from({ length: count + 1 }, (_, number) => this.tile(number, written));
        const numbers = [...this.chosen].filter((number) => number <= count);
        this.chosen = new Set(numbers.length ? numbers : [Math.min(1, count)]);
        this.showCounts();
        this.showChosen();
        this.draw();
        if (document.activeElement !== this.written) this.written.value = this.text;
    }

    get count() {
        return this.grid ? this.grid.rows.length * this.grid.columns.length : 0;
    }

    draw() {
        const full = new Set([this.hovered, this.chosen.has(this.current) && this.current].filter((number) => number && number <= this.count));
        this.map.draw((number) => this.tiles[number], this.chosen, full);
    }

    showCounts() {
        const counts = Object.keys(COLOURS).map((state) => [state, this.tiles.slice(1).filter((tile) => tile.state === state).length]);
        this.counts.replaceChildren(
            ...counts.filter(([, count]) => count).map(([state, count]) =>
                element("span", { className: "count", style: `--colour: ${COLOURS[state]}` }, text(`tiles.${state}`, { n: count }))),
        );
        let hint = "";
        if (!this.grid) hint = "nothing";
        else if (!this.picture) hint = this.data.columns && !this.data.picture ? "no_image" : "no_picture";
        this.hint.replaceChildren(...(hint ? [element("span", {}, text(`tiles.${hint}`))] : []));
    }

    showChosen() {
        const numbers = [...this.chosen];
        const tiles = numbers.map((number) => this.tiles[number]);
        const alike = tiles.every(({ prompt }) => prompt === tiles[0].prompt);
        const [only] = tiles.length === 1 ? tiles : [];
        const linked = isLinked(this.node, "text");
        const said = [this.nameOf(numbers)];
        if (only?.reason && only.state !== "edited") said.push(text("tiles.failed_told", { reason: only.reason }));
        if (this.pending.size) said.push(text("tiles.asking"));
        else if (this.same) said.push(text("tiles.same"));
        if (linked) said.push(text("tiles.linked"));
        this.told.replaceChildren(said.join(" · "));
        this.told.title = said.join("\n");
        this.whole.setAttribute("aria-pressed", this.chosen.has(WHOLE));
        if (document.activeElement !== this.prompt) this.prompt.value = alike ? tiles[0].prompt : "";
        this.prompt.placeholder = text(alike ? "tiles.write" : "tiles.different");
        this.prompt.disabled = linked;
        const news = tiles.some((tile) => tile.changed);
        const edited = tiles.some(({ state, prompt, caption }) => caption !== undefined && (state === "edited" || prompt !== caption));
        this.below.replaceChildren(
            ...(news ? [element("span", { className: "mark" }, `● ${text("tiles.changed")} `)] : []),
            ...(only && edited ? [only.caption] : []),
        );
        this.below.title = only && edited ? only.caption : "";
        this.keep.hidden = !news;
        this.revert.hidden = !edited;
        for (const part of [this.revert, this.keep]) part.disabled = linked;
        this.again.textContent = text(tiles.length > 1 ? "tiles.again_several" : "tiles.again", { n: tiles.length });
        this.again.disabled = !this.data.captions || this.pending.size > 0;
        this.again.title = this.data.captions ? "" : text("tiles.no_captioner");
    }

    nameOf(numbers) {
        if (!this.count && !this.chosen.has(WHOLE)) return "";
        if (numbers.length > 1) return text("tiles.several", { n: numbers.length });
        if (numbers[0] === WHOLE) return text("tiles.whole");
        return text("tiles.one", { n: numbers[0], ...placeOf(numbers[0], this.grid.columns.length) });
    }

    showText(on) {
        this.written.hidden = !on;
        this.written.disabled = isLinked(this.node, "text");
        for (const part of this.parts) part.hidden = on;
        this.asText.setAttribute("aria-pressed", on);
        if (on) this.written.focus();
        else this.lay();
    }

    // --- choosing ---

    hover(number) {
        if (this.hovered === number) return;
        this.hovered = number;
        this.draw();
    }

    /** extend: all tiles between the last one chosen without it and this one. toggle: this one too, or no more. */
    choose(number, extend = false, toggle = false) {
        if (this.prompt === document.activeElement) this.prompt.blur();
        if (extend && number && this.anchor) this.chosen = new Set(this.between(this.anchor, number));
        else if (toggle && this.chosen.has(number) && this.chosen.size > 1) this.chosen.delete(number);
        else {
            this.chosen = new Set(toggle ? [...this.chosen, number] : [number]);
            this.anchor = number;
        }
        this.current = number;
        this.same = false;
        this.showChosen();
        this.draw();
    }

    between(one, other) {
        const columns = this.grid.columns.length;
        const places = [placeOf(one, columns), placeOf(other, columns)];
        const [first, last] = ["row", "column"].map((axis) => places.map((place) => place[axis]).sort((a, b) => a - b))
            .reduce((rows, cols) => [[rows[0], cols[0]], [rows[1], cols[1]]]);
        const numbers = [];
        for (let row = first[0]; row <= last[0]; row++) {
            for (let column = first[1]; column <= last[1]; column++) numbers.push((row - 1) * columns + column);
        }
        return numbers;
    }

    key(event) {
        const { key, shiftKey, ctrlKey, metaKey, altKey } = event;
        const step = STEPS[key];
        if (altKey || ((ctrlKey || metaKey) && key !== "a")) return;
        if (key === "Tab") return;
        // Keys that the canvas would take: Delete must not delete the node.
        event.stopPropagation();
        if (!this.grid) return;
        if (step) {
            const columns = this.grid.columns.length;
            const { row, column } = placeOf(this.current || 1, columns);
            const to = [row + step[0], column + step[1]];
            if (to[0] >= 1 && to[0] <= this.grid.rows.length && to[1] >= 1 && to[1] <= columns) {
                this.choose((to[0] - 1) * columns + to[1], shiftKey);
            }
        } else if (key === "Home") this.choose(1, shiftKey);
        else if (key === "End") this.choose(this.count, shiftKey);
        else if (key === "a" && (ctrlKey || metaKey)) {
            this.choose(1);
            this.choose(this.count, true);
        } else if (key === "Enter" || key === "F2") this.prompt.focus();
        else return;
        event.preventDefault();
    }

    // --- editing ---

    /** Give all chosen tiles a prompt, or with undefined their captions. */
    write(prompt, typing = false) {
        const prompts = new Map();
        const bases = { ...recall(this.node, BASES) };
        for (const number of this.chosen) {
            const caption = this.captionOf(number);
            // What equals the caption is no edit: it follows the caption.
            const own = prompt !== undefined && prompt.trim() !== caption;
            prompts.set(number, own ? prompt : undefined);
            if (own && caption !== undefined) bases[number] = caption;
            else delete bases[number];
        }
        remember(this.node, BASES, bases);
        this.same = false;
        if (!typing) this.prompt.blur();
        setWidget(this.node, "text", writePrompts(this.text, prompts, this.grid?.columns.length ?? 1), typing);
        this.show();
    }

    /** No mark any more: what is written counts, whatever caption is below. */
    keepEdits() {
        const bases = { ...recall(this.node, BASES) };
        for (const number of this.chosen) if (number in bases) bases[number] = this.captionOf(number);
        remember(this.node, BASES, bases);
        changed();
        this.show();
    }

    async captionAgain() {
        const captioner = await sourceOf(this.node, "captions");
        if (captioner?.comfyClass !== CAPTIONER) {
            this.told.replaceChildren(text("tiles.no_captioner"));
            return;
        }
        const times = new Map(String(widgetOf(captioner, "ask_again").value).split(",").filter((part) => part.trim())
            .map((part) => part.split(":").map(Number)));
        this.same = false;
        for (const number of this.chosen) {
            times.set(number, (times.get(number) || 0) + 1);
            this.pending.set(number, this.captionOf(number));
        }
        setWidget(captioner, "ask_again", [...times].map((each) => each.join(":")).join(", "));
        this.showChosen();
        await run(this.node);
    }

    waitNoMore() {
        if (!this.pending.size) return;
        this.pending.clear();
        this.showChosen();
    }
}

onNewNodes("TileEditor", [EDITOR], (node) => new TileEditor(node));
onNewNodes("TilesAskedAgain", [CAPTIONER], (node) => hideWidget(node, "ask_again"));

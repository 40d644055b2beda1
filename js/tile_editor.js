// Edit Patch Prompts: the photo with its tiles, and under it the prompt of those that are chosen. The node's text widget
// holds what was written; every other tile has its caption, which comes with the node's `tile_editor` output.
import {
  addPanel, button, changed, element, hideWidget, isLinked, keepFromCanvas, onNewNodes, onOutput, onReady,
  onResize, onRunEnd, onWidget, pictureUrl, recall, remember, run, setWidget, sourceOf, text, widgetOf,
} from "./frontend.js";
import { COLOURS, TileMap } from "./tile_map.js";
import { placeOf, readPrompts, writePrompts } from "./tile_text.js";

const CAPTIONER = "RealISR_PatchPromptCaptioner";
const DATA = "tile_editor";
const [HEIGHT, WIDTH] = [540, 500];
const WHOLE = 0;
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

class TileEditor {
  constructor(node) {
    this.node = node;
    this.chosen = new Set([1]);
    this.anchor = this.current = 1;
    const told = (key) => ({ "aria-label": text(`tiles.${key}`) });
    this.counts = element("div");
    this.whole = button(text("tiles.whole"), () => this.choose(WHOLE));
    this.asText = button(text("tiles.as_text"), () => this.showText(this.written.hidden));
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.hint = element("div.hint");
    this.stage = element("div.stage", { tabIndex: 0, role: "application", ...told("stage") }, this.canvas, this.hint);
    this.told = element("div", { role: "status" });
    this.prompt = element("textarea", { spellcheck: false, ...told("prompt") });
    this.below = element("div.below");
    this.revert = button(text("tiles.revert"), () => this.write(undefined));
    this.again = button("", () => this.captionAgain());
    this.written = element("textarea.as-text", { spellcheck: false, hidden: true, ...told("as_text") });
    const upToHere = button(text("tiles.run"), () => run(node), { title: text("tiles.run_told") });
    this.parts = [
      this.stage, element("div.line", this.told, this.whole), this.prompt,
      element("div.line", this.below, this.revert, this.again),
    ];
    const box = addPanel(node, "tiles", HEIGHT, WIDTH);
    box.append(element("div.line", this.counts, this.asText, upToHere), ...this.parts, this.written);
    this.map = new TileMap(this.canvas);
    this.hear();
  }

  hear() {
    const { node, canvas, stage, prompt, written } = this;
    canvas.onpointermove = ({ offsetX, offsetY }) => this.hover(this.map.at(offsetX, offsetY));
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
      area.onkeydown = ({ key }) => void (key === "Escape" && (area === prompt ? stage : this.asText).focus());
      keepFromCanvas(area, "keydown");
    }
    onWidget(node, "text", () => this.show());
    onResize(node, canvas, () => this.lay());
    onRunEnd(node, () => this.wait(false));
    onOutput(node, ({ [DATA]: outputs }) => outputs && this.take(outputs[0]));
    onReady(node, () => this.restore());
  }

  take({ text: whole, ...data }) {
    remember(this.node, DATA, isLinked(this.node, "text") ? { ...data, text: whole } : data);
    this.asking = false;
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
    this.picture = file && element("img", { src: address, onload: () => this.lay() });
  }

  get data() {
    return recall(this.node, DATA) ?? {};
  }

  get text() {
    return (isLinked(this.node, "text") ? this.data.text : widgetOf(this.node, "text").value) ?? "";
  }

  get columns() {
    return this.data.columns?.length ?? 0;
  }

  get count() {
    return this.columns && this.columns * this.data.rows.length;
  }

  captionOf(number) {
    const { captions } = this.data;
    return number === WHOLE ? captions?.whole : captions?.tiles[number - 1];
  }

  tile(number, own) {
    const caption = this.captionOf(number);
    const prompt = own ?? caption ?? "";
    const edited = own !== undefined && own !== caption;
    const reason = edited ? undefined : this.data.captions?.failed[number];
    const state = !prompt ? "empty" : edited ? "edited" : reason === undefined ? "captioned" : "failed";
    return { prompt, caption, reason, state, edited };
  }

  lay() {
    this.map.lay(this.data.size && this.data, this.picture);
    this.show();
  }

  show() {
    const { count } = this;
    const written = readPrompts(this.text);
    this.tiles = Array.from({ length: count + 1 }, (_, number) => this.tile(number, written.get(number)));
    const numbers = [...this.chosen].filter((number) => number <= count);
    this.chosen = new Set(numbers.length ? numbers : [Math.min(1, count)]);
    this.showCounts();
    this.showChosen();
    this.draw();
    if (document.activeElement !== this.written) this.written.value = this.text;
  }

  draw() {
    const full = [this.hovered, this.chosen.has(this.current) && this.current].filter((number) => number && number <= this.count);
    this.map.draw(this.tiles.map(({ state }) => state), this.chosen, new Set(full));
  }

  showCounts() {
    const states = this.tiles.slice(1).map(({ state }) => state);
    const shown = Object.entries(COLOURS).map(([state, colour]) => {
      const n = states.filter((each) => each === state).length;
      return n > 0 && element("span.count", { style: `--colour: ${colour}` }, text(`tiles.${state}`, { n }));
    });
    this.counts.replaceChildren(...shown.filter(Boolean));
    const missing = !this.columns ? "nothing" : !this.data.size ? "around" : this.data.picture ? "no_picture" : "no_image";
    this.hint.replaceChildren(...(this.picture?.naturalWidth ? [] : [element("span", text(`tiles.${missing}`))]));
  }

  showChosen() {
    const numbers = [...this.chosen];
    const tiles = numbers.map((number) => this.tiles[number]);
    const [first] = tiles;
    const only = tiles.length === 1;
    const alike = tiles.every(({ prompt }) => prompt === first.prompt);
    const linked = isLinked(this.node, "text");
    const said = [this.nameOf(numbers)];
    if (only && first.reason) said.push(text("tiles.failed_told", { reason: first.reason }));
    if (this.asking) said.push(text("tiles.asking"));
    if (linked) said.push(text("tiles.linked"));
    this.told.replaceChildren(said.join(" · "));
    this.told.title = said.join("\n");
    this.whole.setAttribute("aria-pressed", this.chosen.has(WHOLE));
    if (document.activeElement !== this.prompt) this.prompt.value = alike ? first.prompt : "";
    this.prompt.placeholder = text(alike ? "tiles.write" : "tiles.different");
    this.prompt.disabled = this.revert.disabled = linked;
    const edited = tiles.some((tile) => tile.edited && tile.caption !== undefined);
    this.revert.hidden = !edited;
    this.below.title = only && edited ? text("tiles.caption", first) : "";
    this.below.replaceChildren(this.below.title);
    this.again.textContent = text(only ? "tiles.again" : "tiles.again_several", { n: tiles.length });
    this.again.disabled = !this.data.captions || this.asking;
    this.again.title = this.data.captions ? "" : text("tiles.no_captioner");
  }

  nameOf(numbers) {
    const [n] = numbers;
    if (numbers.length > 1) return text("tiles.several", { n: numbers.length });
    if (n === WHOLE) return text("tiles.whole");
    return text("tiles.one", { n, ...placeOf(n, this.columns) });
  }

  showText(on) {
    this.written.hidden = !on;
    this.written.disabled = isLinked(this.node, "text");
    for (const part of this.parts) part.hidden = on;
    this.asText.setAttribute("aria-pressed", on);
    if (on) this.written.focus();
    else this.lay();
  }

  hover(number) {
    if (this.hovered === number) return;
    this.hovered = number;
    this.draw();
  }

  /** extend: all tiles between the last one chosen without it and this one. toggle: this one too, or no more. */
  choose(number, extend = false, toggle = false) {
    this.prompt.blur();
    if (extend && number && this.anchor) this.chosen = new Set(this.between(this.anchor, number));
    else if (toggle && this.chosen.has(number) && this.chosen.size > 1) this.chosen.delete(number);
    else {
      this.chosen = new Set(toggle ? [...this.chosen, number] : [number]);
      this.anchor = number;
    }
    this.current = number;
    this.showChosen();
    this.draw();
  }

  /** All tiles of the rectangle of which these are two corners. */
  between(...corners) {
    const places = corners.map((number) => placeOf(number, this.columns));
    const [rows, columns] = ["row", "column"].map((axis) => places.map((place) => place[axis]).sort((a, b) => a - b));
    const isWithin = (at, [first, last]) => at >= first && at <= last;
    return [...this.tiles.keys()].slice(1).filter((number) => {
      const { row, column } = placeOf(number, this.columns);
      return isWithin(row, rows) && isWithin(column, columns);
    });
  }

  key(event) {
    const { key, shiftKey } = event;
    const command = event.ctrlKey || event.metaKey;
    if (event.altKey || key === "Tab" || (command && key !== "a")) return;
    // Keys that the canvas would take: Delete must not delete the node.
    event.stopPropagation();
    if (!this.count) return;
    if (STEPS[key]) this.step(...STEPS[key], shiftKey);
    else if (key === "Home") this.choose(1, shiftKey);
    else if (key === "End") this.choose(this.count, shiftKey);
    else if (command) {
      this.choose(1);
      this.choose(this.count, true);
    } else if (key === "Enter" || key === "F2") this.prompt.focus();
    else return;
    event.preventDefault();
  }

  step(down, right, extend) {
    const { columns } = this;
    const { row, column } = placeOf(this.current || 1, columns);
    const number = (row + down - 1) * columns + column + right;
    if (column + right >= 1 && column + right <= columns && number >= 1 && number <= this.count) this.choose(number, extend);
  }

  /** For all chosen tiles; undefined: their captions. */
  write(prompt, typing = false) {
    // What equals the caption is no edit: it follows the caption.
    const own = (number) => (prompt?.trim() === this.captionOf(number) ? undefined : prompt);
    const prompts = new Map([...this.chosen].map((number) => [number, own(number)]));
    if (!typing) this.prompt.blur();
    setWidget(this.node, "text", writePrompts(this.text, prompts, this.columns || 1), typing);
    this.show();
  }

  async captionAgain() {
    const captioner = sourceOf(this.node, "captions");
    if (captioner?.comfyClass !== CAPTIONER) return this.told.replaceChildren(text("tiles.no_captioner"));
    const { value } = widgetOf(captioner, "ask_again");
    const times = new Map(value.split(",").filter((part) => part.trim()).map((part) => part.split(":").map(Number)));
    for (const number of this.chosen) times.set(number, (times.get(number) || 0) + 1);
    setWidget(captioner, "ask_again", [...times].map((each) => each.join(":")).join(", "));
    this.wait(true);
    await run(this.node);
  }

  wait(asking) {
    this.asking = asking;
    this.showChosen();
  }
}

onNewNodes(["RealISR_EditPatchPrompts"], (node) => {
  hideWidget(node, "text");
  new TileEditor(node);
});
onNewNodes([CAPTIONER], (node) => hideWidget(node, "ask_again"));

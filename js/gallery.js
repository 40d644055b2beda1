// The candidates of NR-IQA Best-of-N Selector as cards: a click pins one in place of the scores' choice, two are compared.
import {
  addPanel, button, element, hideWidget, onNewNodes, onReady, onWidget, picture, pictureUrl, recall, remember,
  setWidget, text, widgetOf,
} from "./frontend.js";
import { addMetricChoice } from "./metrics.js";
import { drawTables, onScores } from "./score_table.js";
import { makeSlider } from "./slider.js";

const [HEIGHT, WIDTH] = [340, 400];

class Gallery {
  constructor(node) {
    this.node = node;
    this.bar = element("div.bar");
    this.body = element("div.body.realisr-scores");
    const box = addPanel(node, "gallery", HEIGHT, WIDTH);
    box.append(this.bar, this.body);
    // Enter and space press a card, and are no shortcuts of the canvas meanwhile.
    box.onkeydown = (event) => void (["Enter", " "].includes(event.key) && event.stopPropagation());
    this.order = {};
    this.show([]);
  }

  show(tables) {
    this.tables = tables;
    this.sections = tables.flatMap(({ sections }) => sections);
    this.mark(false);
  }

  /** The candidate pinned of each image; null where the scores choose. */
  get pins() {
    const parts = String(widgetOf(this.node, "pinned")?.value).split(",").map((part) => part.trim());
    return this.sections.map((_, number) => (/^\d+$/.test(parts[number]) ? Number(parts[number]) : null));
  }

  pin(section, index) {
    const { pins } = this;
    pins[section] = pins[section] === index ? null : index;
    this.write(pins);
  }

  write(pins) {
    remember(this.node, "pinned", pins.map((pin, number) => this.sections[number].rows[pin]?.content));
    setWidget(this.node, "pinned", pins.some((pin) => pin !== null) ? pins.map((pin) => pin ?? "-").join(", ") : "");
    this.draw();
  }

  draw() {
    if (this.marked.length === 2) this.drawComparison();
    else this.drawOverview();
  }

  drawOverview() {
    const table = recall(this.node, "view") === "table" && !this.marking;
    const view = (name) => button(text(`gallery.${name}`), () => this.view(name), { "aria-pressed": table === (name === "table") });
    const compare = button(text("gallery.compare"), () => this.mark(!this.marking), {
      "aria-pressed": this.marking,
      disabled: this.sections.every(({ rows }) => rows.length < 2),
      title: text("gallery.compare_how"),
    });
    this.bar.replaceChildren(view("cards"), view("table"), element("span.space"), compare, ...this.notes());
    if (!this.sections.length) this.body.replaceChildren(element("p", text("gallery.empty")));
    else if (table) drawTables(this.body, this.tables, this.order);
    else this.drawCards();
  }

  view(name) {
    remember(this.node, "view", name);
    this.mark(false);
  }

  notes() {
    const note = (key, warn) => element(warn ? "span.note.warn" : "span.note", text(`gallery.${key}`));
    const { pins, sections } = this;
    if (this.marking || this.marked.length) return [note("mark_two")];
    if (pins.every((pin) => pin === null)) return sections.length ? [note("scores_choose")] : [];
    const known = recall(this.node, "pinned") ?? [];
    const rows = pins.map((pin, number) => sections[number].rows[pin]);
    const done = rows.every((row, number) => pins[number] === null || row?.chosen);
    // Other pictures have come than those that were looked at.
    const moved = rows.some((row, number) => row && known[number] && row.content !== known[number]);
    const few = rows.some((row, number) => pins[number] !== null && !row);
    const warning = moved ? "new_pictures" : few && "too_few";
    const unpin = button(text("gallery.unpin"), () => this.write(pins.map(() => null)));
    return [note(done ? "pinned" : "pinned_next"), ...(warning ? [note(warning, true)] : []), unpin];
  }

  drawCards() {
    // The card that has the keyboard keeps it.
    const focused = this.body.contains(document.activeElement) && document.activeElement.dataset.candidate;
    const drawn = this.sections.flatMap(({ rows }, n) => [
      ...(this.sections.length > 1 ? [element("h4", text("gallery.image", { n }))] : []),
      element("div.cards", rows.map((row) => this.card(row, n))),
    ]);
    this.body.replaceChildren(...drawn);
    if (focused) this.body.querySelector(`[data-candidate="${focused}"]`)?.focus({ preventScroll: true });
  }

  card(row, section) {
    const { index, drift, vetoed } = row;
    const best = row.best ?? row.chosen;
    const pin = this.pins[section];
    const pinned = pin === index;
    const marked = this.marked.some((each) => each.section === section && each.index === index);
    // Framed is what the next run hands on.
    const states = { chosen: pin === null ? row.best : pinned, vetoed, marked };
    const drifted = typeof drift === "number" && text(vetoed ? "gallery.vetoed" : "gallery.drift", { drift: drift.toFixed(2) });
    const figures = [text("gallery.sum", { sum: row.rank_sum }), text("gallery.mean", { mean: row.mean.toFixed(2) })];
    const card = button("", ({ shiftKey }) => (this.marking || shiftKey ? this.toggle(section, index) : this.pin(section, index)), {
      className: ["card", ...Object.keys(states).filter((name) => states[name])].join(" "),
      title: row.prompt || text(pinned ? "gallery.unpin_card" : "gallery.pin_card"),
      "aria-pressed": pinned,
      "data-candidate": `${section}:${index}`,
    });
    // Behind a picture that is gone its number shows.
    card.append(
      element("span.picture", index, row.pictures?.small && picture(row.pictures.small)),
      element(
        "span.line",
        element("b", index),
        best && element("span.star", { title: text("gallery.star") }, "★"),
        pinned && element("span.tag", text("gallery.tag")),
      ),
      element("small", figures.map((figure) => element("span", figure))),
      ...(drifted ? [element("small", drifted)] : []),
    );
    return card;
  }

  /** Begin to mark candidates for the comparison, or give it up. */
  mark(marking) {
    this.marking = marking;
    this.marked = [];
    this.draw();
  }

  /** Mark a candidate or take its mark off. Pictures of one image are compared. */
  toggle(section, index) {
    const mine = this.marked.filter((each) => each.section === section);
    const others = mine.filter((each) => each.index !== index);
    this.marked = others.length < mine.length ? others : [...others, { section, index }];
    this.draw();
  }

  drawComparison() {
    const [{ section }] = this.marked;
    const rows = this.marked.map(({ index }) => this.sections[section].rows[index]);
    const space = element("span.space");
    const [one, other] = rows.map(({ index }) => {
      const pinned = this.pins[section] === index;
      return button(text(pinned ? "gallery.unpin_n" : "gallery.pin_n", { n: index }), () => this.pin(section, index), { "aria-pressed": pinned });
    });
    this.bar.replaceChildren(button(text("gallery.back"), () => this.mark(false)), space, one, "◂ ▸", other);
    const pair = rows.map(({ content }) => content).join();
    if (this.body.firstChild?.pair === pair) return;
    const gone = () => this.body.replaceChildren(element("p", text("gallery.gone")));
    const slider = makeSlider(text("gallery.slide"), gone);
    slider.element.pair = pair;
    this.body.replaceChildren(slider.element);
    const sides = rows.map(({ index, pictures }) => pictures?.large && { url: pictureUrl(pictures.large), label: `${index}` });
    if (sides.every(Boolean)) slider.show(...sides);
    else gone();
  }
}

onNewNodes(["RealISR_NRIQABestOfN"], (node) => {
  hideWidget(node, "pinned");
  addMetricChoice(node);
  const gallery = new Gallery(node);
  onWidget(node, "pinned", () => gallery.draw());
  onReady(node, () => {
    // Files from before there was this widget have something else in its place.
    const widget = widgetOf(node, "pinned");
    if (widget && typeof widget.value !== "string") widget.value = "";
  });
  onScores(node, (tables) => gallery.show(tables));
});

// What a run will take, under the whole-method nodes: size, tiles, memory; amber where it is tight, red where it cannot be.
import { addPanel, ask, element, hasText, onNewNodes, onOutput, onReady, onRemoved, recall, remember, text, upstream, widgetOf } from "./frontend.js";
import { WHOLE_METHODS } from "./presets.js";

const HEIGHT = 72;
const LOOK_EVERY = 400;

const gigabytes = (bytes) => (bytes / 1e9).toFixed(bytes < 9.95e9 ? 1 : 0);
const duration = (seconds) => (seconds < 9.95 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`);

function facts({ from, to, tiles, memory, needs }) {
  const sizes = [from, from && to].filter(Boolean).map((size) => size.join("×"));
  return [
    sizes.join(" → "),
    tiles && text(tiles === 1 ? "estimate.whole" : "estimate.tiles", { n: tiles.toLocaleString() }),
    memory && text("estimate.memory", { n: gigabytes(memory) }),
    ...needs.map((name) => text("estimate.needs", { name })),
  ].filter(Boolean).join(" · ");
}

function unknown(name = "model") {
  const key = `estimate.unknown.${name}`;
  return text(hasText(key) ? key : "estimate.unknown.input", { name });
}

function draw(node, box, found) {
  const label = (name) => widgetOf(node, name)?.label || node.inputs?.find((input) => input.name === name)?.label || name;
  const lines = [
    found.level === "unknown" && unknown(found.unknown ?? undefined),
    found.reason,
    found.unused.length > 0 && text("estimate.unused", { names: found.unused.map(label).join(", ") }),
  ].filter(Boolean);
  box.dataset.level = found.level;
  const cards = Object.entries(found.seconds ?? {}).map(([card, least]) => `${card} ${duration(least)}`);
  box.title = [
    found.reason,
    found.free && text("estimate.free", { n: gigabytes(found.free) }),
    cards.length > 0 && text("estimate.seconds", { cards: cards.join(" · ") }),
  ].filter(Boolean).join("\n\n");
  box.replaceChildren(element("div", facts(found)), ...lines.map((line) => element("small", line)));
}

onNewNodes(WHOLE_METHODS, (node) => {
  const box = addPanel(node, "estimate", HEIGHT);
  let last;
  const see = async (again = false) => {
    if (!node.graph || document.hidden) return;
    const { id, graph } = upstream(node);
    const question = JSON.stringify({ node: id, graph, last_size: recall(node, "input_size") ?? null });
    if (question === last && !again) return;
    last = question;
    // Without an answer nothing is claimed; the next change asks again.
    const found = await ask("estimate", JSON.parse(question)).catch(() => undefined);
    if (question !== last) return;
    if (found) draw(node, box, found);
    else box.replaceChildren();
  };
  onOutput(node, ({ realisr_input_size: sizes }) => {
    if (sizes) remember(node, "input_size", sizes[0]);
    see(true);
  });
  onReady(node, () => see());
  // Whatever changed a value, by hand, a tab, an undo or a script, is seen.
  const clock = setInterval(see, LOOK_EVERY);
  onRemoved(node, () => clearInterval(clock));
});

// The rounds on Agent Refinement Loop, each as it finishes: its picture, what changed in the prompt and why.
import {
  addPanel, ask, button, element, executionIdOf, hideWidget, keepFromCanvas, nodeOf, onMessage, onNewNodes, onPage, onReady,
  onRunEnd, onWidget, picture, recall, remember, run, setWidget, text, widgetOf, workflowId,
} from "./frontend.js";
import { wordDiff } from "./word_diff.js";

const HEIGHT = 340;
const EDITS = "edited_prompts";

// Noted while another tab is in front, too.
const heard = new Map();
const keyOf = (node, workflow = workflowId()) => `${workflow}/${node}`;

onMessage(null, "realisr.timeline", (detail) => {
  const key = keyOf(detail.node, detail.workflow ?? undefined);
  heard.set(key, joined(heard.get(key), detail));
});
onRunEnd(null, () => {
  for (const told of heard.values()) if (told.state === "running") told.state = "ended";
});

// A loop that has just begun has no rows yet: those there are stale.
function joined(known, { state, total, rows, fresh }) {
  const time = Date.now();
  if (!fresh && !rows.length) return { state, total, rows: known?.rows ?? [], stale: true, time };
  const told = (row) => rows.some(({ round, image }) => round === row.round && image === row.image);
  const before = fresh ? [] : (known?.rows ?? []).filter((row) => !told(row));
  return { state, total, rows: [...before, ...rows], time };
}

class Timeline {
  constructor(node) {
    this.node = node;
    this.box = addPanel(node, "timeline", HEIGHT);
    this.open = undefined; // The round whose prompt is being edited, and the field for it.
    this.large = new Set();
    const draw = () => this.draw();
    onWidget(node, EDITS, draw);
    onReady(node, draw);
    onPage(node, "opened", draw);
    onMessage(node, "realisr.timeline", (detail) => {
      if (nodeOf(detail.node) !== node || (detail.workflow ?? workflowId()) !== workflowId()) return;
      if (detail.state !== "running") this.stopping = false;
      remember(node, "timeline", this.since);
      this.draw();
    });
    onRunEnd(node, () => {
      this.stopping = false;
      this.draw();
    });
  }

  get since() {
    return heard.get(keyOf(executionIdOf(this.node)));
  }

  /** The newer of what the file holds and what came since the page was opened. */
  get told() {
    const [saved, since] = [recall(this.node, "timeline"), this.since];
    return (since?.time ?? 0) > (saved?.time ?? 0) ? since : saved;
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
    const running = state === "running" && this.since?.state === "running";
    const made = running && stale ? 0 : new Set(rows.map(({ round }) => round)).size;
    const list = this.box.querySelector("ol");
    const typing = this.open && document.activeElement === this.open.field;
    const atEnd = !list || list.scrollTop + list.clientHeight > list.scrollHeight - 8;
    const empty = !rows.length && element("li.empty", text("timeline.empty"));
    const drawn = element(running && stale ? "ol.stale" : "ol", rows.map((row) => this.row(row, rows)), empty);
    const status = running && made < total ? "running" : state === "stopped" ? "stopped" : made ? "done" : "none";
    const stop = button(text(this.stopping ? "timeline.stopping" : "timeline.stop"), () => this.stop(), {
      disabled: !running || this.stopping || made + 1 >= total,
    });
    const head = element("header", element("span", { role: "status" }, text(`timeline.${status}`, { round: made + 1, made, total })), stop);
    this.box.replaceChildren(head, ...this.drawEdits(rows), drawn);
    if (typing) this.open.field.focus({ preventScroll: true });
    drawn.scrollTop = running && atEnd && !this.open ? drawn.scrollHeight : (list?.scrollTop ?? 0);
  }

  drawEdits(rows) {
    const { edits } = this;
    const edited = Object.keys(edits).map(Number).sort((a, b) => a - b);
    if (!edited.length) return [];
    const waiting = edited.some((round) => rows.find((row) => row.round === round)?.prompt !== edits[round]);
    const told = text(edited.length > 1 ? "timeline.edits" : "timeline.edit", { rounds: edited.join(", ") });
    const over = button(text("timeline.over"), () => setWidget(this.node, EDITS, ""), { title: text("timeline.over.why") });
    return [element("header.next", element("span", told), waiting && button(text("timeline.run"), () => run()), over)];
  }

  row(row, rows) {
    const { round, image, images, drift, seconds } = row;
    const id = `${round}/${image}`;
    const title = text(images > 1 ? "timeline.round.image" : "timeline.round", { round, image });
    const facts = element(
      "div.facts",
      element("b", title),
      drift != null && element("small", { title: text("timeline.drift.why") }, text("timeline.drift", { drift: drift.toFixed(2) })),
      seconds >= 0.1 && element("small", text("timeline.seconds", { seconds: seconds.toFixed(1) })),
    );
    const enlarge = () => {
      if (line.classList.toggle("large")) this.large.add(id);
      else this.large.delete(id);
    };
    const larger = button("", enlarge, { className: "picture", "aria-label": text("timeline.picture", { title }) });
    larger.append(picture(row.picture ?? {}, title));
    const open = images === 1 && this.open?.round === round;
    const line = element("li", larger, element("div.round", facts, open ? this.open.elements : this.words(row, rows)));
    line.classList.toggle("large", this.large.has(id));
    return line;
  }

  words(row, rows) {
    const { round, image, images, edited, reason, changes } = row;
    const before = rows.find((other) => other.round === round - 1 && other.image === image);
    const why = edited ? text("timeline.yours") : round === 1 ? text("timeline.initial") : reason || changes;
    const go = button(text("timeline.continue"), () => this.edit(row), { title: text("timeline.continue.why", { next: round + 1 }) });
    return [
      element("div.prompt", before ? this.difference(before.prompt, row.prompt) : row.prompt),
      element("div.end", images === 1 && go, element("span.why", why)),
    ];
  }

  difference(before, after) {
    return wordDiff(before, after).flatMap(({ kind, text: words }) => {
      const bare = words.trimEnd();
      return kind === "same" ? words : [element(kind === "added" ? "ins" : "del", bare), words.slice(bare.length)];
    });
  }

  edit(row) {
    const { round } = row;
    const next = round + 1;
    const field = element("textarea", { value: this.edits[next] ?? row.prompt, "aria-label": text("timeline.prompt", { next }) });
    const use = button(text("timeline.use", { next }), () => this.use(next, field.value.trim()));
    const leave = () => {
      this.open = undefined;
      this.draw();
    };
    field.oninput = () => (use.disabled = ["", row.prompt.trim()].includes(field.value.trim()));
    field.oninput();
    keepFromCanvas(field, "keydown", "pointerdown");
    const hint = element("small", text("timeline.hint", { round, next }));
    this.open = { round, field, elements: [field, element("div.editing", hint, button(text("timeline.cancel"), leave), use)] };
    this.draw();
    const line = field.closest("li");
    line.parentElement.scrollTop = line.offsetTop - line.parentElement.offsetTop;
    field.focus({ preventScroll: true });
  }

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

onNewNodes(["RealISR_AgentRefinementLoop"], (node) => {
  hideWidget(node, EDITS);
  new Timeline(node);
});

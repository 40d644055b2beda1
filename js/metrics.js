// Which metrics: buttons below the text widget `metrics` that write into it. What is missing is named with its address.
import {
  addPanel, ask, button, copier, element, isLinked, onPage, onPlaced, onReady, onWidget, onWires, setWidget, text, widgetOf,
} from "./frontend.js";

const HEIGHT = 84;

let reading;

// Asked once for all nodes, and again on request: files may have come.
function offers(again = false) {
  if (again) reading = undefined;
  reading ??= ask("metrics");
  reading.catch(() => (reading = undefined));
  return reading;
}

const row = (...parts) => element("div.row", ...parts);
const same = (a) => (b) => a.toLowerCase() === b.toLowerCase();

/** Put the buttons on a node that has a text widget `metrics`. reference: offer those that compare with a reference. */
export function addMetricChoice(node, reference = false) {
  const box = addPanel(node, "metrics", HEIGHT);
  let all = false;
  const chosen = () => String(widgetOf(node, "metrics")?.value ?? "").split(/[\s,;]+/).filter(Boolean);
  const isChosen = (name) => chosen().some(same(name));
  const draw = () => show();

  function toggle(name) {
    const others = chosen().filter((each) => !same(name)(each));
    setWidget(node, "metrics", (isChosen(name) ? others : [...others, name]).join(", "));
    draw();
  }

  function chip(name, missing, press, title) {
    const properties = { className: missing ? "missing" : "", title, "aria-pressed": isChosen(name), "data-metric": name };
    return button(missing ? `${name} ⤓` : name, press, properties);
  }

  function drawMissing({ folder }, { name, files }) {
    const lines = files.map(({ name: file, url, found }) => {
      const link = element("a", { href: url, target: "_blank", rel: "noopener" }, file);
      return row(found ? "✓" : "○", link, !found && copier(text("metrics.copy_link"), url));
    });
    const place = element("code", { title: folder }, folder.split(/[\\/]/).slice(-3).join("/"));
    const use = text(isChosen(name) ? "metrics.leave_out" : "metrics.use");
    box.replaceChildren(
      row(button(text("metrics.back"), draw), text("metrics.needs", { name }), place, copier(text("metrics.copy_folder"), folder)),
      ...lines,
      row(button(text("metrics.look_again"), () => show(true, name)), button(use, () => toggle(name))),
    );
  }

  function drawAll(read) {
    const offered = read.metrics.filter(({ needs_reference }) => needs_reference === reference).sort((a, b) => b.ready - a.ready);
    const first = offered.filter(({ name, ready, common }) => all || ready || common || isChosen(name));
    const chips = first.map((offer) => {
      const { name, ready, runs, files, lower_is_better } = offer;
      const waits = runs && !ready;
      const direction = [text(lower_is_better ? "metrics.lower" : "metrics.higher"), files.length ? "" : text("metrics.no_file")];
      const title = waits ? text("metrics.files_missing") : direction.join(" ").trim();
      return chip(name, !ready, () => (waits ? drawMissing(read, offer) : toggle(name)), title);
    });
    const others = chosen().filter((name) => !read.metrics.some((offer) => same(name)(offer.name)));
    chips.push(...others.map((name) => chip(name, false, () => toggle(name), text("metrics.other"))));
    if (first.length < offered.length) chips.push(button(text("metrics.more", { n: offered.length - first.length }), () => ((all = true), draw())));
    box.replaceChildren(row(chips));
    if (offered.every(({ runs }) => runs)) return;
    const told = text("metrics.install", { packages: read.missing_packages.join(", ") });
    box.prepend(element("p", told), row(element("code", read.install), copier(text("metrics.copy"), read.install)));
  }

  async function show(again, name) {
    if (isLinked(node, "metrics")) return box.replaceChildren(element("p", text("metrics.linked")));
    try {
      const read = await offers(again);
      const offer = read.metrics.find((each) => each.name === name);
      if (offer && !offer.ready) drawMissing(read, offer);
      else drawAll(read);
    } catch ({ message }) {
      box.replaceChildren(element("p", message), button(text("metrics.look_again"), () => show(true)));
    }
  }

  onWidget(node, "metrics", draw);
  onWires(node, draw);
  onReady(node, draw);
  onPage(node, "refresh", () => show(true));
  if (reference) return;
  // Saved workflows keep what they say; a new node begins with what works here.
  const before = widgetOf(node, "metrics")?.value;
  onPlaced(node, async () => {
    const widget = widgetOf(node, "metrics");
    if (widget.value !== before) return;
    const { first_choice } = await offers().catch(() => ({ first_choice: before }));
    if (widget.value !== before) return;
    widget.value = first_choice;
    draw();
  });
}

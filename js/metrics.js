// Which metrics: buttons below the text widget `metrics` that write into it. What is missing is named with its address.
import {
    addPanel, addStyle, ask, button, copy, element, isLinked, onPlaced, onReady, onRefresh, onWidget, onWires, setWidget, text, textsRead, widgetOf,
} from "./frontend.js";

const HEIGHT = 84;

addStyle(`
    .realisr-metrics { padding: 6px; }
    .realisr-metrics p { margin: 0 0 4px; }
    .realisr-metrics .row { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; margin-bottom: 4px; }
    .realisr-metrics code { user-select: text; overflow-wrap: anywhere; opacity: 0.8; }
    .realisr-metrics a { color: inherit; overflow-wrap: anywhere; }
    .realisr-metrics [aria-pressed=true] { background: var(--primary-background, #2563a8); border-color: transparent; color: #fff; }
    .realisr-metrics .missing { border-style: dashed; opacity: 0.65; }
    .realisr-metrics .missing[aria-pressed=true] { background: #a05a00; opacity: 1; }
`);

let reading;

// Asked once for all nodes, and again on request: files may have come.
function offers(again = false) {
    if (again) reading = undefined;
    reading ??= ask("metrics");
    reading.catch(() => (reading = undefined));
    return reading;
}

function namesIn(value) {
    return String(value ?? "").split(/[\s,;]+/).filter(Boolean);
}

const same = (a) => (b) => a.toLowerCase() === b.toLowerCase();

/** Put the buttons on a node that has a text widget `metrics`. reference: offer those that compare with a reference. */
export function addMetricChoice(node, reference = false) {
    const box = addPanel(node, "metric_choice", HEIGHT, "realisr-metrics");
    let all = false;
    const chosen = () => namesIn(widgetOf(node, "metrics")?.value);

    function toggle(name) {
        const names = chosen();
        const others = names.filter((each) => !same(name)(each));
        setWidget(node, "metrics", (others.length < names.length ? others : [...names, name]).join(", "));
        draw();
    }

    function chip(name, missing, press, title) {
        const on = chosen().some(same(name));
        const label = missing ? `${name} ⤓` : name;
        return button(label, press, { className: missing ? "missing" : "", title, "aria-pressed": String(on), "data-metric": name });
    }

    const copier = (copied, label) => button(text(label), (event) => copy(copied, event.target));

    function drawMissing(read, offer) {
        const row = (...parts) => element("div", { className: "row" }, ...parts);
        const files = offer.files.map(({ name, url, found }) => {
            const link = element("a", { href: url, target: "_blank", rel: "noopener" }, name);
            return row(found ? "✓" : "○", link, found ? undefined : copier(url, "metrics.copy_link"));
        });
        const place = element("code", { title: read.folder }, read.folder.split(/[\\/]/).slice(-3).join("/"));
        const use = chosen().some(same(offer.name)) ? "metrics.leave_out" : "metrics.use";
        box.replaceChildren(
            row(button(text("metrics.back"), draw), text("metrics.needs", { name: offer.name }), place, copier(read.folder, "metrics.copy_folder")),
            ...files,
            row(button(text("metrics.look_again"), () => show(true, offer.name)), button(text(use), () => toggle(offer.name))),
        );
    }

    function drawAll(read) {
        const offered = read.metrics.filter(({ needs_reference }) => needs_reference === reference);
        offered.sort((a, b) => b.ready - a.ready);
        const first = offered.filter((offer) => all || offer.ready || offer.common || chosen().some(same(offer.name)));
        const chips = first.map((offer) => {
            const waits = offer.runs && !offer.ready;
            const direction = text(offer.lower_is_better ? "metrics.lower" : "metrics.higher");
            const title = waits ? text("metrics.files_missing") : `${direction}${offer.files.length ? "" : ` ${text("metrics.no_file")}`}`;
            return chip(offer.name, !offer.ready, () => (waits ? drawMissing(read, offer) : toggle(offer.name)), title);
        });
        const others = chosen().filter((name) => !read.metrics.some((offer) => same(name)(offer.name)));
        chips.push(...others.map((name) => chip(name, false, () => toggle(name), text("metrics.other"))));
        if (first.length < offered.length) chips.push(button(text("metrics.more", { n: offered.length - first.length }), () => ((all = true), draw())));
        const parts = [element("div", { className: "row" }, ...chips)];
        if (offered.some(({ runs }) => !runs)) {
            const packages = read.missing_packages.join(", ");
            const command = element("div", { className: "row" }, element("code", {}, read.install), copier(read.install, "metrics.copy"));
            parts.unshift(element("p", {}, text("metrics.install", { packages })), command);
        }
        box.replaceChildren(...parts);
    }

    async function show(again, name) {
        await textsRead();
        if (isLinked(node, "metrics")) return box.replaceChildren(element("p", {}, text("metrics.linked")));
        try {
            const read = await offers(again);
            const offer = read.metrics.find((each) => each.name === name);
            if (offer && !offer.ready) drawMissing(read, offer);
            else drawAll(read);
        } catch (error) {
            box.replaceChildren(element("p", {}, error.message), button(text("metrics.look_again"), () => show(true)));
        }
    }
    const draw = () => show();

    onWidget(node, "metrics", draw);
    onWires(node, draw);
    onReady(node, draw);
    onRefresh(node, () => show(true));
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

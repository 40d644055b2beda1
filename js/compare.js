// What Compare Sheet shows on the node: any two results in a slider, and places to enlarge by a click.
import {
    addPanel, addStyle, button, element, onNewNodes, onOutput, onReady, onWidget, pictureUrl, recall, remember, setWidget, text, textsRead,
    widgetOf,
} from "./frontend.js";
import { makeSlider } from "./slider.js";

const HEIGHT = 300;

addStyle(`
    .realisr-compare { display: flex; flex-direction: column; gap: 4px; padding: 4px; }
    .realisr-compare > div:first-child { display: flex; gap: 4px; }
    .realisr-compare select { flex: 1; min-width: 0; font: inherit; color: inherit; background: var(--comfy-menu-bg); border: 1px solid var(--border-color); border-radius: 4px; }
    .realisr-compare .realisr-slider { flex: 1; }
    .realisr-compare.marking .realisr-slider input { cursor: crosshair; }
    .realisr-compare small { opacity: 0.75; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
    .realisr-compare button[aria-pressed="true"] { border-color: #38bdf8; color: #38bdf8; }
`);

onNewNodes("CompareSheet", ["RealISR_CompareSheet"], (node) => {
    const box = addPanel(node, "compare", HEIGHT, "realisr-compare");
    textsRead().then(() => fill(node, box));
});

function fill(node, box) {
    let entries = [];
    const note = element("small");
    const slider = makeSlider(text("compare.slider"), () => (note.textContent = text("compare.gone")));
    const selects = [0, 1].map((side) => element("select", { "aria-label": text(side ? "compare.right" : "compare.left"), onchange: show }));
    const mark = button(text("compare.mark"), () => press(mark.getAttribute("aria-pressed") !== "true"), {
        title: text("compare.mark_tip"),
        "aria-pressed": "false",
    });
    const clear = button(text("compare.clear"), () => setWidget(node, "places", ""), { title: text("compare.clear_tip") });
    box.append(element("div", {}, ...selects, mark, clear), slider.element, note);

    function press(on) {
        mark.setAttribute("aria-pressed", String(on));
        box.classList.toggle("marking", on);
    }

    function show() {
        remember(node, "compared", selects.map((select) => select.value));
        const sides = selects.map((select) => entries[select.value]);
        slider.show(...sides.map((entry) => entry?.file && { url: pictureUrl(entry.file), label: entry.label }));
        note.textContent = sides.map((entry) => entry && [entry.label, ...entry.notes].join(" · ")).join("   |   ");
        note.title = note.textContent;
    }

    function draw() {
        entries = recall(node, "compare")?.entries ?? [];
        const shown = entries.flatMap((entry, index) => (entry.file ? [index] : []));
        const kept = recall(node, "compared") ?? [];
        selects.forEach((select, side) => {
            select.replaceChildren(...shown.map((index) => element("option", { value: index, textContent: entries[index].label })));
            const wanted = shown.find((index) => String(index) === kept[side]);
            select.value = wanted ?? (side ? shown.at(-1) : shown[0]) ?? "";
        });
        if (shown.length) show();
        else note.textContent = entries.length ? text("compare.none") : text("compare.empty");
        clear.disabled = !widgetOf(node, "places")?.value;
    }

    // The range under the pointer moves with the click too, which does no harm.
    slider.element.addEventListener("click", (event) => {
        if (mark.getAttribute("aria-pressed") !== "true") return;
        const image = slider.element.querySelector("img:not([hidden])");
        const place = image && placeOf(event, image);
        if (!place) return;
        const before = widgetOf(node, "places").value.trim();
        setWidget(node, "places", `${before}${before ? "; " : ""}${place.join(" ")}`);
    });
    onWidget(node, "places", () => (clear.disabled = !widgetOf(node, "places").value));
    onOutput(node, ({ compare }) => {
        if (!compare) return;
        remember(node, "compare", compare[0]);
        draw();
    });
    onReady(node, draw);
}

/** [x, y] of a click in percent of the picture, or undefined beside it. */
function placeOf(event, image) {
    const box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    const x = (event.clientX - box.x - (box.width - width) / 2) / width;
    const y = (event.clientY - box.y - (box.height - height) / 2) / height;
    if (x >= 0 && x <= 1 && y >= 0 && y <= 1) return [x, y].map((part) => Math.round(part * 1000) / 10);
}

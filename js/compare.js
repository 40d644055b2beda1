// What Compare Sheet shows on the node: any two results in a slider, and places to enlarge by a click.
import {
  addPanel, button, element, onNewNodes, onReady, onResult, onWidget, pictureUrl, recall, remember, setWidget, text, widgetOf,
} from "./frontend.js";
import { makeSlider } from "./slider.js";

const HEIGHT = 300;

onNewNodes(["RealISR_CompareSheet"], (node) => {
  const places = () => widgetOf(node, "places");
  let entries = [];
  const note = element("small");
  const slider = makeSlider(text("compare.slider"), () => (note.textContent = text("compare.gone")));
  const selects = ["left", "right"].map((side) => element("select", { "aria-label": text(`compare.${side}`), onchange: show }));
  const press = () => mark.setAttribute("aria-pressed", box.classList.toggle("marking"));
  const mark = button(text("compare.mark"), press, { title: text("compare.mark_tip"), "aria-pressed": false });
  const clear = button(text("compare.clear"), () => setWidget(node, "places", ""), { title: text("compare.clear_tip") });
  const box = addPanel(node, "compare", HEIGHT);
  box.append(element("div", selects, mark, clear), slider.element, note);

  function show() {
    remember(node, "compared", selects.map((select) => select.value));
    const sides = selects.map((select) => entries[select.value]);
    slider.show(...sides.map((entry) => entry?.file && { url: pictureUrl(entry.file), label: entry.label }));
    note.textContent = sides.map((entry) => entry && [entry.label, ...entry.notes].join(" · ")).join("   |   ");
    note.title = note.textContent;
  }

  function draw() {
    entries = recall(node, "compare")?.[0].entries ?? [];
    const shown = Object.keys(entries).filter((index) => entries[index].file);
    const kept = recall(node, "compared") ?? [];
    selects.forEach((select, side) => {
      select.replaceChildren(...shown.map((value) => element("option", { value }, entries[value].label)));
      select.value = shown.includes(kept[side]) ? kept[side] : (shown.at(side ? -1 : 0) ?? "");
    });
    if (shown.length) show();
    else note.textContent = text(entries.length ? "compare.none" : "compare.empty");
    clear.disabled = !places().value;
  }

  // The range under the pointer moves with the click too, which does no harm.
  slider.element.onclick = (event) => {
    if (!box.classList.contains("marking")) return;
    const image = slider.element.querySelector("img:not([hidden])");
    const place = image && placeOf(event, image);
    if (place) setWidget(node, "places", [places().value.trim(), place.join(" ")].filter(Boolean).join("; "));
  };
  onWidget(node, "places", () => (clear.disabled = !places().value));
  onResult(node, "compare", draw);
  onReady(node, draw);
});

/** [x, y] of a click in percent of the picture, or undefined beside it. */
function placeOf(event, image) {
  const box = image.getBoundingClientRect();
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  const x = (event.clientX - box.x - (box.width - width) / 2) / width;
  const y = (event.clientY - box.y - (box.height - height) / 2) / height;
  if (x >= 0 && x <= 1 && y >= 0 && y <= 1) return [x, y].map((part) => Math.round(part * 1000) / 10);
}

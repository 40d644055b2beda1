// "Models" on the loaders: which files the method needs, which of them are here, and where to get the others.
import { addPanel, ask, button, copier, element, onNewNodes, onPage, onReady, onWidget, text, widgetOf } from "./frontend.js";

const CHOICES = {
  RealISR_LoadVOSRModel: "model_name",
  RealISR_LoadVOSRVAE: "vae_name",
  RealISR_LoadVOSRVisionEncoder: "vision_name",
  RealISR_LoadVisionContextBridge: "bridge_name",
  RealISR_LoadMMControlNet: "control_name",
  RealISR_LoadARRestorer: "model_name",
  RealISR_LoadLocalVLM: "model_name",
};
const HEIGHT = 164;

function row(part) {
  const complete = part.found === part.of;
  const begun = !complete && part.found > 0;
  const state = begun ? text("models.incomplete", part) : complete ? "" : part.size || (part.link ? "" : text("models.unreleased"));
  const lacks = part.absent.length && text("models.lacks", { files: part.absent.join(", ") });
  const title = [part.name, part.place, lacks, part.note, part.licence && text("models.licence", part)].filter(Boolean).join("\n");
  const [first, ...rest] = part.name.split("/");
  const name = rest.at(-1) === "diffusion_pytorch_model.safetensors" ? first : part.name;
  const label = text(complete ? "models.here" : begun ? "models.part" : "models.absent");
  const mark = element("span", { role: "img", "aria-label": label }, complete ? "✓" : begun ? "◐" : "○");
  const place = element("div", element("small", [state, part.folder].filter(Boolean).join(" · ")));
  const link = part.link && !complete && copier(text("models.copy_link"), part.link);
  return element(complete ? "li" : "li.absent", { title }, mark, element("div", element("div", name), place), link);
}

onNewNodes(Object.keys(CHOICES), (node) => {
  const box = addPanel(node, "models", HEIGHT);
  const widget = CHOICES[node.comfyClass];
  let asked = 0;
  let shown;

  async function load() {
    const mine = ++asked;
    const chosen = widgetOf(node, widget)?.value ?? "";
    const answer = await ask(`models?${new URLSearchParams({ node: node.comfyClass, chosen })}`).catch(({ message }) => ({ message }));
    // A later question has overtaken this one.
    if (mine !== asked) return;
    if (answer.message) return box.replaceChildren(answer.message);
    shown = answer.meant ?? shown ?? answer.methods[0].key;
    draw(answer.methods);
  }

  function draw(methods) {
    const choose = ({ target }) => {
      shown = target.value;
      draw(methods);
    };
    const method = methods.find(({ key }) => key === shown) ?? methods[0];
    const options = methods.map(({ key, name }) => element("option", { value: key, selected: key === method.key }, name));
    const told = (key) => ({ title: text(key), "aria-label": text(key) });
    const title = options.length > 1 ? element("select", { onchange: choose, ...told("models.for") }, options) : element("div", method.name);
    const rows = method.parts.map(row);
    box.replaceChildren(
      element("header", title, button("⟳", load, told("models.refresh"))),
      rows.length ? element("ul", rows) : element("div", text("models.bundled")),
    );
  }

  onWidget(node, widget, load);
  onPage(node, "refresh", load);
  onReady(node, load);
});

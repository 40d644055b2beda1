// "Models" on the loaders: which files the method needs, which of them are here, and where to get the others.
import { addPanel, addStyle, ask, button, copy, element, onNewNodes, onReady, onRefresh, onWidget, text, textsRead } from "./frontend.js";

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

addStyle(`
    .realisr-models { padding: 4px 6px; }
    .realisr-models header { display: flex; gap: 4px; align-items: center; margin-bottom: 2px; }
    .realisr-models header > :first-child { flex: 1; min-width: 0; font: inherit; font-weight: bold; color: inherit; background: transparent; border: none; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
    .realisr-models option { background: var(--comfy-menu-bg); }
    .realisr-models ul { list-style: none; margin: 0; padding: 0; }
    .realisr-models li { display: flex; gap: 6px; align-items: center; padding: 2px 0; }
    .realisr-models li > span { width: 1em; text-align: center; color: #4ade80; }
    .realisr-models .absent > span { color: #fbbf24; }
    .realisr-models li > div { flex: 1; min-width: 0; }
    .realisr-models li div div { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; line-height: 1.25; }
    .realisr-models small { opacity: 0.65; font-size: 10px; }
    .realisr-models button { flex: none; }
`);

function row(part) {
    const complete = part.found === part.of;
    const begun = !complete && part.found > 0;
    const state = begun ? text("models.incomplete", part) : complete ? "" : part.size || (part.link ? "" : text("models.unreleased"));
    const details = [part.place, part.absent.length ? text("models.lacks", { files: part.absent.join(", ") }) : "", part.note, part.licence && text("models.licence", part)];
    const name = element("div", {}, part.name.split("/").at(-1) === "diffusion_pytorch_model.safetensors" ? part.name.split("/")[0] : part.name);
    const place = element("div", {}, element("small", {}, [state, part.folder].filter(Boolean).join(" · ")));
    const mark = element("span", { role: "img", "aria-label": text(complete ? "models.here" : begun ? "models.part" : "models.absent") }, complete ? "✓" : begun ? "◐" : "○");
    const link = part.link && !complete ? button(text("models.copy_link"), (event) => copy(part.link, event.target), { title: part.link }) : null;
    const title = [part.name, ...details].filter(Boolean).join("\n");
    return element("li", { className: complete ? "" : "absent", title }, mark, element("div", {}, name, place), link);
}

onNewNodes("ModelChecklist", Object.keys(CHOICES), (node) => {
    const box = addPanel(node, "models", HEIGHT, "realisr-models");
    const widget = CHOICES[node.comfyClass];
    let asked = 0;
    let shown;

    async function load() {
        const mine = ++asked;
        await textsRead();
        const chosen = node.widgets?.find(({ name }) => name === widget)?.value ?? "";
        const answer = await ask(`models?${new URLSearchParams({ node: node.comfyClass, chosen })}`).catch(({ message }) => ({ message }));
        // A later question has overtaken this one.
        if (mine !== asked) return;
        if (answer.message) return box.replaceChildren(answer.message);
        shown = answer.meant ?? shown ?? answer.methods[0].key;
        draw(answer.methods);
    }

    function draw(methods) {
        const options = methods.map(({ key, name }) => element("option", { value: key, textContent: name, selected: key === shown }));
        const choose = ({ target }) => {
            shown = target.value;
            draw(methods);
        };
        const method = methods.find(({ key }) => key === shown) ?? methods[0];
        const title = options.length > 1 ? element("select", { onchange: choose, title: text("models.for"), "aria-label": text("models.for") }, ...options) : element("div", {}, method.name);
        const header = element("header", {}, title, button("⟳", load, { title: text("models.refresh"), "aria-label": text("models.refresh") }));
        const rows = method.parts.map(row);
        box.replaceChildren(header, rows.length ? element("ul", {}, ...rows) : element("div", {}, text("models.bundled")));
    }

    onWidget(node, widget, load);
    onRefresh(node, load);
    onReady(node, load);
});

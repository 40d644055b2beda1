// Choosing a preset writes its values into the widgets that it sets; changing one of these makes the choice "custom".
// What a preset sets is in models/presets.py alone; the server applies it too.
import { ask, changed, onNewNodes, onReady, onWidget, setWidget, widgetOf } from "./frontend.js";

const NODES = ["RealISR_RestorationCFGSampler", "RealISR_DreamSRRestore", "RealISR_ARTokenRestorer"];
const CUSTOM = "custom";

let table = {};
const asked = ask("presets").then((found) => (table = found));

onNewNodes("Presets", NODES, (node) => {
    let writing = false;
    const knobs = () => table[node.comfyClass]?.[widgetOf(node, "preset")?.value];
    const write = () => {
        writing = true;
        let wrote = false;
        for (const [name, value] of Object.entries(knobs() ?? {})) {
            wrote ||= widgetOf(node, name)?.value !== value;
            setWidget(node, name, value, true);
        }
        writing = false;
        return wrote;
    };
    const settle = () => write() && changed();
    onWidget(node, "preset", () => (node.comfyClass in table ? settle() : asked.then(settle)));
    asked.then((found) => {
        for (const name of Object.keys(Object.values(found[node.comfyClass])[0])) {
            onWidget(node, name, (value) => {
                if (!writing && (knobs()?.[name] ?? value) !== value) setWidget(node, "preset", CUSTOM);
            });
        }
        // A file may hold values that a preset of an older version set.
        onReady(node, write);
    });
});

// Choosing a preset writes its values into the widgets that it sets; changing one of these makes the choice "custom".
// What a preset sets is in models/presets.py alone; the server applies it too.
import { ask, changed, onNewNodes, onReady, onWidget, setWidget, widgetOf } from "./frontend.js";

/** The nodes that are a whole method. */
export const WHOLE_METHODS = ["RealISR_RestorationCFGSampler", "RealISR_DreamSRRestore", "RealISR_ARTokenRestorer"];

const asked = ask("presets");

onNewNodes(WHOLE_METHODS, async (node) => {
  const { [node.comfyClass]: presets } = await asked;
  const knobs = () => presets[widgetOf(node, "preset")?.value] ?? {};
  let writing = false;
  const write = () => {
    writing = true;
    const others = Object.entries(knobs()).filter(([name, value]) => widgetOf(node, name)?.value !== value);
    for (const [name, value] of others) setWidget(node, name, value, true);
    writing = false;
    return others.length;
  };
  onWidget(node, "preset", () => write() && changed());
  for (const name of Object.keys(Object.values(presets)[0])) {
    onWidget(node, name, (value) => {
      if (!writing && (knobs()[name] ?? value) !== value) setWidget(node, "preset", "custom");
    });
  }
  // A file may hold values that a preset of an older version set.
  onReady(node, write);
});

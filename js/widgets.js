// For all nodes of the pack: dropdowns in the reader's language, and advanced widgets out of sight on the classic canvas too.
import { ALL_OURS, foldAdvanced, labelChoices, onNewNodes, onWidgetsChanged, text, textsRead } from "./frontend.js";

function choiceLabel(value) {
    const key = `choice.${value}`;
    const label = text(key);
    return label === key ? value : label;
}

onNewNodes("Widgets", ALL_OURS, (node) => {
    foldAdvanced(node);
    onWidgetsChanged(node, () => textsRead().then(() => labelChoices(node, choiceLabel)));
});

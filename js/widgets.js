// For all nodes of the pack: dropdowns in the reader's language, and advanced widgets out of sight on the classic canvas too.
import { ALL_OURS, foldAdvanced, hasText, labelChoices, onNewNodes, onWidgetsChanged, text } from "./frontend.js";

const choiceLabel = (value) => (hasText(`choice.${value}`) ? text(`choice.${value}`) : undefined);

onNewNodes(ALL_OURS, (node) => {
  foldAdvanced(node);
  onWidgetsChanged(node, () => labelChoices(node, choiceLabel));
});

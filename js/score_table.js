// Sortable tables of scores, on NR-IQA Score and Evaluate Against Reference, from the node's `score_table` output.
import { addPanel, element, onNewNodes, onReady, onResult, recall } from "./frontend.js";
import { addMetricChoice } from "./metrics.js";

const HEIGHT = 160;

// Each: what the head says, a row's value, whether small values are the good ones, and a row's cell.
function columns(metrics, ranked) {
  const index = { head: "index", value: (row) => row.index, up: true, cell: (row) => `${row.index}${row.best ?? row.chosen ? " ★" : ""}` };
  const scores = metrics.map(({ name, lower_is_better: up }, at) => ({
    head: `${name} ${up ? "↓" : "↑"}`,
    value: (row) => row.scores[at],
    up,
    cell: ({ scores, ranks }) => [scores[at]?.toFixed(4) ?? "–", ranks && [" ", element("small", `#${ranks[at]}`)]].flat(),
  }));
  const sums = [
    { head: "rank sum", value: (row) => row.rank_sum, up: true, cell: (row) => row.rank_sum },
    { head: "mean", value: (row) => row.mean, up: false, cell: (row) => row.mean.toFixed(4) },
  ];
  return [index, ...scores, ...(ranked ? sums : [])];
}

// A score that is no number comes last, whichever way.
function sorted(rows, { value }, up) {
  const known = rows.filter((row) => value(row) !== null).sort((a, b) => (value(a) - value(b)) * (up ? 1 : -1));
  return [...known, ...rows.filter((row) => value(row) === null)];
}

function drawSection(metrics, { title, rows }, order, redraw) {
  const all = columns(metrics, rows.some((row) => row.ranks));
  const by = all.find(({ head }) => head === order.head) ?? all[0];
  const up = order.reversed ? !by.up : by.up;
  const heads = all.map((column) => {
    const sort = () => {
      order.reversed = column === by && !order.reversed;
      order.head = column.head;
      redraw(column.head);
    };
    const state = column === by ? (up ? "ascending" : "descending") : undefined;
    const onkeydown = ({ key }) => void (key === "Enter" && sort());
    return element("th", { tabIndex: 0, onclick: sort, onkeydown, "aria-sort": state, scope: "col" }, column.head);
  });
  const lines = sorted(rows, by, up).map((row) =>
    element(row.chosen ? "tr.chosen" : "tr", { title: row.prompt }, all.map(({ cell }) => element("td", cell(row)))));
  return element("table", title && element("caption", title), element("tr", heads), lines);
}

/** Draw the tables of a `score_table` output into an element. order: an object that keeps what they are sorted by. */
export function drawTables(box, tables, order) {
  const redraw = (head) => {
    drawTables(box, tables, order);
    [...box.querySelectorAll("th")].find((cell) => cell.textContent === head)?.focus();
  };
  box.replaceChildren(...tables.flatMap(({ metrics, sections }) => sections.map((section) => drawSection(metrics, section, order, redraw))));
}

/** Call draw(tables) with the node's `score_table` output: after a run, and with the last one when the node is read. */
export function onScores(node, draw) {
  onResult(node, "score_table", draw);
  onReady(node, () => draw(recall(node, "score_table") ?? []));
}

for (const [name, reference] of [["RealISR_NRIQAScore", false], ["RealISR_EvaluateAgainstReference", true]]) {
  onNewNodes([name], (node) => {
    addMetricChoice(node, reference);
    const box = addPanel(node, "scores", HEIGHT);
    onScores(node, (tables) => drawTables(box, tables, {}));
  });
}

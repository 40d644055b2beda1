// Sortable tables of scores, on NR-IQA Score and Evaluate Against Reference, from the node's `score_table` output.
import { addPanel, addStyle, element, onNewNodes, onOutput, onReady, recall, remember } from "./frontend.js";
import { addMetricChoice } from "./metrics.js";

const HEIGHT = 160;

addStyle(`
    .realisr-scores table { border-collapse: collapse; width: 100%; white-space: nowrap; }
    .realisr-scores caption { text-align: left; padding: 4px 6px; opacity: 0.7; }
    .realisr-scores th, .realisr-scores td { padding: 2px 6px; text-align: right; }
    .realisr-scores th { cursor: pointer; position: sticky; top: 0; background: var(--comfy-input-bg); }
    .realisr-scores th:hover, .realisr-scores th:focus-visible { text-decoration: underline; }
    .realisr-scores th::before { content: "▾ "; opacity: 0; }
    .realisr-scores th[aria-sort]::before { opacity: 0.7; }
    .realisr-scores th[aria-sort=ascending]::before { content: "▴ "; }
    .realisr-scores small { opacity: 0.6; }
    .realisr-scores tr.chosen { font-weight: bold; background: color-mix(in srgb, currentColor 15%, transparent); }
`);

// Each: what the head says, a row's value, whether small values are the good ones, and a row's cell.
function columns(metrics, ranked) {
    const index = { head: "index", value: (row) => row.index, up: true, cell: (row) => `${row.index}${row.best ?? row.chosen ? " ★" : ""}` };
    const scores = metrics.map(({ name, lower_is_better: up }, at) => ({
        head: `${name} ${up ? "↓" : "↑"}`,
        value: (row) => row.scores[at],
        up,
        cell: (row) => [row.scores[at] === null ? "–" : row.scores[at].toFixed(4), ...(row.ranks ? [" ", element("small", {}, `#${row.ranks[at]}`)] : [])],
    }));
    const sums = [
        { head: "rank sum", value: (row) => row.rank_sum, up: true, cell: (row) => `${row.rank_sum}` },
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
    const table = element("table");
    if (title) table.append(element("caption", {}, title));
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
        const onkeydown = (event) => event.key === "Enter" && sort();
        return element("th", { tabIndex: 0, onclick: sort, onkeydown, "aria-sort": state, scope: "col" }, column.head);
    });
    table.append(element("tr", {}, ...heads));
    for (const row of sorted(rows, by, up)) {
        const cells = all.map(({ cell }) => element("td", {}, ...[cell(row)].flat()));
        table.append(element("tr", { className: row.chosen ? "chosen" : "", title: row.prompt }, ...cells));
    }
    return table;
}

/** Draw the tables of a `score_table` output into an element. order: an object that keeps what they are sorted by. */
export function drawTables(box, tables, order) {
    const redraw = (head) => {
        drawTables(box, tables, order);
        [...box.querySelectorAll("th")].find((cell) => cell.textContent === head)?.focus();
    };
    const drawn = tables.flatMap(({ metrics, sections }) => sections.map((section) => drawSection(metrics, section, order, redraw)));
    box.replaceChildren(...drawn);
}

/** Call draw(tables) with the node's `score_table` output: after a run, and with the last one when the node is read. */
export function onScores(node, draw) {
    onOutput(node, ({ score_table: tables }) => {
        if (!tables) return;
        remember(node, "score_table", tables);
        draw(tables);
    });
    onReady(node, () => draw(recall(node, "score_table") ?? []));
}

for (const [name, reference] of [["NRIQAScore", false], ["EvaluateAgainstReference", true]]) {
    onNewNodes(name, [`RealISR_${name}`], (node) => {
        addMetricChoice(node, reference);
        const box = addPanel(node, "score_table", HEIGHT, "realisr-scores");
        onScores(node, (tables) => drawTables(box, tables, {}));
    });
}

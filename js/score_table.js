// The table of scores on NR-IQA Score, NR-IQA Best-of-N Selector and Evaluate Against Reference, from the node's `score_table` output.
import { addPanel, addStyle, element, onNewNodes, onOutput, onReady, recall, remember } from "./frontend.js";

const NODES = ["RealISR_NRIQAScore", "RealISR_NRIQABestOfN", "RealISR_EvaluateAgainstReference"];
const HEIGHT = 160;

addStyle(`
    .realisr-scores table { border-collapse: collapse; width: 100%; white-space: nowrap; }
    .realisr-scores caption { text-align: left; padding: 4px 6px; opacity: 0.7; }
    .realisr-scores th, .realisr-scores td { padding: 2px 6px; text-align: right; }
    .realisr-scores small { opacity: 0.6; }
    .realisr-scores .chosen { font-weight: bold; background: color-mix(in srgb, currentColor 15%, transparent); }
`);

function row(cells, className = "") {
    const made = element("tr", { className });
    made.append(...cells);
    return made;
}

function scoreCell(score, rank) {
    const cell = element("td", {}, score === null ? "–" : score.toFixed(4));
    if (rank !== undefined) cell.append(" ", element("small", {}, `#${rank}`));
    return cell;
}

function drawSection(metrics, { title, rows }) {
    const table = element("table");
    if (title) table.append(element("caption", {}, title));
    const ranked = rows.some((item) => item.ranks);
    const names = metrics.map(({ name, lower_is_better }) => `${name} ${lower_is_better ? "↓" : "↑"}`);
    table.append(row(["index", ...names, ...(ranked ? ["rank sum", "mean"] : [])].map((text) => element("th", {}, text))));
    for (const item of rows) {
        const cells = [element("td", {}, `${item.index}${item.chosen ? " ★" : ""}`)];
        cells.push(...item.scores.map((score, index) => scoreCell(score, item.ranks?.[index])));
        if (ranked) cells.push(element("td", {}, `${item.rank_sum}`), element("td", {}, item.mean.toFixed(4)));
        const line = row(cells, item.chosen ? "chosen" : "");
        if (item.prompt) line.title = item.prompt;
        table.append(line);
    }
    return table;
}

onNewNodes("ScoreTable", NODES, (node) => {
    const box = addPanel(node, "score_table", HEIGHT, "realisr-scores");
    const draw = (tables) => {
        const drawn = tables.flatMap(({ metrics, sections }) => sections.map((section) => drawSection(metrics, section)));
        box.replaceChildren(...drawn);
    };
    onOutput(node, ({ score_table: tables }) => {
        if (!tables) return;
        remember(node, "score_table", tables);
        draw(tables);
    });
    onReady(node, () => draw(recall(node, "score_table") ?? []));
});

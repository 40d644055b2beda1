// The table of scores on NR-IQA Score, NR-IQA Best-of-N Selector and Evaluate Against Reference, from the node's `score_table` output.
import { app } from "../../scripts/app.js";

const NODES = ["RealISR_NRIQAScore", "RealISR_NRIQABestOfN", "RealISR_EvaluateAgainstReference"];
const ROW_HEIGHT = 20;
const MAX_HEIGHT = 240;
const COLUMN_WIDTH = 80;
const STYLE = `
    .realisr-scores { overflow: auto; font: 12px sans-serif; color: var(--input-text); background: var(--comfy-input-bg); }
    .realisr-scores table { border-collapse: collapse; width: 100%; white-space: nowrap; }
    .realisr-scores caption { text-align: left; padding: 4px 6px; opacity: 0.7; }
    .realisr-scores th, .realisr-scores td { padding: 2px 6px; text-align: right; }
    .realisr-scores small { opacity: 0.6; }
    .realisr-scores .chosen { font-weight: bold; background: color-mix(in srgb, currentColor 15%, transparent); }
`;

function element(tag, text = "", className = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = className;
    return made;
}

function row(cells, className = "") {
    const made = element("tr", "", className);
    made.append(...cells);
    return made;
}

function scoreCell(score, rank) {
    const cell = element("td", score === null ? "–" : score.toFixed(4));
    if (rank !== undefined) cell.append(" ", element("small", `#${rank}`));
    return cell;
}

function drawSection(metrics, { title, rows }) {
    const table = element("table");
    if (title) table.append(element("caption", title));
    const ranked = rows.some((item) => item.ranks);
    const names = metrics.map(({ name, lower_is_better }) => `${name} ${lower_is_better ? "↓" : "↑"}`);
    table.append(row(["index", ...names, ...(ranked ? ["rank sum", "mean"] : [])].map((text) => element("th", text))));
    for (const item of rows) {
        const cells = [element("td", `${item.index}${item.chosen ? " ★" : ""}`)];
        cells.push(...item.scores.map((score, index) => scoreCell(score, item.ranks?.[index])));
        if (ranked) cells.push(element("td", `${item.rank_sum}`), element("td", item.mean.toFixed(4)));
        const line = row(cells, item.chosen ? "chosen" : "");
        if (item.prompt) line.title = item.prompt;
        table.append(line);
    }
    return table;
}

app.registerExtension({
    name: "RealISR.ScoreTable",
    setup() {
        document.head.append(element("style", STYLE));
    },
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (!NODES.includes(nodeData.name)) return;
        const onExecuted = nodeType.prototype.onExecuted;
        nodeType.prototype.onExecuted = function (output) {
            onExecuted?.apply(this, arguments);
            if (!output?.score_table) return;
            let widget = this.widgets?.find(({ name }) => name === "score_table");
            if (!widget) {
                const box = element("div", "", "realisr-scores");
                // Taller tables scroll.
                const getMinHeight = () => Math.min(MAX_HEIGHT, ROW_HEIGHT * (box.querySelectorAll("tr, caption").length + 1));
                widget = this.addDOMWidget("score_table", "realisr_scores", box, { serialize: false, getMinHeight });
            }
            const drawn = output.score_table.flatMap(({ metrics, sections }) =>
                sections.map((section) => drawSection(metrics, section)),
            );
            widget.element.replaceChildren(...drawn);
            const columns = Math.max(...drawn.map((table) => table.rows[0].cells.length));
            const [width, height] = this.computeSize();
            this.setSize([Math.max(this.size[0], width, COLUMN_WIDTH * columns), Math.max(this.size[1], height)]);
        };
    },
});

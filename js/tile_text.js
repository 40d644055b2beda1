// The text of Edit Patch Prompts: blocks of a heading and a prompt, as services/vlm/patch_prompts.py reads and writes it.

const HEADING = /^===\s*(?:whole picture|tile (\d+)(?:,? *\(?row (\d+), column (\d+)\)?)?)\s*===\s*$/i;

/** The blocks of a text. number: 0 is the whole picture. What stands before the first heading is kept in `lead`. */
export function readBlocks(text) {
    const blocks = [];
    const lead = [];
    for (const line of text.replaceAll("\r\n", "\n").split("\n")) {
        const found = line.match(HEADING);
        if (found) {
            const [number, row, column] = found.slice(1).map(Number);
            blocks.push({ number: found[1] === undefined ? 0 : number || -1, row, column, heading: line, lines: [] });
        } else (blocks.at(-1)?.lines ?? lead).push(line);
    }
    return { lead: lead.join("\n").trim(), blocks };
}

/** Number -> prompt of the blocks there are. */
export function readPrompts(text) {
    return new Map(readBlocks(text).blocks.map(({ number, lines }) => [number, lines.join("\n").trim()]));
}

/** The text with other prompts. prompts: number -> prompt, or undefined to take the block out. columns: of the grid. */
export function writePrompts(text, prompts, columns) {
    const { lead, blocks } = readBlocks(text);
    let kept = blocks;
    for (const [number, prompt] of prompts) {
        const there = kept.find((block) => block.number === number);
        if (prompt === undefined) kept = kept.filter((block) => block !== there);
        else {
            // No line of a prompt is a heading.
            const lines = prompt.split("\n").map((line) => (line.startsWith("===") ? ` ${line}` : line));
            if (there) there.lines = lines;
            else kept.push({ number, heading: headingOf(number, columns), lines });
        }
    }
    kept.sort((a, b) => a.number - b.number);
    const written = kept.map(({ heading, lines }) => `${heading}\n${lines.join("\n").trimEnd()}`);
    return [lead, ...written].filter(Boolean).join("\n\n");
}

function headingOf(number, columns) {
    if (!number) return "=== whole picture ===";
    const { row, column } = placeOf(number, columns);
    return `=== tile ${number} (row ${row}, column ${column}) ===`;
}

/** Row and column of a tile, from 1. */
export function placeOf(number, columns) {
    return { row: 1 + Math.floor((number - 1) / columns), column: 1 + ((number - 1) % columns) };
}

/** A grid that the headings tell of, for a text that was never run: tiles of 1 x 1. Undefined where they tell of none. */
export function gridOf(text) {
    const places = readBlocks(text).blocks.filter(({ row }) => row);
    const rows = Math.max(0, ...places.map(({ row }) => row));
    const columns = Math.max(0, ...places.map(({ column }) => column));
    if (!rows || rows * columns > 10000) return undefined;
    const upTo = (count) => [...Array(count).keys()];
    return { size: [columns, rows], tile: [1, 1], rows: upTo(rows), columns: upTo(columns) };
}

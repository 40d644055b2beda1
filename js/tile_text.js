// The text of Edit Patch Prompts: blocks of a heading and a prompt, as services/vlm/patch_prompts.py reads and writes it.

const HEADING = /^===\s*(?:whole picture|tile (\d+)(?:,? *\(?row \d+, column \d+\)?)?)\s*===\s*$/i;

// number: 0 is the whole picture. What stands before the first heading is kept in `lead`.
function readBlocks(text) {
  const [lead, blocks] = [[], []];
  for (const line of text.replaceAll("\r\n", "\n").split("\n")) {
    const found = line.match(HEADING);
    if (!found) (blocks.at(-1)?.lines ?? lead).push(line);
    else blocks.push({ number: found[1] === undefined ? 0 : Number(found[1]) || -1, heading: line, lines: [] });
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
  const kept = blocks.filter(({ number }) => prompts.get(number) !== undefined || !prompts.has(number));
  for (const [number, prompt] of prompts) {
    if (prompt === undefined) continue;
    // No line of a prompt is a heading.
    const lines = prompt.split("\n").map((line) => (line.startsWith("===") ? ` ${line}` : line));
    const there = kept.find((block) => block.number === number);
    if (there) there.lines = lines;
    else kept.push({ number, heading: headingOf(number, columns), lines });
  }
  kept.sort((a, b) => a.number - b.number);
  return [lead, ...kept.map(({ heading, lines }) => `${heading}\n${lines.join("\n").trimEnd()}`)].filter(Boolean).join("\n\n");
}

function headingOf(number, columns) {
  const { row, column } = placeOf(number, columns);
  return number ? `=== tile ${number} (row ${row}, column ${column}) ===` : "=== whole picture ===";
}

/** Row and column of a tile, from 1. */
export function placeOf(number, columns) {
  return { row: 1 + Math.floor((number - 1) / columns), column: 1 + ((number - 1) % columns) };
}

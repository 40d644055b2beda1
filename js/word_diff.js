// Which words of a text were added to, and which removed from, the text before it.

const MOST = 4_000_000; // Cells of the table; larger texts are shown as they are.

// The words and signs of a text in any language, each with the space behind it.
function wordsOf(text) {
  const words = [];
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)) {
    if (words.length && !segment.trim()) words.push(words.pop() + segment);
    else words.push(segment);
  }
  return words;
}

/** Parts [{kind: "same" | "added" | "removed", text}] that, without the removed, spell `after`. */
export function wordDiff(before, after) {
  const [old, made] = [before, after].map(wordsOf);
  const same = (i, j) => old[i].trimEnd() === made[j].trimEnd();
  if (old.length * made.length > MOST) return [{ kind: "same", text: after }];
  // longest[i][j]: words that old from i and made from j have in common.
  const longest = Array.from({ length: old.length + 1 }, () => new Uint16Array(made.length + 1));
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = made.length - 1; j >= 0; j--) {
      longest[i][j] = same(i, j) ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const parts = [];
  const put = (kind, text) => (parts.at(-1)?.kind === kind ? (parts.at(-1).text += text) : parts.push({ kind, text }));
  let [i, j] = [0, 0];
  while (i < old.length || j < made.length) {
    if (i < old.length && j < made.length && same(i, j)) {
      put("same", made[j++]);
      i++;
    } else if (i < old.length && (j === made.length || longest[i + 1][j] >= longest[i][j + 1])) {
      put("removed", old[i++]);
    } else {
      put("added", made[j++]);
    }
  }
  return parts;
}

// A picture with its tiles, drawn on one canvas however many tiles there are.
import { placeOf } from "./tile_text.js";

export const COLOURS = { empty: "#9a9a9a", captioned: "#ffffff", edited: "#ffb000", failed: "#ff5050" };
const FILLS = { empty: "#0008", edited: "#ffb00033", failed: "#ff3c3c59" };
const CHOSEN = "#4fa8ff";
const DENSITY = 2;

/** Places of the tiles on a canvas. grid: {size, tile, rows, columns} as the node tells it, in pixels of the picture. */
export class TileMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.brush = canvas.getContext("2d");
  }

  /** Take another grid and picture, or the canvas's new size. */
  lay(grid, picture) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    Object.assign(this.canvas, { width: width * DENSITY, height: height * DENSITY });
    Object.assign(this, { grid, picture, width, height });
    if (!grid) return;
    const [across, down] = grid.size;
    this.scale = Math.min(width / across, height / down);
    this.left = (width - across * this.scale) / 2;
    this.top = (height - down * this.scale) / 2;
    // A tile's own cell ends in the middle of what it shares with its neighbours.
    this.across = edges(grid.columns, grid.tile[0], across);
    this.down = edges(grid.rows, grid.tile[1], down);
  }

  /** The number of the tile at a point of the canvas, in its CSS pixels; undefined beside the picture. */
  at(x, y) {
    if (!this.grid) return undefined;
    const column = cellOf(this.across, (x - this.left) / this.scale);
    const row = cellOf(this.down, (y - this.top) / this.scale);
    return column < 0 || row < 0 ? undefined : 1 + row * this.grid.columns.length + column;
  }

  /** Draw all. states: by number; chosen: a set of numbers; full: numbers whose whole extent is shown. */
  draw(states, chosen, full) {
    const { brush, grid } = this;
    brush.setTransform(DENSITY, 0, 0, DENSITY, 0, 0);
    brush.clearRect(0, 0, this.width, this.height);
    if (!grid) return;
    const area = this.box(0, 0, ...grid.size);
    this.fill(area, "#3a3a3a");
    if (this.picture?.naturalWidth) brush.drawImage(this.picture, ...area);
    for (let number = 1; number < states.length; number++) this.drawCell(number, states[number], chosen.has(number));
    for (const number of full) this.drawExtent(number);
  }

  drawCell(number, state, chosen) {
    const { brush } = this;
    const { row, column } = placeOf(number, this.grid.columns.length);
    const area = this.box(this.across[column - 1], this.down[row - 1], this.across[column], this.down[row]);
    const [x, y, width, height] = area;
    if (FILLS[state]) this.fill(area, FILLS[state]);
    const line = chosen ? 3 : state === "captioned" || state === "empty" ? 1 : 2;
    const inset = line / 2 + 0.5;
    this.frame([x + inset, y + inset, width - 2 * inset, height - 2 * inset], line, chosen ? CHOSEN : COLOURS[state]);
    const side = Math.min(width, height);
    if (side < 20) return;
    brush.font = `${Math.min(14, side / 2.5)}px sans-serif`;
    brush.textBaseline = "top";
    Object.assign(brush, { lineWidth: 3, strokeStyle: "#000c", fillStyle: "#fff" });
    brush.strokeText(number, x + 5, y + 5);
    brush.fillText(number, x + 5, y + 5);
  }

  /** The true extent of a tile; what it shares with its neighbours is hatched. */
  drawExtent(number) {
    const { brush, grid } = this;
    const { row, column } = placeOf(number, grid.columns.length);
    const [left, right, ownLeft, ownRight] = extent(grid.columns, grid.tile[0], column - 1);
    const [top, bottom, ownTop, ownBottom] = extent(grid.rows, grid.tile[1], row - 1);
    const outer = this.box(left, top, right, bottom);
    brush.save();
    brush.beginPath();
    brush.rect(...outer);
    if (ownRight > ownLeft && ownBottom > ownTop) brush.rect(...this.box(ownLeft, ownTop, ownRight, ownBottom));
    brush.clip("evenodd");
    this.hatch(outer);
    brush.restore();
    this.frame(outer, 3, "#0009");
    this.frame(outer, 1.5, CHOSEN);
  }

  hatch([x, y, width, height]) {
    const { brush } = this;
    this.fill([x, y, width, height], "#0005");
    brush.beginPath();
    for (let along = -height; along < width; along += 8) {
      brush.moveTo(x + along, y + height);
      brush.lineTo(x + along + height, y);
    }
    Object.assign(brush, { lineWidth: 1.2, strokeStyle: "#fffb" });
    brush.stroke();
  }

  fill(area, colour) {
    this.brush.fillStyle = colour;
    this.brush.fillRect(...area);
  }

  frame(area, lineWidth, strokeStyle) {
    Object.assign(this.brush, { lineWidth, strokeStyle });
    this.brush.strokeRect(...area);
  }

  /** [x, y, width, height] on the canvas of what lies between two points of the picture. */
  box(left, top, right, bottom) {
    const { scale } = this;
    return [this.left + left * scale, this.top + top * scale, (right - left) * scale, (bottom - top) * scale];
  }
}

function edges(starts, tile, length) {
  return [0, ...starts.slice(1).map((start, index) => (start + starts[index] + tile) / 2), length];
}

// Negative before the first edge and beyond the last one.
function cellOf(edges, position) {
  return edges.findIndex((edge) => position < edge) - 1;
}

// [first, last, first of its own, last of its own] of a tile along one axis.
function extent(starts, tile, index) {
  const [start, end] = [starts[index], starts[index] + tile];
  return [start, end, index ? starts[index - 1] + tile : start, starts[index + 1] ?? end];
}

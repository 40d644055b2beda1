// A picture with its tiles, drawn on one canvas however many tiles there are.

export const COLOURS = { empty: "#9a9a9a", captioned: "#ffffff", edited: "#ffb000", failed: "#ff5050" };
const FILLS = { empty: "rgba(0, 0, 0, 0.5)", edited: "rgba(255, 176, 0, 0.2)", failed: "rgba(255, 60, 60, 0.35)" };
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
        const { canvas } = this;
        [this.grid, this.picture] = [grid, picture];
        [this.width, this.height] = [canvas.clientWidth, canvas.clientHeight];
        [canvas.width, canvas.height] = [this.width * DENSITY, this.height * DENSITY];
        if (!grid) return;
        const [width, height] = grid.size;
        this.scale = Math.min(this.width / width, this.height / height);
        this.left = (this.width - width * this.scale) / 2;
        this.top = (this.height - height * this.scale) / 2;
        // A tile's own cell ends in the middle of what it shares with its neighbours.
        this.across = edges(grid.columns, grid.tile[0], width);
        this.down = edges(grid.rows, grid.tile[1], height);
    }

    /** The number of the tile at a point of the canvas, in its CSS pixels; undefined beside the picture. */
    at(x, y) {
        if (!this.grid) return undefined;
        const column = cellOf(this.across, (x - this.left) / this.scale);
        const row = cellOf(this.down, (y - this.top) / this.scale);
        return column === undefined || row === undefined ? undefined : 1 + row * this.grid.columns.length + column;
    }

    /** Draw all. tiles: number -> {state, changed}; chosen: a set of numbers; full: numbers whose whole extent is shown. */
    draw(tiles, chosen, full) {
        const { brush, grid } = this;
        brush.setTransform(DENSITY, 0, 0, DENSITY, 0, 0);
        brush.clearRect(0, 0, this.width, this.height);
        if (!grid) return;
        const area = this.box(0, 0, ...grid.size);
        brush.fillStyle = "#3a3a3a";
        brush.fillRect(...area);
        if (this.picture) brush.drawImage(this.picture, ...area);
        const count = grid.rows.length * grid.columns.length;
        for (let number = 1; number <= count; number++) this.drawCell(number, tiles(number), chosen.has(number));
        for (const number of full) this.drawExtent(number);
    }

    drawCell(number, { state, changed }, chosen) {
        const { brush } = this;
        const { row, column } = this.place(number);
        const [left, top] = [this.across[column], this.down[row]];
        const [x, y, width, height] = this.box(left, top, this.across[column + 1] - left, this.down[row + 1] - top);
        if (FILLS[state]) {
            brush.fillStyle = FILLS[state];
            brush.fillRect(x, y, width, height);
        }
        const line = state === "captioned" || state === "empty" ? 1 : 2;
        brush.lineWidth = chosen ? 3 : line;
        brush.strokeStyle = chosen ? CHOSEN : COLOURS[state];
        const inset = brush.lineWidth / 2 + 0.5;
        brush.strokeRect(x + inset, y + inset, width - 2 * inset, height - 2 * inset);
        const side = Math.min(width, height);
        if (side >= 20) {
            brush.font = `${Math.min(14, side / 2.5)}px sans-serif`;
            brush.textBaseline = "top";
            brush.lineWidth = 3;
            brush.strokeStyle = "rgba(0, 0, 0, 0.75)";
            brush.fillStyle = "#fff";
            brush.strokeText(number, x + 5, y + 5);
            brush.fillText(number, x + 5, y + 5);
        }
        if (changed) {
            brush.beginPath();
            brush.arc(x + width - side / 6 - 2, y + side / 6 + 2, Math.min(5, side / 6), 0, 7);
            brush.fillStyle = CHOSEN;
            brush.fill();
        }
    }

    /** The true extent of a tile; what it shares with its neighbours is hatched. */
    drawExtent(number) {
        const { brush, grid } = this;
        const { row, column } = this.place(number);
        const [left, right, ownLeft, ownRight] = extent(grid.columns, grid.tile[0], column);
        const [top, bottom, ownTop, ownBottom] = extent(grid.rows, grid.tile[1], row);
        const outer = this.box(left, top, right - left, bottom - top);
        const own = this.box(ownLeft, ownTop, Math.max(ownRight - ownLeft, 0), Math.max(ownBottom - ownTop, 0));
        brush.save();
        brush.beginPath();
        brush.rect(...outer);
        if (own[2] && own[3]) brush.rect(...own);
        brush.clip("evenodd");
        this.hatch(outer);
        brush.restore();
        brush.setLineDash([]);
        brush.lineWidth = 3;
        brush.strokeStyle = "rgba(0, 0, 0, 0.6)";
        brush.strokeRect(...outer);
        brush.lineWidth = 1.5;
        brush.strokeStyle = CHOSEN;
        brush.strokeRect(...outer);
    }

    hatch([x, y, width, height]) {
        const { brush } = this;
        brush.fillStyle = "rgba(0, 0, 0, 0.3)";
        brush.fillRect(x, y, width, height);
        brush.beginPath();
        for (let along = -height; along < width; along += 8) {
            brush.moveTo(x + along, y + height);
            brush.lineTo(x + along + height, y);
        }
        brush.lineWidth = 1.2;
        brush.strokeStyle = "rgba(255, 255, 255, 0.7)";
        brush.stroke();
    }

    place(number) {
        const columns = this.grid.columns.length;
        return { row: Math.floor((number - 1) / columns), column: (number - 1) % columns };
    }

    // From pixels of the picture to those of the canvas.
    box(left, top, width, height) {
        return [this.left + left * this.scale, this.top + top * this.scale, width * this.scale, height * this.scale];
    }
}

function edges(starts, tile, length) {
    return [0, ...starts.slice(1).map((start, index) => (start + starts[index] + tile) / 2), length];
}

function cellOf(edges, position) {
    const cell = edges.findIndex((edge) => position < edge) - 1;
    return cell >= 0 ? cell : undefined;
}

// [first, last, first of its own, last of its own] of a tile along one axis.
function extent(starts, tile, index) {
    const [start, end] = [starts[index], starts[index] + tile];
    return [start, end, index ? starts[index - 1] + tile : start, starts[index + 1] ?? end];
}

"use strict";
// A heatmap as GET /studies/{id}/heatmap.json answers it: its colours, and outlines at the operating points.

const FINER = 8; // points of the drawn map for one cell
const LOWEST = -14; // log odds that stand for "nothing here"

class Heat {
  constructor(told, film) {
    Object.assign(this, told);
    // the film's place in the map, and from a cell's edge to the film's pixels
    const [left, top, width, height] = told.film;
    this.toFilm = { x: film.width / width, y: film.height / height, left, top };
    this.canvas = document.createElement("canvas");
    [this.canvas.width, this.canvas.height] = [told.width * FINER, told.height * FINER];
    this.fine = finer(told.cells, told.width, told.height);
    this.colour(0);
  }

  // Colour what is at or over the threshold, a cell's probability.
  colour(threshold) {
    const context = this.canvas.getContext("2d");
    const picture = context.createImageData(this.canvas.width, this.canvas.height);
    const out = new Uint32Array(picture.data.buffer);
    const least = Math.max(threshold, 1e-9);
    for (let i = 0; i < out.length; i++) {
      const value = Math.min(this.full, this.fine[i]);
      out[i] = value >= least ? Heat.palette[Math.round((255 * value) / this.full)] : 0;
    }
    context.putImageData(picture, 0, 0);
  }

  // view: as Film.draw has it.
  draw(context, view, opacity) {
    const { x, y, left, top } = this.toFilm;
    context.save();
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = true;
    const [across, down, width, height] = this.field;
    context.beginPath(); // the square's margin holds no film
    context.rect(
      ((across - left) * x - view.x) * view.scale, ((down - top) * y - view.y) * view.scale,
      width * x * view.scale, height * y * view.scale,
    );
    context.clip();
    context.drawImage(
      this.canvas,
      (-left * x - view.x) * view.scale, (-top * y - view.y) * view.scale,
      this.width * x * view.scale, this.height * y * view.scale,
    );
    context.restore();
  }

  // Where the local probability reaches `level`: closed lines in the film's pixels, [[[x, y], …], …].
  outline(level) {
    const logits = this.local.map((p) => (p > 0 && p < 1 ? Math.max(LOWEST, Math.log(p / (1 - p))) : p ? -LOWEST : LOWEST));
    const [width, height] = [this.width * FINER, this.height * FINER];
    const { x, y, left, top } = this.toFilm;
    const lines = marchingSquares(finer(logits, this.width, this.height), width, height, Math.log(level / (1 - level)));
    const place = ([u, v]) => [((u + 0.5) / FINER - left) * x, ((v + 0.5) / FINER - top) * y];
    return lines.map((line) => line.map(place));
  }
}

// From transparent over amber to red, as the API's heatmap.png: readable on gray, and by alpha without colour.
Heat.palette = Uint32Array.from({ length: 256 }, (_, level) => {
  const share = level / 255;
  const green = Math.round(200 * (1 - share) ** 0.8);
  const [blue, alpha] = [Math.round(40 * (1 - share)), Math.round(230 * share ** 1.3)];
  return ((alpha << 24) | (blue << 16) | (green << 8) | 255) >>> 0;
});

// Cubic interpolation (Catmull & Rom 1974) along both axes; the edge's cells go on beyond it.
function finer(values, width, height) {
  const across = new Float32Array(height * width * FINER);
  const out = new Float32Array(height * FINER * width * FINER);
  const spread = (from, count, stride, to, toStride) => {
    const at = (i) => from(Math.min(count - 1, Math.max(0, i)) * stride);
    for (let i = 0; i < count * FINER; i++) {
      const where = (i + 0.5) / FINER - 0.5;
      const cell = Math.floor(where);
      const t = where - cell;
      const [a, b, c, d] = [at(cell - 1), at(cell), at(cell + 1), at(cell + 2)];
      const value = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
      to(i * toStride, value);
    }
  };
  for (let row = 0; row < height; row++) {
    const [begin, end] = [row * width, row * width * FINER];
    spread((i) => values[begin + i], width, 1, (i, value) => (across[end + i] = value), 1);
  }
  const wide = width * FINER;
  for (let column = 0; column < wide; column++) {
    spread((i) => across[i + column], height, wide, (i, value) => (out[i + column] = value), wide);
  }
  return out;
}

// Marching squares (Lorensen & Cline 1987, in the plane). Beyond the edge everything is below the level, so lines close.
// Returns lines of points [x, y] between grid points; a saddle is cut so that its high corners stay apart.
function marchingSquares(values, width, height, level) {
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? -1e9 : values[y * width + x] - level);
  const next = new Map(); // from an edge that a line enters a square by, to [the edge it leaves by, the point there]
  const cross = (x1, y1, x2, y2) => {
    const [a, b] = [at(x1, y1), at(x2, y2)];
    const t = Math.abs(b) > 1e8 ? 0 : Math.abs(a) > 1e8 ? 1 : a / (a - b);
    return [x1 + t * (x2 - x1), y1 + t * (y2 - y1)];
  };
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const high = [at(x, y) >= 0, at(x + 1, y) >= 0, at(x + 1, y + 1) >= 0, at(x, y + 1) >= 0];
      const kind = high.reduce((sum, one, i) => sum + (one ? 1 << i : 0), 0);
      if (kind === 0 || kind === 15) continue;
      const edges = [`h${x},${y}`, `v${x + 1},${y}`, `h${x},${y + 1}`, `v${x},${y}`]; // top, right, bottom, left
      const points = [
        () => cross(x, y, x + 1, y), () => cross(x + 1, y, x + 1, y + 1),
        () => cross(x, y + 1, x + 1, y + 1), () => cross(x, y, x, y + 1),
      ];
      // walking round the corners: a line comes in where low turns to high, and goes out at the high run's end
      for (let i = 0; i < 4; i++) {
        if (high[i] || !high[(i + 1) % 4]) continue;
        let j = (i + 1) % 4;
        while (high[(j + 1) % 4]) j = (j + 1) % 4;
        next.set(edges[j], { to: edges[i], point: points[j]() });
      }
    }
  }
  const lines = [];
  while (next.size) {
    const line = [];
    let [edge] = next.keys();
    while (next.has(edge)) {
      const { to, point } = next.get(edge);
      next.delete(edge);
      line.push(point);
      edge = to;
    }
    if (line.length > 2) lines.push(line);
  }
  return lines;
}

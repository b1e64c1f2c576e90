"use strict";
// One film's gray values, and how they are drawn through a window. A preview and a full film are both one of these.

const TOP = 65536;

class Film {
  // pixels: Uint16Array, row by row; rows, columns: of these pixels; width, height: of the film as it was sent.
  // They need not be square; width and height are in square ones.
  // field: {x, y, width, height} of the exposed field, in shares. Presets and ranges go by what lies in it.
  // window: [black, white] in pixels; slope * pixel + intercept are the file's units.
  constructor({ pixels, rows, columns, width, height, field, window, shape = "LINEAR", slope = 1, intercept = 0, words }) {
    Object.assign(this, { width, height, field, window, shape, slope, intercept, words });
    this.levels = [{ pixels, rows, columns }];
    this.lut = new Uint32Array(TOP);
    this.scratch = document.createElement("canvas");
    const histogram = new Uint32Array(TOP);
    const [left, top] = [Math.floor(field.x * columns), Math.floor(field.y * rows)];
    const right = Math.min(columns, Math.max(left + 1, Math.round((field.x + field.width) * columns)));
    const bottom = Math.min(rows, Math.max(top + 1, Math.round((field.y + field.height) * rows)));
    for (let y = top; y < bottom; y++) for (let i = y * columns + left; i < y * columns + right; i++) histogram[pixels[i]]++;
    this.counted = (bottom - top) * (right - left);
    this.histogram = histogram;
    this.least = histogram.findIndex((count) => count > 0);
    this.most = histogram.findLastIndex((count) => count > 0);
  }

  // A preview: a decoded JPEG that already went through the file's own window.
  static ofPreview(image, { width, height, field }) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const pixels = new Uint16Array(data.length / 4);
    for (let i = 0; i < pixels.length; i++) pixels[i] = data[4 * i];
    const words = "preview, 8 bit";
    return new Film({ pixels, rows: canvas.height, columns: canvas.width, width, height, field, window: [0, 255], words });
  }

  // A full film, as GET /studies/{id}/film answers it; the browser has unpacked it already.
  static ofAnswer(buffer, about, { width, height, field }) {
    const { rows, columns, bits, slope, intercept, window, window_shape: shape, exact } = about;
    const words = `full film, ${bits} bit${exact ? "" : ", scaled"}`;
    const pixels = new Uint16Array(buffer); // little endian, as every browser's machine is
    return new Film({ pixels, rows, columns, width, height, field, window, shape, slope, intercept, words });
  }

  // The gray value below which a share of the field's pixels lies.
  quantile(share) {
    let left = share * this.counted;
    for (let value = this.least; value < this.most; value++) {
      left -= this.histogram[value];
      if (left <= 0) return value;
    }
    return this.most;
  }

  // [black, white] of a preset; with a negative slope the greater value is the darker one.
  preset(name) {
    if (name === "default") return [...this.window];
    const sides = name === "bone" ? [this.quantile(0.5), this.quantile(0.9995)] : [this.least, this.most];
    if (sides[0] === sides[1]) sides[1] += 1;
    return this.slope < 0 ? sides.reverse() : sides;
  }

  setWindow([black, white], inverted) {
    const span = white - black || 1;
    for (let value = 0; value < TOP; value++) {
      let share = (value - black) / span;
      if (this.shape === "SIGMOID") share = 1 / (1 + Math.exp(-4 * (share - 0.5)));
      if (inverted) share = 1 - share;
      const gray = share <= 0 ? 0 : share >= 1 ? 255 : Math.round(share * 255);
      this.lut[value] = 0xff000000 | (gray * 0x010101);
    }
  }

  // The level whose pixels are at most as large as the screen's: drawing costs what is seen, not what was sent.
  level(scale) {
    let [number, size] = [0, (scale * this.width) / this.levels[0].columns];
    while (size * 2 <= 1) {
      number += 1;
      size *= 2;
      if (!this.levels[number]) this.levels[number] = halved(this.levels[number - 1]);
    }
    return this.levels[number];
  }

  // view: x, y, the film's point in the canvas's upper left corner; scale, canvas pixels for one of the film.
  draw(context, view) {
    const { pixels, rows, columns } = this.level(view.scale);
    const across = columns / this.width;
    const down = rows / this.height;
    const left = Math.max(0, Math.floor(view.x * across) - 1);
    const top = Math.max(0, Math.floor(view.y * down) - 1);
    const right = Math.min(columns, Math.ceil((view.x + context.canvas.width / view.scale) * across) + 1);
    const bottom = Math.min(rows, Math.ceil((view.y + context.canvas.height / view.scale) * down) + 1);
    if (right <= left || bottom <= top) return;
    const [width, height] = [right - left, bottom - top];
    const seen = new ImageData(width, height);
    const out = new Uint32Array(seen.data.buffer);
    for (let y = 0, to = 0; y < height; y++) {
      let from = (top + y) * columns + left;
      for (let x = 0; x < width; x++) out[to++] = this.lut[pixels[from++]];
    }
    if (this.scratch.width < width) this.scratch.width = width;
    if (this.scratch.height < height) this.scratch.height = height;
    this.scratch.getContext("2d").putImageData(seen, 0, 0);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "medium";
    context.drawImage(
      this.scratch, 0, 0, width, height,
      (left / across - view.x) * view.scale, (top / down - view.y) * view.scale,
      (width / across) * view.scale, (height / down) * view.scale,
    );
  }
}

function halved({ pixels, rows, columns }) {
  const [height, width] = [Math.max(1, rows >> 1), Math.max(1, columns >> 1)];
  const [down, across] = [rows > 1 ? columns : 0, columns > 1 ? 1 : 0];
  const small = new Uint16Array(height * width);
  for (let y = 0, to = 0; y < height; y++) {
    let from = 2 * y * columns;
    for (let x = 0; x < width; x++, from += 2) {
      small[to++] = (pixels[from] + pixels[from + across] + pixels[from + down] + pixels[from + down + across]) >> 2;
    }
  }
  return { pixels: small, rows: height, columns: width };
}

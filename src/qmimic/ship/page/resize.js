// A picture in the detector's input, to the pixel as training and the runtime fit it: shrunk by whole factors first, then
// by Pillow's bilinear filter in its own integers.

const GAP = 3; // a side is shrunk by a whole factor until it is this many times too large
const BITS = 22; // of a weight behind the point
const FILL = [124, 116, 104]; // the mean that the detector subtracts

// {width, height} of a picture in an input, as Python rounds
export function inner(width, height, [rows, columns]) {
  const scale = Math.min(columns / width, rows / height);
  const side = (own, most) => Math.min(most, Math.max(1, halfToEven(own * scale)));
  return { width: side(width, columns), height: side(height, rows) };
}

function halfToEven(value) {
  const low = Math.floor(value);
  const rest = value - low;
  return rest === 0.5 ? low + (low % 2) : Math.round(value);
}

// Pixels RGB uint8 [rows, columns, 3] of an ImageData
export function fitted({ data, width, height }, size) {
  const wanted = inner(width, height, size);
  const [rows, columns] = size;
  let picture = { data: new Uint8Array(width * height * 3), width, height };
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    picture.data[to] = data[from];
    picture.data[to + 1] = data[from + 1];
    picture.data[to + 2] = data[from + 2];
  }
  if (width !== wanted.width || height !== wanted.height) {
    const across = Math.floor(width / wanted.width / GAP) || 1;
    const down = Math.floor(height / wanted.height / GAP) || 1;
    if (across > 1 || down > 1) picture = reduced(picture, across, down);
    const sides = [
      [wanted.width, Math.fround(width / across), true],
      [wanted.height, Math.fround(height / down), false],
    ];
    // As Pillow does (13.0) with pictures that lose far more rows than columns: each pass rounds, so the order matters.
    const lost = picture.height - wanted.height;
    if (lost > 0 && lost > 2 * (picture.width - wanted.width)) sides.reverse();
    for (const side of sides) picture = resampled(picture, ...side);
  }
  if (picture.width === columns && picture.height === rows) return picture.data;
  const pixels = new Uint8Array(rows * columns * 3);
  for (let place = 0; place < pixels.length; place += 1) pixels[place] = FILL[place % 3];
  const row = 3 * picture.width;
  for (let y = 0; y < picture.height; y += 1) {
    pixels.set(picture.data.subarray(y * row, (y + 1) * row), y * 3 * columns);
  }
  return pixels;
}

// Means of rectangles; those at the right and the lower edge may be smaller.
function reduced({ data, width, height }, across, down) {
  const [columns, rows] = [Math.ceil(width / across), Math.ceil(height / down)];
  const out = new Uint8Array(columns * rows * 3);
  for (let y = 0, to = 0; y < rows; y += 1) {
    const bottom = Math.min(height, (y + 1) * down);
    for (let x = 0; x < columns; x += 1) {
      const right = Math.min(width, (x + 1) * across);
      const count = (bottom - y * down) * (right - x * across);
      const factor = Math.floor(2 ** 24 / count);
      for (let channel = 0; channel < 3; channel += 1, to += 1) {
        let sum = Math.floor(count / 2);
        for (let v = y * down; v < bottom; v += 1) {
          for (let u = x * across; u < right; u += 1) sum += data[3 * (v * width + u) + channel];
        }
        out[to] = Math.floor((sum * factor) / 2 ** 24);
      }
    }
  }
  return { data: out, width: columns, height: rows };
}

// One side at another length; `span` of it, which need not be whole, is what the new length stands for.
function resampled(picture, length, span, across) {
  const own = across ? picture.width : picture.height;
  if (own === length && span === length) return picture;
  const taps = weights(own, span, length);
  const [width, height] = across ? [length, picture.height] : [picture.width, length];
  const out = new Uint8Array(width * height * 3);
  const step = across ? 3 : 3 * picture.width; // from one entry of the side to the next
  for (let y = 0, to = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const { first, values } = taps[across ? x : y];
      const start = across ? 3 * (y * picture.width + first) : 3 * (first * picture.width + x);
      for (let channel = 0; channel < 3; channel += 1, to += 1) {
        let sum = 1 << (BITS - 1);
        for (let tap = 0, from = start + channel; tap < values.length; tap += 1, from += step) {
          sum += picture.data[from] * values[tap];
        }
        out[to] = Math.min(255, Math.max(0, sum >> BITS));
      }
    }
  }
  return { data: out, width, height };
}

// For each new entry the first old one that counts, and integers for it and those behind it
function weights(own, span, length) {
  const scale = span / length;
  const support = Math.max(1, scale);
  return Array.from({ length }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(own, Math.trunc(centre + support + 0.5)) - first;
    const far = (tap) => Math.abs((tap + first - centre + 0.5) * (1 / support));
    const values = Array.from({ length: count }, (_, tap) => Math.max(0, 1 - far(tap)));
    const sum = values.reduce((total, value) => total + value, 0);
    return { first, values: values.map((value) => Math.trunc(0.5 + (value / sum) * 2 ** BITS)) };
  });
}

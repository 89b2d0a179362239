// A picture in the detector's input, to the pixel as training and the runtime fit it: shrunk by whole factors first, then
// by Pillow's bilinear filter in its own integers.

const GAP = 3; // a side is shrunk by a whole factor until it is this many times too large
const BITS = 22; // of a weight behind the point
const HALF = 1 << (BITS - 1);
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
  let picture = { data, width, height, step: 4 }; // from one pixel to the next
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
  picture = opaque(picture);
  if (picture.width === columns && picture.height === rows) return picture.data;
  const pixels = new Uint8Array(rows * columns * 3);
  for (let place = 0; place < pixels.length; place += 1) pixels[place] = FILL[place % 3];
  const row = 3 * picture.width;
  for (let y = 0; y < picture.height; y += 1) {
    pixels.set(picture.data.subarray(y * row, (y + 1) * row), y * 3 * columns);
  }
  return pixels;
}

function opaque({ data, width, height, step }) {
  if (step === 3) return { data, width, height, step };
  const out = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    out[to] = data[from];
    out[to + 1] = data[from + 1];
    out[to + 2] = data[from + 2];
  }
  return { data: out, width, height, step: 3 };
}

// Means of rectangles; those at the right and the lower edge may be smaller.
function reduced({ data, width, height, step }, across, down) {
  const [columns, rows] = [Math.ceil(width / across), Math.ceil(height / down)];
  const out = new Uint8Array(columns * rows * 3);
  for (let y = 0, to = 0; y < rows; y += 1) {
    const bottom = Math.min(height, (y + 1) * down);
    for (let x = 0; x < columns; x += 1, to += 3) {
      const right = Math.min(width, (x + 1) * across);
      const count = (bottom - y * down) * (right - x * across);
      const factor = Math.floor(2 ** 24 / count);
      let red = Math.floor(count / 2);
      let green = red;
      let blue = red;
      for (let v = y * down; v < bottom; v += 1) {
        const end = step * (v * width + right);
        for (let from = step * (v * width + x * across); from < end; from += step) {
          red += data[from];
          green += data[from + 1];
          blue += data[from + 2];
        }
      }
      out[to] = Math.floor((red * factor) / 2 ** 24);
      out[to + 1] = Math.floor((green * factor) / 2 ** 24);
      out[to + 2] = Math.floor((blue * factor) / 2 ** 24);
    }
  }
  return { data: out, width: columns, height: rows, step: 3 };
}

// One side at another length; `span` of it, which need not be whole, is what the new length stands for.
function resampled(picture, length, span, across) {
  const own = across ? picture.width : picture.height;
  if (own === length && span === length) return picture;
  const taps = weights(own, span, length);
  if (across) return { data: narrowed(picture, taps), width: length, height: picture.height, step: 3 };
  return { data: flattened(opaque(picture), taps), width: picture.width, height: length, step: 3 };
}

function narrowed({ data, width, height, step }, { firsts, counts, values, most }) {
  const length = firsts.length;
  const out = new Uint8ClampedArray(3 * length * height);
  for (let y = 0, to = 0; y < height; y += 1) {
    for (let x = 0; x < length; x += 1, to += 3) {
      let red = HALF;
      let green = HALF;
      let blue = HALF;
      const end = x * most + counts[x];
      for (let tap = x * most, from = step * (y * width + firsts[x]); tap < end; tap += 1, from += step) {
        const value = values[tap];
        red += data[from] * value;
        green += data[from + 1] * value;
        blue += data[from + 2] * value;
      }
      out[to] = red >> BITS;
      out[to + 1] = green >> BITS;
      out[to + 2] = blue >> BITS;
    }
  }
  return new Uint8Array(out.buffer);
}

function flattened({ data, width }, { firsts, counts, values, most }) {
  const row = 3 * width;
  const out = new Uint8ClampedArray(row * firsts.length);
  const sums = new Int32Array(row);
  for (let y = 0; y < firsts.length; y += 1) {
    sums.fill(HALF);
    for (let tap = 0; tap < counts[y]; tap += 1) {
      const value = values[y * most + tap];
      const from = (firsts[y] + tap) * row;
      for (let x = 0; x < row; x += 1) sums[x] += data[from + x] * value;
    }
    for (let x = 0; x < row; x += 1) out[y * row + x] = sums[x] >> BITS;
  }
  return new Uint8Array(out.buffer);
}

// For each new entry the first old one that counts, how many count, and integers for them, `most` apart
function weights(own, span, length) {
  const scale = span / length;
  const support = Math.max(1, scale);
  const most = Math.ceil(2 * support) + 1;
  const [firsts, counts, values] = [new Int32Array(length), new Int32Array(length), new Int32Array(length * most)];
  for (let place = 0; place < length; place += 1) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(own, Math.trunc(centre + support + 0.5)) - first;
    const far = (tap) => Math.abs((tap + first - centre + 0.5) * (1 / support));
    const exact = Array.from({ length: count }, (_, tap) => Math.max(0, 1 - far(tap)));
    const sum = exact.reduce((total, value) => total + value, 0);
    firsts[place] = first;
    counts[place] = count;
    exact.forEach((value, tap) => (values[place * most + tap] = Math.trunc(0.5 + (value / sum) * 2 ** BITS)));
  }
  return { firsts, counts, values, most };
}

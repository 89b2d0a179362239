// Detectors of one stage, by LiteRT.js, which knows a processor's products of integers. Decoding and suppression are
// here, as in the Python package: `qmimic/runtime/places.py` and `suppression.py`.

import { about, script, unpacked } from "./parts.js";

const SIDE = 4; // bounds the exponential
const STEPS = 16; // of a pixel, in which a detector on integers knows distances
const CANDIDATES = 4; // times as many as detections that stay

// From pixels uint8 [rows, columns, 3] to a promise of [{label, score, box}], boxes in pixels of the input
export async function detector(model) {
  const library = await import(await script("library"));
  const kind = (await library.supportsFeature("relaxedSimd")) ? "" : "-compat";
  const quiet = () => {};
  self.Module = { wasmBinary: await unpacked(`program${kind}`), print: quiet, printErr: quiet };
  const litert = await library.loadLiteRt(`${await script(`loader${kind}`)}#.js`);
  const compiled = await litert.loadAndCompile(model, { accelerator: "wasm" });
  const shape = [1, ...about.size, 3];
  const floats = compiled.getInputDetails()[0].dtype === "float32" ? new Float32Array(shape.reduce((a, b) => a * b)) : null;
  const places = grid();
  return async (pixels) => {
    floats?.set(pixels);
    const images = new library.Tensor(floats ?? pixels, shape);
    const [outputs] = await compiled.run(images);
    const values = outputs.toTypedArray();
    images.delete();
    outputs.delete();
    return suppressed(candidates(values, places));
  };
}

// Middle and stride of all places, level by level, by row and column
function grid() {
  const [height, width] = about.size;
  const found = [];
  for (const stride of about.levels) {
    for (let y = 0; y < Math.floor(height / stride); y += 1) {
      for (let x = 0; x < Math.floor(width / stride); x += 1) {
        found.push([(x + 0.5) * stride, (y + 0.5) * stride, stride]);
      }
    }
  }
  return found;
}

// What scores above the threshold, the best first. `values` has the classes of a place, then its sides; on integers the
// sides are doubled.
function candidates(values, places) {
  const classes = about.classes.length;
  const width = classes + 4;
  const whole = about.precision === "int8";
  const side = (value, stride) => {
    if (whole) return Math.round(Math.exp(value / 2) * stride * STEPS) / STEPS;
    return Math.exp(Math.min(SIDE, Math.max(-SIDE, value))) * stride;
  };
  const limits = [about.size[1], about.size[0], about.size[1], about.size[0]];
  const least = Math.log(about.score_threshold / (1 - about.score_threshold));
  const found = [];
  for (const from of highest(values, width, classes, least, CANDIDATES * about.max_detections)) {
    const place = Math.floor(from / width);
    const score = Math.fround(1 / (1 + Math.exp(-values[from])));
    const [x, y, stride] = places[place];
    const box = limits.map((limit, corner) => {
      const far = side(values[place * width + classes + corner], stride);
      return Math.fround(Math.min(limit, Math.max(0, (corner % 2 ? y : x) + (corner < 2 ? -far : far))));
    });
    found.push({ label: from % width, score, box });
  }
  return found;
}

// Where the highest values of classes stand, in falling order. There may be thousands, of which few are wanted: a sort of
// plain numbers finds the least of those.
function highest(values, width, classes, least, most) {
  const kept = new Float32Array(values.length);
  let count = 0;
  for (let place = 0; place < values.length; place += width) {
    for (let from = place; from < place + classes; from += 1) if (values[from] > least) kept[count++] = values[from];
  }
  const cut = count > most ? kept.subarray(0, count).sort()[count - most] : least;
  const found = [];
  for (let place = 0; place < values.length; place += width) {
    for (let from = place; from < place + classes; from += 1) {
      if (values[from] > least && values[from] >= cut) found.push(from);
    }
  }
  return found.sort((one, other) => values[other] - values[one] || one - other).slice(0, most);
}

// Of two of a class that overlap, the better one
function suppressed(found) {
  const kept = [];
  for (const one of found) {
    if (kept.length === about.max_detections) break;
    if (!kept.some((better) => better.label === one.label && overlap(better.box, one.box))) kept.push(one);
  }
  return kept;
}

function overlap(a, b) {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]);
  return width * height * (1 + about.nms_threshold) > about.nms_threshold * areas;
}

// Detectors of any kind, by onnxruntime-web; suppression is in the graph.

import { about, script, unpacked } from "./parts.js";

// From pixels uint8 [rows, columns, 3] to a promise of [{label, score, box}], boxes in pixels of the input
export async function detector(model) {
  const ort = await import(await script("library"));
  ort.env.wasm.wasmBinary = (await unpacked("program")).buffer;
  ort.env.wasm.numThreads = 1; // more need headers that a file does not have
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(model);
  return async (pixels) => {
    const images = new ort.Tensor("uint8", pixels, [1, ...about.size, 3]);
    const { boxes, scores, labels } = await session.run({ images });
    const found = [];
    for (let place = 0; place < scores.data.length && scores.data[place] >= 0; place += 1) {
      const box = Array.from(boxes.data.subarray(4 * place, 4 * place + 4));
      found.push({ label: Number(labels.data[place]), score: scores.data[place], box });
    }
    return found;
  };
}

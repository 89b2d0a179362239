// Runs the model of a page by the page's own engine, for page_in_node.py: pictures come on the standard input, outputs
// leave on the other. All that leaves has its length before it: the engine's name once, then for each picture the shapes of
// the outputs as JSON, and the outputs.

import { Buffer } from "node:buffer";
import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import vm from "node:vm";
import zlib from "node:zlib";

const [page, size] = process.argv.slice(2);
const text = fs.readFileSync(page, "latin1");
const quiet = () => {};
Object.assign(console, { log: quiet, info: quiet, warn: quiet, error: quiet });

const element = (id) => text.match(new RegExp(`<script id="${id}"([^>]*)>([^<]*)</script>`));
const bytes = (id) => new Uint8Array(Buffer.from(element(id)[2], "base64"));
const unpacked = (id) => new Uint8Array(zlib.gunzipSync(bytes(id)));
const about = JSON.parse(Buffer.from(element("about")[2], "latin1").toString());

async function imported(id) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "qmimic-page-"));
  try {
    const file = path.join(folder, "library.mjs");
    fs.writeFileSync(file, unpacked(id));
    return await import(file);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

async function byOnnxRuntime() {
  const ort = await imported("library");
  ort.env.wasm.wasmBinary = unpacked("program").buffer;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(bytes("model"));
  return async (pixels, shape) => {
    const found = await session.run({ images: new ort.Tensor("uint8", pixels, shape) });
    return Object.entries(found).map(([name, { data, dims }]) => [name, data, dims]);
  };
}

async function byLiteRt() {
  const library = await imported("library");
  const kind = (await library.supportsFeature("relaxedSimd")) ? "" : "-compat";
  // The loader is a script for a page or a worker of it.
  Object.assign(globalThis, { self: globalThis, require: createRequire(import.meta.url), __filename: page, __dirname: "." });
  globalThis.importScripts = () => vm.runInThisContext(Buffer.from(unpacked(`loader${kind}`)).toString());
  globalThis.Module = { wasmBinary: unpacked(`program${kind}`), print: quiet, printErr: quiet };
  const litert = await library.loadLiteRt("loader.js");
  const compiled = await litert.loadAndCompile(bytes("model"), { accelerator: "wasm" });
  const floats = compiled.getInputDetails()[0].dtype === "float32";
  return async (pixels, shape) => {
    const images = new library.Tensor(floats ? new Float32Array(pixels) : pixels, shape);
    const [outputs] = await compiled.run(images);
    const data = outputs.toTypedArray().slice();
    images.delete();
    outputs.delete();
    const places = data.length / (about.classes.length + 4);
    return [["places", data, [1, places, about.classes.length + 4]]];
  };
}

function say(content) {
  const own = Buffer.from(content.buffer ?? content, content.byteOffset, content.byteLength);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(own.length);
  for (const part of [length, own]) {
    for (let from = 0; from < part.length; ) from += fs.writeSync(1, part, from);
  }
}

// A picture, or null where there are no more
function heard() {
  const pixels = Buffer.alloc(Number(size));
  for (let from = 0; from < pixels.length; ) {
    const count = fs.readSync(0, pixels, from, pixels.length - from, null);
    if (!count) return null;
    from += count;
  }
  return new Uint8Array(pixels.buffer, pixels.byteOffset, pixels.length);
}

const run = await (element("loader") ? byLiteRt() : byOnnxRuntime());
const shape = [Number(size) / (3 * about.size[0] * about.size[1]), ...about.size, 3];
await run(new Uint8Array(Number(size)), shape);
say(Buffer.from(`${element("library")[1].match(/data-name="([^"]*)"/)[1]} in Node.js ${process.versions.node}`));
for (let pixels = heard(); pixels; pixels = heard()) {
  const outputs = await run(pixels, shape);
  say(Buffer.from(JSON.stringify(Object.fromEntries(outputs.map(([name, , dims]) => [name, dims])))));
  for (const [, data] of outputs) say(data);
}

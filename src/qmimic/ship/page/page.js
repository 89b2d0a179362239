// The page: a picture, a video or the camera in, boxes out. The detector runs here, in WebAssembly, without a network: by
// litert.js, or by onnxruntime.js in its place.

import { style } from "../../serve/page/palette.js";
import { detector } from "./litert.js";
import { about, at, bytes } from "./parts.js";
import { fitted, inner } from "./resize.js";

const SHARE = 0.72; // of the window's height that a picture takes at most
const REASONS = {
  NotAllowedError: "The camera was refused; allow it in the browser's address bar and start it again.",
  NotFoundError: "There is no camera; connect one.",
  NotReadableError: "Another program uses the camera; close it and start again.",
};
const [rows, columns] = about.size;
let run = null; // from pixels to detections, once it is loaded
let shown = null; // {image, width, height, name, found, milliseconds}
let turn = 0; // of what is looked at; whatever began before it ends

function complain(sentence) {
  at("message").textContent = sentence;
  at("message").hidden = !sentence;
}

let waiting;
function say(sentence) {
  clearTimeout(waiting); // so that a slider in motion does not chatter
  waiting = setTimeout(() => (at("status").textContent = sentence), 500);
}

// ---------------------------------------------------------------- the detector

async function load() {
  const model = bytes("model");
  if (crypto.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", model));
    const sum = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (sum !== about.sha256) complain("The model in this page was changed since it was proved; export it again.");
  }
  run = await detector(model);
  await detect(new ImageData(columns, rows)); // so that the first picture need not wait for what is made once
}

// Detections {class, label, score, box} of an ImageData, in its pixels, down to the model's own threshold
async function detect(image) {
  const begin = performance.now();
  const own = await run(fitted(image, about.size));
  const { width, height } = inner(image.width, image.height, about.size);
  const limits = [image.width, image.height];
  const factors = [image.width / width, image.height / height];
  const found = [];
  for (const { label, score, box } of own) {
    const placed = box.map((side, corner) => Math.min(limits[corner % 2], side * factors[corner % 2]));
    if (placed[2] > placed[0] && placed[3] > placed[1]) {
      found.push({ class: about.classes[label], label, score, box: placed });
    }
  }
  return { found, milliseconds: performance.now() - begin };
}

// ---------------------------------------------------------------- what is looked at

function pixels(source, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(source, 0, 0, width, height);
  return { canvas, data: pen.getImageData(0, 0, width, height) };
}

async function look(source, width, height, name) {
  const { canvas, data } = pixels(source, width, height);
  shown = { image: canvas, width, height, name, ...(await detect(data)) };
  render();
}

async function open(file) {
  stop();
  complain("");
  const own = ++turn;
  const url = URL.createObjectURL(file);
  try {
    if (file.type.startsWith("video/")) await play(url, file.name, own);
    else {
      const image = new Image();
      image.src = url;
      await image.decode();
      if (own === turn) await look(image, image.naturalWidth, image.naturalHeight, file.name);
    }
  } catch {
    if (own === turn) complain(`${file.name} is not a picture or video that this browser can show; convert it to PNG or MP4.`);
  }
  URL.revokeObjectURL(url);
}

// Frames of a video or a camera, one after another, as fast as the detector is done with the last
async function play(from, name, own) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true }, typeof from === "string" ? { src: from } : { srcObject: from });
  at("stop").hidden = false;
  try {
    await video.play();
    let since = performance.now();
    let rate = 0;
    while (own === turn && !video.ended) {
      if (video.videoWidth) {
        await look(video, video.videoWidth, video.videoHeight, name);
        const now = performance.now();
        rate = rate ? 0.9 * rate + 100 / (now - since) : 1000 / (now - since);
        since = now;
        at("time").textContent += ` · ${rate.toFixed(0)} pictures a second`;
      }
      await new Promise(requestAnimationFrame);
    }
  } finally {
    video.pause();
    if (own === turn) stop();
  }
}

async function camera() {
  if (at("camera").getAttribute("aria-pressed") === "true") return stop();
  stop();
  complain("");
  const own = ++turn;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, facingMode: "environment" } });
  } catch (error) {
    return complain(REASONS[error.name] ?? `The camera cannot be started (${error.name}); try another browser.`);
  }
  at("camera").setAttribute("aria-pressed", "true");
  at("camera").textContent = "Stop camera";
  try {
    await play(stream, "Camera", own);
  } catch (error) {
    complain(`The camera stopped (${error.message}); start it again.`);
  }
  stream.getTracks().forEach((track) => track.stop());
}

function stop() {
  turn += 1;
  at("stop").hidden = true;
  at("camera").setAttribute("aria-pressed", "false");
  at("camera").textContent = "Start camera";
}

// ---------------------------------------------------------------- showing it

function render() {
  if (!shown) return;
  const least = Number(at("threshold").value);
  const found = shown.found.filter((one) => one.score >= least);
  at("empty").hidden = true;
  at("viewer").hidden = false;
  at("name").textContent = shown.name;
  at("count").textContent = `${found.length} object${found.length === 1 ? "" : "s"}`;
  at("time").textContent = `${shown.milliseconds.toFixed(1)} ms`;
  const counts = new Map();
  for (const one of found) counts.set(one.class, (counts.get(one.class) ?? 0) + 1);
  const objects = [...counts].map(([name, count]) => `${count} ${name}`).join(", ") || "no objects";
  at("canvas").setAttribute("aria-label", `${shown.name}: ${objects}`);
  if (at("status").textContent !== objects) say(objects);
  const rows = found.map((one) => {
    const row = document.createElement("tr");
    for (const text of [one.class, one.score.toFixed(2), ...one.box.map((side) => side.toFixed(0))]) {
      row.insertCell().textContent = text;
    }
    return row;
  });
  at("rows").replaceChildren(...rows);
  draw(found);
}

function draw(found) {
  const canvas = at("canvas");
  const space = canvas.parentElement.clientWidth;
  const scale = Math.min(space / shown.width, (SHARE * window.innerHeight) / shown.height);
  const density = window.devicePixelRatio || 1;
  const [w, h] = [shown.width, shown.height].map((side) => Math.max(1, Math.round(side * scale)));
  [canvas.width, canvas.height] = [w, h].map((side) => Math.round(side * density));
  Object.assign(canvas.style, { width: `${w}px`, height: `${h}px` });
  const pen = canvas.getContext("2d");
  pen.scale(density, density);
  pen.drawImage(shown.image, 0, 0, w, h);
  pen.font = "600 12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  for (const { class: name, label, score, box } of found.toReversed()) {
    const [x1, y1, x2, y2] = box.map((side) => side * scale);
    const { colour, dash, text } = style(label);
    const frame = [x1 + 1, y1 + 1, Math.max(1, x2 - x1 - 2), Math.max(1, y2 - y1 - 2)];
    pen.setLineDash([]);
    pen.lineWidth = 4; // a dark edge keeps every colour visible on every picture
    pen.strokeStyle = "rgb(0 0 0 / 65%)";
    pen.strokeRect(...frame);
    pen.setLineDash(dash);
    pen.lineWidth = 2;
    pen.strokeStyle = colour;
    pen.strokeRect(...frame);
    const words = `${name} ${score.toFixed(2)}`;
    const across = pen.measureText(words).width + 8;
    const left = Math.max(0, Math.min(x1, w - across));
    const top = y1 >= 17 ? y1 - 17 : y1;
    pen.fillStyle = colour;
    pen.fillRect(left, top, across, 17);
    pen.fillStyle = text;
    pen.fillText(words, left + 4, top + 9);
  }
}

// ---------------------------------------------------------------- events

at("threshold").addEventListener("input", () => {
  at("threshold-value").textContent = Number(at("threshold").value).toFixed(2);
  render();
});
at("files").addEventListener("change", () => {
  const [file] = at("files").files;
  if (file) open(file);
  at("files").value = "";
});
at("camera").addEventListener("click", camera);
at("stop").addEventListener("click", stop);
addEventListener("resize", render);
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files[0] && run) open(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files[0] && run) open(event.clipboardData.files[0]);
});

const engine = at("library").dataset.name;
at("facts").textContent = [about.backbone, about.precision, `${columns}×${rows}`, about.classes.join(", "), engine].join(" · ");
document.title = `qmimic: ${about.classes.join(", ")}`;
try {
  await load();
  at("files").disabled = at("camera").disabled = false;
  document.body.dataset.ready = "";
} catch (error) {
  complain(`The detector cannot be loaded (${error.message}); use a current Chromium, Firefox or Safari.`);
}
Object.assign(window, { qmimic: { detect, pixels, fitted } }); // for tests and the curious

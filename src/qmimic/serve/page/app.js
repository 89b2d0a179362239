// The page: pictures in, panels side by side, threshold and classes, label files out.
// The server answers once for each picture and model; threshold and classes only choose among its answers.

import { detect, labels, served } from "./api.js";
import { Camera } from "./camera.js";
import { swatch } from "./palette.js";
import { Panel, counted, facts } from "./panel.js";
import { drawable, forget, picture, thumbnail } from "./pictures.js";

const at = (id) => document.getElementById(id);
const state = {
  models: new Map(), // name -> as served
  index: new Map(), // class -> number, of its colour
  hidden: new Set(), // classes
  pictures: [],
  current: null,
  live: null, // {name, image, width, height, blob, results} while the camera runs
  threshold: 0.4,
  limits: null,
};
const camera = new Camera();
let panels = [];

// ---------------------------------------------------------------- saying things

let waiting;
function say(sentence) {
  clearTimeout(waiting); // so that a moving slider does not chatter
  waiting = setTimeout(() => (at("status").textContent = sentence), 500);
}

function complain(sentence) {
  at("message").textContent = sentence;
  at("message").hidden = !sentence;
  at("message").classList.toggle("bad", Boolean(sentence));
}

// ---------------------------------------------------------------- asking the models

let active = 0;

function next() {
  const order = state.current ? [state.current, ...state.pictures] : state.pictures;
  for (const one of order) {
    for (const { model } of panels) {
      if (!one.results.has(model) && !one.pending.has(model)) return [one, model];
    }
  }
  return null;
}

function pump() {
  while (active <= state.limits.at_once) {
    const task = next();
    if (!task) return;
    active += 1;
    look(...task).finally(() => {
      active -= 1;
      pump();
    });
  }
}

async function look(one, model) {
  one.pending.add(model);
  try {
    one.results.set(model, await detect(model, one.blob));
  } catch (error) {
    if (error.seconds) await new Promise((done) => setTimeout(done, 1000 * error.seconds)); // and then again
    else one.results.set(model, { error: error.message });
  }
  one.pending.delete(model);
  if (one === state.current) render();
}

// ---------------------------------------------------------------- pictures

// A name that no picture has yet, not even with another suffix: labels are files named like their pictures.
function free(name) {
  const [, stem, suffix] = /^(.*?)(\.[^.]*)?$/.exec(name);
  const taken = new Set(state.pictures.map((one) => one.name.replace(/\.[^.]*$/, "").toLowerCase()));
  let number = 1;
  while (taken.has(`${stem}${number > 1 ? `-${number}` : ""}`.toLowerCase())) number += 1;
  return number > 1 ? `${stem}-${number}${suffix ?? ""}` : name;
}

function add(files, pasted = false) {
  let sentence = "";
  const known = new Set(state.pictures.map(({ source, blob }) => `${source} ${blob.size}`));
  const { bytes } = state.limits;
  let first = null;
  for (const file of files) {
    if (!pasted && known.has(`${file.name} ${file.size}`)) continue;
    if (file.size > bytes) {
      sentence = `${file.name} has ${(file.size / 2 ** 20).toFixed(0)} MiB; the limit is ${bytes / 2 ** 20} MiB. Shrink it.`;
      continue;
    }
    const name = free(pasted ? `pasted.${file.type.split("/")[1] ?? "png"}` : file.name);
    if (!pasted && name !== file.name) sentence = `A second ${file.name} is called ${name} here and in label files; save the picture under that name.`;
    const one = picture(name, file, pasted || name !== file.name, pasted ? null : file.name);
    state.pictures.push(one);
    at("pictures").append(thumbnail(one, choose));
    first ??= one;
  }
  if (first) choose(first);
  if (first || sentence) complain(sentence);
}

async function choose(one) {
  if (camera.running) camera.stop();
  const before = state.current;
  if (before !== one) complain(""); // the message was about the previous picture
  if (before && before !== one) {
    before.image?.close();
    before.image = undefined;
  }
  state.current = one;
  render();
  pump();
  if (one && one.image === undefined) {
    const found = await drawable(one);
    if (state.current !== one) found.image?.close();
    else Object.assign(one, found);
    render();
  }
}

function move(step) {
  const place = state.pictures.indexOf(state.current) + step;
  if (state.pictures[place]) choose(state.pictures[place]);
}

function remove() {
  const place = state.pictures.indexOf(state.current);
  const [one] = state.pictures.splice(place, 1);
  at("pictures").children[place].remove();
  forget(one);
  state.current = null;
  say(`${one.name} removed.`);
  choose(state.pictures[place] ?? state.pictures[place - 1] ?? null);
  (state.current ? at("remove") : at("files")).focus();
}

// ---------------------------------------------------------------- showing

// A box in the padding beside a picture is not an object in it: clipped, it has no area.
const has_area = ([x1, y1, x2, y2]) => x2 - x1 > 1 && y2 - y1 > 1;

function chosen(result) {
  const own = result?.detections ?? [];
  return own.filter((one) => one.score >= state.threshold && !state.hidden.has(one.class) && has_area(one.box));
}

function render() {
  const one = state.live ?? state.current;
  at("empty").hidden = Boolean(one);
  at("viewer").hidden = !one;
  at("fetch").disabled = !state.pictures.length;
  for (const id of ["previous", "next", "remove"]) at(id).hidden = Boolean(state.live);
  at("save").hidden = Boolean(state.live) || !state.current?.frame;
  if (!one) return;
  at("name").textContent = one.name;
  const place = state.pictures.indexOf(state.current);
  at("previous").disabled = place <= 0;
  at("next").disabled = place >= state.pictures.length - 1;
  if (one.frame) Object.assign(at("save"), { href: one.url, download: one.name });
  [...at("pictures").children].forEach((item, other) => {
    const button = item.firstElementChild;
    if (other === place && !state.live) {
      if (button.getAttribute("aria-current") !== "true") item.scrollIntoView({ block: "nearest", inline: "nearest" });
      button.setAttribute("aria-current", "true");
    } else button.removeAttribute("aria-current");
  });
  const said = [];
  for (const panel of panels) {
    const result = one.results.get(panel.model);
    const size = result?.error ? {} : result; // the boxes' own pixels
    const seen = { name: one.name, image: one.image, width: size?.width ?? one.width, height: size?.height ?? one.height };
    const shown = chosen(result);
    panel.update(seen, result, shown, state.index);
    if (result) said.push(result.error ? `${panel.model}: ${result.error}` : `${panel.model}: ${counted(shown.length, "object")}`);
  }
  const unseen = !state.live && one.image === null && [...one.results.values()].some((result) => !result.error);
  if (unseen) complain(`The browser cannot show ${one.name}; the boxes are drawn in the right places.`);
  if (!state.live && said.length === panels.length) say(`${one.name}, score at least ${state.threshold.toFixed(2)}. ${said.join(". ")}`);
}

let planned = false;
function soon() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    render();
  });
}

function legend() {
  const boxes = [...state.index].map(([name, number]) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !state.hidden.has(name) });
    box.addEventListener("change", () => {
      state.hidden[box.checked ? "delete" : "add"](name);
      render();
    });
    label.append(box, swatch(number), name);
    return label;
  });
  at("legend").replaceChildren(...boxes);
}

function tick(every) {
  state.hidden = new Set(every ? [] : state.index.keys());
  legend();
  render();
}

function changed(panel) {
  panel.facts.textContent = facts(state.models.get(panel.model));
  by();
  pump();
  render();
}

function by() {
  const before = at("by").value;
  const names = [...new Set(panels.map((panel) => panel.model))];
  at("by").replaceChildren(...names.map((name) => new Option(name, name)));
  at("by").value = names.includes(before) ? before : names.at(-1);
}

function beside(count, preferred) {
  const names = [...state.models.keys()];
  const wanted = [...new Set([...panels.map((panel) => panel.model), ...preferred, ...names])].slice(0, count);
  panels = wanted.map((name, place) => {
    const panel = panels[place] ?? new Panel(place + 1, names, changed, again);
    panel.select.value = name;
    panel.facts.textContent = facts(state.models.get(name));
    return panel;
  });
  at("panels").replaceChildren(...panels.map((panel) => panel.root));
  by();
  pump();
  render();
}

function again(panel) {
  state.current?.results.delete(panel.model);
  render();
  pump();
}

// ---------------------------------------------------------------- the camera

let frames = { since: 0, count: 0, speed: 0 };

async function take(frame) {
  const results = new Map();
  const asked = panels.map(async ({ model }) => {
    results.set(model, await detect(model, frame.blob).catch((error) => ({ error: error.message })));
  });
  await Promise.all(asked);
  if (!camera.running) return;
  if ([...results.values()].every((result) => result.error)) throw new Error(results.values().next().value.error);
  frames.count += 1;
  const now = performance.now();
  if (now - frames.since > 1000) frames = { since: now, count: 0, speed: (1000 * frames.count) / (now - frames.since) };
  const speed = frames.speed ? ` · ${frames.speed.toFixed(1)} pictures/s` : "";
  state.live = { ...frame, name: `Camera${speed}`, results };
  render();
}

async function film() {
  if (camera.running) {
    camera.stop();
    return;
  }
  complain("");
  at("camera").disabled = true; // until the user has allowed or refused it
  frames = { since: performance.now(), count: 0, speed: 0 };
  const begun = (frame) => {
    if (at("camera").disabled) {
      at("camera").disabled = false;
      at("camera").setAttribute("aria-pressed", "true");
      at("camera").textContent = "Stop camera";
      at("keep").hidden = false;
      say("The camera is running.");
    }
    return take(frame);
  };
  await camera.start(begun, (sentence) => {
    at("camera").disabled = false;
    at("camera").setAttribute("aria-pressed", "false");
    at("camera").textContent = "Start camera";
    at("keep").hidden = true;
    state.live = null;
    complain(sentence);
    if (!sentence) say("The camera has stopped.");
    render();
  });
}

function keep() {
  if (!state.live) return;
  const now = new Date().toISOString().slice(0, 19).replaceAll(/[-:]/g, "").replace("T", "-");
  const alike = state.pictures.filter(({ name }) => name.startsWith(`camera-${now}`)).length;
  const one = picture(`camera-${now}${alike ? `-${alike + 1}` : ""}.jpg`, state.live.blob, true);
  one.results = state.live.results;
  state.pictures.push(one);
  state.current = one;
  at("pictures").append(thumbnail(one, choose));
  say(`${one.name} is kept on this page; stop the camera to save it.`);
  render();
}

// ---------------------------------------------------------------- label files

async function download(event) {
  event.preventDefault();
  const [model, format] = [at("by").value, at("format").value];
  at("fetch").disabled = true;
  complain("");
  try {
    for (const [place, one] of state.pictures.entries()) {
      if (!one.results.has(model)) say(`Analysing picture ${place + 1} of ${state.pictures.length}.`);
      while (!one.results.has(model)) {
        if (one.pending.has(model)) await new Promise((done) => setTimeout(done, 50));
        else await look(one, model);
      }
    }
    const bad = state.pictures.filter((one) => one.results.get(model).error);
    const good = state.pictures.filter((one) => !one.results.get(model).error);
    if (!good.length) throw new Error("None of the pictures could be analysed; the panels say why.");
    const described = good.map((one) => {
      const result = one.results.get(model);
      return { name: one.name, width: result.width, height: result.height, detections: chosen(result) };
    });
    const classes = state.models.get(model).classes;
    const zip = await labels({ format, classes, pictures: described });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(zip);
    link.download = `labels-${format}.zip`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    say(`Label files of ${counted(good.length, "picture")} downloaded.`);
    if (bad.length) complain(`Left out, because they could not be analysed: ${bad.map((one) => one.name).join(", ")}.`);
  } catch (error) {
    complain(error.message);
  } finally {
    render();
  }
}

// ---------------------------------------------------------------- beginning

function listen() {
  at("files").addEventListener("change", () => {
    add(at("files").files);
    at("files").value = "";
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    add(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => add(event.clipboardData.files, true));
  addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const own = event.target.closest("select, input, .scroll"); // these use the arrow keys themselves
    if (!step || own || event.altKey || event.ctrlKey || event.metaKey || state.live) return;
    event.preventDefault();
    move(step);
    if (event.target.closest("#pictures")) at("pictures").querySelector("[aria-current]")?.focus();
  });
  at("threshold").addEventListener("input", () => {
    state.threshold = Number(at("threshold").value);
    at("threshold-value").value = state.threshold.toFixed(2);
    soon();
  });
  at("camera").addEventListener("click", film);
  at("keep").addEventListener("click", keep);
  at("previous").addEventListener("click", () => move(-1));
  at("next").addEventListener("click", () => move(1));
  at("remove").addEventListener("click", remove);
  at("all").addEventListener("click", () => tick(true));
  at("none").addEventListener("click", () => tick(false));
  at("download").addEventListener("submit", download);
  for (const radio of document.getElementsByName("count")) {
    radio.addEventListener("change", () => beside(Number(radio.value), []));
  }
}

async function begin() {
  const { models, side_by_side: preferred, reports, limits } = await served();
  state.limits = limits;
  for (const model of models) {
    state.models.set(model.name, model);
    for (const name of model.classes) if (!state.index.has(name)) state.index.set(name, state.index.size);
  }
  at("limits").textContent = `Up to ${limits.bytes / 2 ** 20} MiB and ${limits.pixels / 1e6} million pixels each.`;
  for (const run of reports) {
    const item = document.createElement("li");
    item.append(Object.assign(document.createElement("a"), { href: `reports/${encodeURIComponent(run)}`, textContent: `Report of ${run}` }));
    at("links").prepend(item);
  }
  const count = Math.min(3, models.length, window.innerWidth < 700 ? 1 : 3);
  for (const radio of document.getElementsByName("count")) {
    radio.checked = Number(radio.value) === count;
    radio.disabled = Number(radio.value) > models.length;
  }
  at("threshold").value = state.threshold; // browsers restore an old value on reload
  legend();
  listen();
  // On a narrow page, the only view shows what ships.
  beside(count, count === 1 ? [...preferred].reverse() : preferred);
  document.body.dataset.ready = "";
}

begin().catch((error) => complain(error.message));

// One model's view of the current picture: a select, a canvas with boxes, a count, a table.

import { style } from "./palette.js";

const SHARE = 0.72; // largest share of the window's height for a picture
const thousand = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export function facts(model) {
  const map = model.map50 === null ? [] : [`${(100 * model.map50).toFixed(1)} mAP@0.5`];
  const [height, width] = model.size;
  const size = `${thousand.format(model.parameters)} weights, ${Math.round(model.bytes / 1000)} kB`;
  return [model.backbone, model.precision, model.engine, `${width}×${height}`, size, ...map].join(" · ");
}

export function counted(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}

export class Panel {
  // number: 1, 2 or 3; names: of the models; changed(panel), again(panel): callbacks
  constructor(number, names, changed, again) {
    this.root = document.querySelector("#panel").content.firstElementChild.cloneNode(true);
    this.select = this.root.querySelector("select");
    this.facts = this.root.querySelector(".facts");
    this.stage = this.root.querySelector(".stage");
    this.canvas = this.root.querySelector("canvas");
    this.outcome = this.root.querySelector(".outcome");
    this.again = this.root.querySelector(".outcome button");
    this.details = this.root.querySelector("details");
    this.body = this.root.querySelector("tbody");
    this.root.setAttribute("aria-label", `View ${number}`);
    this.root.querySelector(".scroll").setAttribute("aria-label", `Objects of view ${number}`);
    this.select.append(...names.map((name) => new Option(name, name)));
    this.select.addEventListener("change", () => changed(this));
    this.again.addEventListener("click", () => again(this));
    this.details.addEventListener("toggle", () => this.fill());
    this.body.addEventListener("mouseover", (event) => this.point(event.target.closest("tr")));
    this.body.addEventListener("mouseleave", () => this.point(null));
    this.shown = [];
    this.pointed = -1;
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  get model() {
    return this.select.value;
  }

  // picture: {name, image (drawable or null), width, height}; result: as from api.js, {error}, or undefined until it
  // arrives; shown: detections to show; index: class -> number.
  update(picture, result, shown, index) {
    Object.assign(this, { picture, shown, index, pointed: -1 });
    const [count, time] = [this.outcome.querySelector("strong"), this.outcome.querySelector("span")];
    this.outcome.classList.toggle("bad", Boolean(result?.error));
    this.again.hidden = !result?.error;
    count.textContent = result?.error ?? (result ? counted(shown.length, "object") : "Analysing…");
    time.textContent = result && !result.error ? `${result.milliseconds.toFixed(1)} ms` : "";
    this.canvas.setAttribute("aria-label", this.describe(result));
    this.fill();
    this.draw();
  }

  describe(result) {
    if (!result || result.error) return `${this.picture.name}, not analysed yet`;
    const counts = new Map();
    for (const one of this.shown) counts.set(one.class, (counts.get(one.class) ?? 0) + 1);
    const objects = [...counts].map(([name, count]) => `${count} ${name}`).join(", ") || "no objects";
    return `${this.picture.name} by ${this.model}: ${objects}`;
  }

  fill() {
    if (!this.details.open) return;
    const rows = this.shown.map((one) => {
      const row = document.createElement("tr");
      for (const text of [one.class, one.score.toFixed(2), ...one.box.map((side) => side.toFixed(0))]) {
        row.insertCell().textContent = text;
      }
      return row;
    });
    this.body.replaceChildren(...rows);
  }

  point(row) {
    const place = row ? row.sectionRowIndex : -1;
    if (place === this.pointed) return;
    this.pointed = place;
    this.draw();
  }

  draw() {
    const { image, width, height } = this.picture ?? {};
    this.canvas.hidden = !width;
    if (!width) return;
    const space = this.stage.clientWidth;
    const scale = Math.min(space / width, (SHARE * window.innerHeight) / height);
    const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(w * density);
    this.canvas.height = Math.round(h * density);
    this.canvas.style.width = `${w}px`;
    this.canvas.style.height = `${h}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(density, density);
    pen.imageSmoothingEnabled = scale < 3; // large pixels are shown as they are
    if (image) pen.drawImage(image, 0, 0, w, h);
    for (const place of [...this.shown.keys()].reverse()) {
      if (place !== this.pointed) this.box(pen, this.shown[place], scale, this.pointed >= 0);
    }
    if (this.pointed >= 0) this.box(pen, this.shown[this.pointed], scale, false);
  }

  box(pen, { class: name, score, box }, scale, faint) {
    const [x1, y1, x2, y2] = box.map((side) => side * scale);
    const { colour, dash, text } = style(this.index.get(name));
    pen.globalAlpha = faint ? 0.35 : 1;
    const frame = [x1 + 1, y1 + 1, Math.max(1, x2 - x1 - 2), Math.max(1, y2 - y1 - 2)];
    pen.setLineDash([]);
    pen.lineWidth = 4; // a dark edge keeps every colour visible on every picture
    pen.strokeStyle = "rgb(0 0 0 / 65%)";
    pen.strokeRect(...frame);
    pen.setLineDash(dash);
    pen.lineWidth = 2;
    pen.strokeStyle = colour;
    pen.strokeRect(...frame);
    pen.font = "600 12px system-ui, sans-serif";
    const words = `${name} ${score.toFixed(2)}`;
    const across = pen.measureText(words).width + 8;
    const left = Math.max(0, Math.min(x1, this.canvas.clientWidth - across));
    const top = y1 >= 17 ? y1 - 17 : y1;
    pen.fillStyle = colour;
    pen.fillRect(left, top, across, 17);
    pen.fillStyle = text;
    pen.textBaseline = "middle";
    pen.fillText(words, left + 4, top + 9);
    pen.globalAlpha = 1;
  }
}

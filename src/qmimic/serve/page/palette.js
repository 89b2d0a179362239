// A colour and a dash for each class: Okabe and Ito's colours, distinguishable with any colour vision, then the
// same with dashes.

const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];

export function style(index) {
  const colour = COLOURS[index % COLOURS.length];
  const dash = DASHES[Math.floor(index / COLOURS.length) % DASHES.length];
  return { colour, dash, text: colour === "#0072b2" ? "#ffffff" : "#000000" };
}

export function swatch(index) {
  const { colour, dash } = style(index);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const facts = { x: 3, y: 3, width: 18, height: 12, fill: "none", stroke: colour, "stroke-width": 2.5 };
  for (const [name, value] of Object.entries({ ...facts, "stroke-dasharray": dash.join(" ") || "none" })) {
    line.setAttribute(name, value);
  }
  for (const [name, value] of Object.entries({ width: 24, height: 18, "aria-hidden": "true" })) {
    svg.setAttribute(name, value);
  }
  svg.append(line);
  return svg;
}

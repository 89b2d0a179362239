// What the page holds beside its text: the description of the detector, its model, and what runs it.

export const at = (id) => document.getElementById(id);
export const about = JSON.parse(at("about").textContent);

// The bytes of a part, which leaves the page
export function bytes(id) {
  const text = atob(at(id).textContent);
  at(id).remove();
  const content = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place += 1) content[place] = text.charCodeAt(place);
  return content;
}

// The same of a packed part
export async function unpacked(id) {
  const stream = new Blob([bytes(id)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// An address that a packed script can be loaded from
export async function script(id) {
  return URL.createObjectURL(new Blob([await unpacked(id)], { type: "text/javascript" }));
}

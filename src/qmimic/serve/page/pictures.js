// The pictures on the page: files and kept frames, the models' results for each, and their thumbnails.

const EDGE = 1600; // longer side, in pixels, of the copy kept for drawing
const THUMB = 96;

// {name, blob, url, results: model -> result or {error}, pending: set of models, frame: whether no file has this name, so
// that the picture can be saved; source: the file's own name}
export function picture(name, blob, frame = false, source = null) {
  return { name, blob, frame, source, url: URL.createObjectURL(blob), results: new Map(), pending: new Set() };
}

export function forget(one) {
  URL.revokeObjectURL(one.url);
  one.image?.close();
}

// The picture in drawable form: {image, width, height}; image is null where the browser cannot show the format.
export async function drawable(one, edge = EDGE) {
  const element = new Image();
  element.src = one.url;
  try {
    await element.decode();
    const { naturalWidth: width, naturalHeight: height } = element;
    const scale = Math.min(1, edge / Math.max(width, height));
    const size = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    const options = { resizeWidth: size[0], resizeHeight: size[1], resizeQuality: "medium" };
    return { image: await createImageBitmap(element, options), width, height };
  } catch {
    return { image: null, width: 0, height: 0 };
  }
}

let queue = Promise.resolve(); // one at a time: thumbnails must not hold anything up

export function thumbnail(one, choose) {
  const button = document.createElement("button");
  const canvas = document.createElement("canvas");
  const name = document.createElement("span");
  button.type = "button";
  canvas.setAttribute("aria-hidden", "true");
  name.textContent = one.name;
  button.title = one.name;
  button.append(canvas, name);
  button.addEventListener("click", () => choose(one));
  queue = queue.then(async () => {
    const { image } = await drawable(one, THUMB * 2);
    if (!image) return;
    [canvas.width, canvas.height] = [image.width, image.height];
    canvas.getContext("2d").drawImage(image, 0, 0);
    image.close();
  });
  const item = document.createElement("li");
  item.append(button);
  return item;
}

// Requests to this server. Addresses are relative, since a proxy may serve the page under a path of its own.
// Every failure becomes an Error whose message is one sentence for the user.

const GONE = "The server does not answer; check whether `qmimic serve` is still running.";

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error(GONE);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const error = new Error(said.error ?? `The server answered ${answer.status}; try again.`);
  if (answer.status === 503) error.seconds = Number(answer.headers.get("retry-after")) || 5;
  throw error;
}

// {models, side_by_side, reports, limits}, see /openapi.json
export async function served() {
  return (await ask("api/models")).json();
}

// {width, height, milliseconds, detections: [{class, score, box: [x1, y1, x2, y2]}]}
export async function detect(model, picture) {
  const address = `api/detect?model=${encodeURIComponent(model)}`;
  const headers = { "content-type": "application/octet-stream" };
  return (await ask(address, { method: "POST", body: picture, headers })).json();
}

// A zip.
export async function labels(wanted) {
  const headers = { "content-type": "application/json" };
  return (await ask("api/labels", { method: "POST", body: JSON.stringify(wanted), headers })).blob();
}

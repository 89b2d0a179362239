"""Many clients at once against `qmimic serve`, a process of its own on this machine: failures, times, and its memory.

Each client sends one picture after another, of several formats and sizes up to 12 megapixels, to models by turns, and
every twentieth time asks for label files.

    python benchmarks/serve_load.py runs/demo --clients 50 --seconds 120
"""

import argparse
import asyncio
import io
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

PICTURES = (
    ("JPEG", (640, 480)),
    ("JPEG", (1920, 1080)),
    ("PNG", (800, 600)),
    ("WEBP", (640, 480)),
    ("JPEG", (4000, 3000)),
)
LABELS_EVERY = 20


@dataclass
class Tally:
    """What happened: seconds of each answered request, and failures by their reason."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


def pictures() -> list[bytes]:
    """Smooth colours with some noise, as files."""
    generator = np.random.default_rng(0)
    made = []
    for kind, size in PICTURES:
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size)
        grain = generator.integers(0, 24, (size[1], size[0], 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(np.asarray(coarse) // 2 + grain).save(file, kind)
        made.append(file.getvalue())
    return made


def resident(process: int) -> float:
    """MiB that a process holds in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


async def client(number: int, address: str, models: list[str], files: list[bytes], until: float, tally: Tally) -> None:
    """Requests one after another until the time is over."""
    async with httpx.AsyncClient(base_url=address, timeout=120) as session:
        turn = number
        while time.monotonic() < until:
            begin = time.monotonic()
            try:
                answer = await session.post(
                    "/api/detect", params={"model": models[turn % len(models)]}, content=files[turn % len(files)]
                )
                if answer.status_code == 200 and turn % LABELS_EVERY == 0:
                    found = answer.json()
                    picture = {key: found[key] for key in ("width", "height", "detections")}
                    classes = sorted({one["class"] for one in found["detections"]}) or ["none"]
                    wanted = {"format": "coco", "classes": classes, "pictures": [{**picture, "name": "a.jpg"}]}
                    tally.seconds.append(time.monotonic() - begin)
                    begin = time.monotonic()
                    answer = await session.post("/api/labels", json=wanted)
                if answer.status_code == 200:
                    tally.seconds.append(time.monotonic() - begin)
                else:
                    tally.failures[f"{answer.status_code} {answer.text[:100]}"] += 1
            except httpx.HTTPError as error:
                tally.failures[type(error).__name__] += 1
            turn += 1


async def load(address: str, process: int, clients: int, seconds: float) -> Tally:
    """All clients for some seconds; prints the server's memory on the way."""
    listed = httpx.get(f"{address}/api/models").json()
    models, files, tally = [one["name"] for one in listed["models"]], pictures(), Tally()
    print(f"models: {', '.join(models)}")
    print(f"memory at the start: {resident(process):.0f} MiB")
    until = time.monotonic() + seconds
    tasks = [asyncio.create_task(client(n, address, models, files, until, tally)) for n in range(clients)]
    for share in (0.25, 0.5, 0.75):
        await asyncio.sleep(seconds / 4)
        print(f"memory after {share * seconds:.0f} s: {resident(process):.0f} MiB", flush=True)
    await asyncio.gather(*tasks)
    print(f"memory at the end: {resident(process):.0f} MiB")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="run folders or files, as of `qmimic serve`")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    command = [sys.executable, "-m", "qmimic", "serve", *options.what, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = next((found[0] for line in server.stdout if (found := re.search(r"http://\S+", line))), None)
        if address is None:
            return 2  # the server has said why
        tally = asyncio.run(load(address, server.pid, options.clients, options.seconds))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    p50, p95, most = 1000 * np.percentile(tally.seconds, [50, 95, 100])
    print(f"{options.clients} clients, {options.seconds:g} s: {len(tally.seconds)} requests answered")
    print(f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, longest {most:.0f} ms")
    print(f"failures: {dict(tally.failures) or 'none'}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""What data cost: decoding against a training step, and an index of a million images.

    python benchmarks/data.py --json

Decoding: images a second of one core for JPEG files of 640 x 480 pixels, decoded whole, decoded as small as they are
needed, and read from the cache; beside the images a second of a training step on all threads.

Index: made of random labels (no image files), then opened, shuffled and read in fresh processes, whose memory is what
the system says of them.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIDE, BATCH = 256, 16
BOXES = 5  # of an image of the index, on average


def decoding(folder: Path) -> dict[str, float]:
    """Images a second."""
    import torch

    from profile_step import photographs
    from qmimic.data.images import read_image
    from qmimic.data.letterbox import letterbox, letterbox_file
    from qmimic.data.pixel_cache import PixelCache
    from qmimic.run.memory import keep_freed_memory
    from train_step import made_batch, ours, spec_of

    keep_freed_memory()
    size = (SIDE, SIDE)
    samples = photographs(folder, 64, (640, 480)).splits["train"]
    paths = [sample.image for sample in samples if sample.image]
    cache = PixelCache(folder / "pixels.bin", len(paths), size, 1 << 30)
    for index, path in enumerate(paths):
        cache.write(index, *letterbox_file(path, size))

    def copied(index: int) -> None:
        kept = cache.read(index)
        assert kept is not None
        kept[0].copy()

    def rate(work: Callable[[int], object]) -> float:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            for index in range(len(paths)):
                work(index)
            times.append(time.perf_counter() - began)
        return len(paths) / statistics.median(times)

    step = ours(spec_of("resnet18/16", SIDE), *made_batch(SIDE, BATCH, torch.device("cpu"))).step
    times = []
    for _ in range(15):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return {
        "decoded whole": rate(lambda index: letterbox(read_image(paths[index]), size)),
        "decoded small": rate(lambda index: letterbox_file(paths[index], size)),
        "read from the cache": rate(copied),
        "a step of resnet18/16": BATCH / statistics.median(times),
    }


def make_index(root: Path, count: int) -> None:
    """An index of random labels, as `qmimic data index` writes it."""
    from qmimic.data import index
    from qmimic.data.columns import Columns, Store
    from qmimic.data.sample import Dataset

    random = np.random.default_rng(0)
    counts = random.poisson(BOXES, count)
    total = int(counts.sum())
    corner = random.random((total, 2), np.float32) * 300
    ids = [b"%08d" % number for number in range(count)]
    names = [b"images/%08d.jpg" % number for number in range(count)]

    def texts(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        return np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)])

    store = Store(
        *texts(ids),
        *texts(names),
        image_sizes=np.tile(np.array([[640, 480]], np.int32), (count, 1)),
        image_times=np.zeros(count, np.int64),
        image_lengths=random.integers(20_000, 90_000, count),
        image_pixels=np.zeros(count, np.int64),
        starts=np.cumsum([0, *counts]),
        boxes=np.concatenate([corner, corner + 20 + 100 * random.random((total, 2), np.float32)], 1),
        labels=random.integers(0, 20, total).astype(np.int32),
        difficult=np.zeros(total, np.bool_),
        crowd=np.zeros(total, np.bool_),
    )
    splits = {"train": Columns(store, root, np.arange(count))}
    classes = tuple(f"class {number}" for number in range(20))
    index.write(Dataset("made", root, classes, splits, checked=True), drop_bad=False)


def memory() -> dict[str, float]:
    """MB of this process: resident, and its own share of what it has in common with others."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return {"resident": int(fields["Rss"].split()[0]) / 1e3, "share": int(fields["Pss"].split()[0]) / 1e3}


def open_index(root: Path) -> dict[str, float]:
    """Seconds and MB of opening, then of drawing the samples of a shuffled epoch's first thousand steps."""
    before = memory()["resident"]
    began = time.perf_counter()
    from qmimic.data import index

    imported = time.perf_counter()
    samples = index.read(root, drop_bad=False).splits["train"]
    opened = time.perf_counter()
    found = {"import_s": imported - began, "open_s": opened - imported, "python_mb": before}
    found |= {"resident_mb": memory()["resident"]}
    order = np.random.default_rng(0).permutation(len(samples))
    for place in order[: 1000 * BATCH]:
        assert len(samples[int(place)].boxes) >= 0
    found |= {"samples_per_s": 1000 * BATCH / (time.perf_counter() - opened)}
    return found


def worker(samples: object, ready: object, go: object, out: object) -> None:
    """A process that has the parent's index and reads all of its boxes."""
    samples.store.boxes.sum()
    ready.release()
    go.wait()
    out.put(memory())


def shared(root: Path) -> dict[str, float]:
    """MB of two worker processes that read the same index, forked from the one that opened it."""
    from qmimic.data import index

    context = multiprocessing.get_context("fork")
    samples = index.read(root, drop_bad=False).splits["train"]
    ready, go, out = context.Semaphore(0), context.Event(), context.Queue()
    workers = [context.Process(target=worker, args=(samples, ready, go, out)) for _ in range(2)]
    for one in workers:
        one.start()
    for _ in workers:
        ready.acquire()
    go.set()
    found = [out.get() for _ in workers]
    for one in workers:
        one.join()
    return {"resident_mb": found[0]["resident"], "own_share_mb": found[0]["share"]}


def in_fresh_process(task: str, root: Path) -> dict[str, float]:
    """A task's result, computed by a process that has done nothing else."""
    done = subprocess.run([sys.executable, __file__, "--task", task, "--root", root], check=True, capture_output=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a table, or with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=10**6, help="of the index")
    parser.add_argument("--task", choices=["open", "shared"], help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps({"open": open_index, "shared": shared}[options.task](options.root)))
        return
    table: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_index(root, options.images)
        table["index"] = in_fresh_process("open", root)
        table["two workers"] = in_fresh_process("shared", root)
        table["images a second"] = decoding(root)
    for title, row in table.items():
        print(title)
        for key, value in row.items():
            print(f"  {key:<24} {value:12,.2f}")
    if options.json:
        print(json.dumps({title: {key: round(value, 3) for key, value in row.items()} for title, row in table.items()}))


if __name__ == "__main__":
    main()

"""Milliseconds a click of the explorer takes, on a store of 2,000 test × 50,000 training rows.

    python benchmarks/explorer.py [FOLDER]

The store is made once (400 MB of influences) in FOLDER, by default a temporary one. A click is a
request over HTTP with the pictures that its page shows. Before each cold one the store's files are
dropped from the page cache, and the server is a new one; warm ones follow. What is printed is the
worst and the median of each kind, by the clock and of the processor (of server and client), and the
largest memory of the process.
"""

import http.client
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from influence_dag.datasets.assignment import fresh_axis
from influence_dag.explorer.serving import Serving, serve
from influence_dag.query.results import open_study
from influence_dag.store import Coordinate, Layout, Variable, open_store
from influence_dag.store.layout import pair_chunks

TEST, TRAIN, SIDE, CLASSES = 2_000, 50_000, 28, 10
LIMIT = 500  # ms a click may take
COLD, WARM = 3, 5


def make(folder: Path) -> None:
    """A store as a study would have it, with numbers drawn at random."""
    rng = np.random.default_rng(0)
    store = open_store(folder / "synthetic", keep_versions=1)
    axes = {}
    for split, size in (("test", TEST), ("train", TRAIN)):
        ids = np.array([f"{split}-{k:05d}" for k in range(size)], np.dtypes.StringDType())
        keys = rng.integers(1, 2**63, size, dtype=np.uint64)
        notes = np.array([f"note {k} of a row" for k in range(size)], np.dtypes.StringDType())
        labels = rng.integers(0, CLASSES, size)
        axes[split] = fresh_axis(split, ids, keys, labels, {"note": notes})[0]
    labels = (*axes["test"].coordinates, *axes["train"].coordinates)
    pixels = [Coordinate(name, (name,), np.arange(SIDE)) for name in ("row", "col")]
    variables: list[Variable] = []
    for split, axis in axes.items():
        size = len(axis), SIDE, SIDE
        dims, chunks = (split, "row", "col"), (256, SIDE, SIDE)
        variables.append(Variable(f"{split}_x", dims, size, "float64", chunks))
        variables.append(Variable(f"{split}_y", (split,), size[:1], "int64", (256,)))
    attrs = {"inputs": ["x"], "feature_dims": ["row", "col"], "classes": [], "scale": 1.0}
    write(store, "dataset", Layout(tuple(variables), (*labels, *pixels), attrs), rng)
    chunks = pair_chunks(TEST, TRAIN, itemsize=4)
    influences = Variable("influences", ("test", "train"), (TEST, TRAIN), "float32", chunks)
    about = {"n_train": TRAIN, "loss": "cross_entropy", "damping": 0.01}
    write(store, "direct/influences", Layout((influences,), labels, about), rng)
    names = {f"{split}_{what}": split for split in axes for what in ("loss", "sum", "predicted")}
    names["self_influence"] = "train"
    sizes = {"test": (TEST, chunks[0]), "train": (TRAIN, chunks[1])}
    rows = tuple(
        Variable(name, (split,), (sizes[split][0],), "float64", (sizes[split][1],))
        for name, split in names.items()
    )
    write(store, "direct/summary", Layout(rows, labels, about | {"influences_version": 1}), rng)


def write(store, artifact: str, layout: Layout, rng: np.random.Generator) -> None:
    """Publish a version with random numbers, chunk by chunk."""
    with store.new_version(artifact, layout) as draft:
        for variable in layout.variables:
            for index in np.ndindex(*variable.grid):
                region = variable.region(index)
                shape = [part.stop - part.start for part in region]
                values = rng.random(shape) if "_x" in variable.name else rng.normal(size=shape)
                if variable.name.endswith(("_y", "predicted")):
                    values = rng.integers(0, CLASSES, shape)
                elif variable.name.endswith(("_loss", "self_influence")):
                    values = np.abs(values)
                start = tuple(part.start for part in region)
                draft.write(variable.name, start, values.astype(variable.dtype), {index: b"k" * 16})


def clicks() -> Iterator[tuple[str, list[str]]]:
    """Kinds of clicks, each with what its page asks for."""
    rng = np.random.default_rng(1)

    def picture(split: str, name: str) -> str:
        return f"picture?{urlencode({'split': split, 'id': name, 'input': 'x'})}"

    tests = [f"test-{k:05d}" for k in rng.integers(0, TEST, 40)]
    trains = [f"train-{k:05d}" for k in rng.integers(0, TRAIN, 40)]
    yield "open the study", ["study", "rows?split=test&sort=loss"]
    yield "filter test rows", ["rows?split=test&sort=total&wrong=1&label=3&search=note"]
    yield "search training rows", ["rows?split=train&sort=self_influence&search=4999"]
    yield "training rows", ["rows?split=train&sort=self_influence", "scatter"]
    yield "a page of pictures", [picture("train", name) for name in trains]
    yield "one test row", [f"row?split=test&id={tests[0]}", picture("test", tests[0])]
    yield "one training row", [f"row?split=train&id={trains[0]}", picture("train", trains[0])]
    yield "one pair", [f"pair?test={tests[1]}&train={trains[1]}"]
    yield "side by side", [f"compare?split=test&id={tests[2]}&with_method=direct"]


def click(serving: Serving, asked: list[str]) -> tuple[float, float]:
    """Milliseconds by the clock, and of the processor."""
    started = time.perf_counter(), time.process_time()
    connection = http.client.HTTPConnection(serving.host, serving.port)
    for path in asked:
        connection.request("GET", f"/api/{path}")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body[:300]
    connection.close()
    return 1e3 * (time.perf_counter() - started[0]), 1e3 * (time.process_time() - started[1])


def forget(folder: Path) -> None:
    """Drop the store's files from the system's page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path) -> dict[str, dict[str, float]]:
    found = {}
    for kind, asked in clicks():
        cold, warm = [], []
        for _ in range(COLD):
            serving = serve(open_study(folder / "synthetic"))
            forget(folder)
            cold.append(click(serving, asked))
            warm += [click(serving, asked) for _ in range(WARM)]
            serving.stop()
        found[kind] = {
            "cold, worst": max(cold)[0],
            "cold": statistics.median(clock for clock, _ in cold),
            "warm": statistics.median(clock for clock, _ in warm),
            "cold CPU": statistics.median(cpu for _, cpu in cold),
            "warm CPU": statistics.median(cpu for _, cpu in warm),
        }
    return found


def main() -> None:
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    if not (place / "synthetic").is_dir():
        make(place)
    found = measure(place)
    print(f"{'ms a click':24}" + "".join(f"{name:>13}" for name in next(iter(found.values()))))
    for kind, times in found.items():
        print(f"{kind:24}" + "".join(f"{value:13.0f}" for value in times.values()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory of the process: {peak:.2f} GiB")
    late = {kind: times for kind, times in found.items() if times["cold, worst"] > LIMIT}
    print(json.dumps({"limit_ms": LIMIT, "over": sorted(late)}))


if __name__ == "__main__":
    main()

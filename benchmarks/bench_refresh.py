"""What a refresh costs beside a full run: `pytest benchmarks/bench_refresh.py -s`.

250 test and 50,000 training rows, softmax regression of 256 parameters that the pipeline fits,
θ and curvature pinned afterwards. Seconds are the processor's, both sides of a ratio in one process
with everything imported; bytes are those of all files that were not there before.
"""

import csv
import shutil
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import yaml

from influence_dag.stages.graph import artifacts
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.study.loading import load_study

N_TEST, N_TRAIN, FEATURES, CLASSES = 250, 50_000, 15, 16
CHUNK = 1024
EDITED = [start + k for start in (0, 20 * CHUNK, 40 * CHUNK) for k in range(34)][:100]
SETTINGS = {
    "model": {"build": "bench_model:build", "refit": "pinned", "fit": {"weight_decay": 0.01}},
    "methods": {"direct": {}},
    "curvature": {"refresh": "pinned"},
    "store": {"path": "store", "chunks": {"test": N_TEST, "train": CHUNK}},
}
DATA = {
    "npz": {"target": "y"},
    "csv": {"id": "id", "target": "y"},
}
MODEL = f"""
from torch import nn


def build():
    return nn.Linear({FEATURES}, {CLASSES})
"""


@dataclass
class Run:
    cpu: float
    seconds: float
    new_bytes: int
    updates: dict[str, Update]


class Bench:
    def __init__(self, root, suffix):
        self.root, self.folder, self.suffix = root, root / "assets" / "bench", suffix
        self.folder.mkdir(parents=True)
        (root / "pyproject.toml").touch()
        (root / "bench_model.py").write_text(MODEL)
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(CLASSES, FEATURES))
        self.rows = {}
        for split, n in (("train", N_TRAIN), ("test", N_TEST)):
            y = rng.integers(CLASSES, size=n)
            self.rows[split] = {"x": (rng.normal(size=(n, FEATURES)) + centres[y]).round(6), "y": y}
            self.write(split)
        data = {split: f"{split}.{suffix}" for split in self.rows} | DATA[suffix]
        content = {
            "type": "influence_dag.components.InfluenceStudy",
            "attributes": {"data": data, **SETTINGS},
        }
        (self.folder / "defs.yaml").write_text(yaml.safe_dump(content))

    def write(self, split: str) -> None:
        path, (x, y) = self.root / f"{split}.{self.suffix}", self.rows[split].values()
        if self.suffix == "npz":
            np.savez(path, **self.rows[split])
            return
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", *(f"x{k}" for k in range(FEATURES)), "y"])
            table.writerows([f"{split}-{k}", *x[k].tolist(), y[k]] for k in range(len(y)))

    def edit(self, positions) -> None:
        self.rows["train"]["x"][positions] += 0.5
        self.write("train")

    def files(self) -> dict[int, int]:
        found = [path.stat() for path in (self.root / "store").rglob("*") if path.is_file()]
        return {status.st_ino: status.st_size for status in found}

    def refresh(self) -> Run:
        sys.modules.pop("bench_model", None)
        before = self.files()
        cpu, started = time.process_time(), time.perf_counter()
        bench = Workbench(load_study(self.folder))
        updates = {node.name: node.refresh(bench) for node in artifacts(bench.study)}
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
        new = sum(size for file, size in self.files().items() if file not in before)
        return Run(cpu, seconds, new, updates)


@pytest.fixture(scope="module", params=["npz", "csv"])
def full_run(request, tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"), request.param)
    sys.path.insert(0, str(bench.root))
    bench.refresh()  # imports, and whatever else is done once a process
    shutil.rmtree(bench.root / "store")
    yield bench, bench.refresh()
    sys.path.remove(str(bench.root))


def told(what: str, run: Run, full: Run) -> None:
    print(
        f"\n{what}: {run.cpu:.2f} of {full.cpu:.2f} CPU s ({run.cpu / full.cpu:.1%}), "
        f"{run.new_bytes:,} of {full.new_bytes:,} bytes ({run.new_bytes / full.new_bytes:.1%}), "
        f"{run.seconds:.2f} s"
    )
    for name, update in run.updates.items():
        print(f"  {name:28} {update.blocks_computed:4} blocks {update.bytes_written:12,} bytes "
              f"{update.seconds:6.2f} s")  # fmt: skip


def test_nothing_changed(full_run):
    bench, full = full_run
    run = min((bench.refresh() for _ in range(5)), key=lambda run: run.seconds)
    told("nothing changed", run, full)
    assert all(update.is_current for update in run.updates.values())
    assert {update.version for update in run.updates.values()} == {1}
    assert run.new_bytes == 0
    assert run.cpu <= 0.1 * full.cpu


def test_a_hundred_rows_in_three_chunks(full_run):
    bench, full = full_run
    told("full run", full, full)
    runs = []
    for _ in range(3):
        bench.edit(EDITED)
        runs.append(bench.refresh())
    run = min(runs, key=lambda run: run.cpu)
    told("100 rows in 3 chunks", run, full)
    assert run.updates["direct/influences"].blocks_computed == 3
    assert run.new_bytes <= 0.1 * full.new_bytes
    # A .csv is parsed whole, which is 3 % by itself.
    assert run.cpu <= (0.1 if bench.suffix == "npz" else 0.15) * full.cpu

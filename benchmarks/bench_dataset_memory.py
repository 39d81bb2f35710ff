"""Memory of reading a callable's data set: it does not follow the number of rows.

200,000 rows of 3,072 float32 numbers are 2.5 GB, 4.9 GB as the float64 that is stored; whoever
reads them holds blocks. Each size runs in a process of its own; peaks are those of the process
(`ru_maxrss`), of which an import of torch is about 0.3 GB.

    pytest benchmarks/bench_dataset_memory.py -s
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FEATURES = 3_072
ROWS = (20_000, 80_000, 200_000)
A_ROW = 400  # bytes that may stay in memory of each: its id, label, keys; not its 12,288 of numbers

MODULE = """
import numpy as np


class Rows:
    def __init__(self, n):
        self.n, self.noise = n, np.random.default_rng(0).normal(size=8_192).astype(np.float32)

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        start = row * 7_919 % 5_000
        return self.noise[start : start + 3_072] * np.float32(1 + row / self.n), row % 10


def train():
    return Rows(N)


def test():
    return Rows(16)


def build():
    from torch import nn

    return nn.Linear(3_072, 10)
"""
MEASURE = """
import json, resource, sys, time
from influence_dag.study.loading import load_study
from influence_dag.stages import dataset
from influence_dag.stages.workbench import Workbench

def peak():
    return sum(
        resource.getrusage(who).ru_maxrss * 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )

sys.path.insert(0, {root!r})
started, before = time.perf_counter(), peak()
update = dataset.refresh(Workbench(load_study({folder!r})))
print(json.dumps({{"peak": peak(), "before": before, "seconds": time.perf_counter() - started}}))
"""


def measured(root: Path, rows: int, *, workers: int = 0) -> dict[str, float]:
    """Peak memory and time of the stage `dataset` over so many rows."""
    folder = root / "assets" / "many"
    folder.mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / "many_rows.py").write_text(MODULE.replace("N)", f"{rows})", 1))
    attributes = {
        "data": {"train": "many_rows:train", "test": "many_rows:test", "workers": workers},
        "model": {"build": "many_rows:build", "fit": {"weight_decay": 0.1}},
        "methods": {"ekfac": {}},
        "store": "store",
    }
    content = {"type": "influence_dag.components.InfluenceStudy", "attributes": attributes}
    (folder / "defs.yaml").write_text(yaml.safe_dump(content))
    code = MEASURE.format(root=str(root), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("workers", "sizes"), [(0, ROWS), (2, ROWS[:2])])
def test_peak_memory_does_not_follow_the_rows(tmp_path, workers, sizes):
    found = {n: measured(tmp_path / str(n), n, workers=workers) for n in sizes}
    for n, each in found.items():
        size = f"{n * FEATURES * 4 / 1e6:,.0f} MB of float32"
        print(f"{n:>8,} rows ({size}): {each['peak'] / 1e6:.0f} MB, {each['seconds']:.0f} s")
    grown = found[sizes[-1]]["peak"] - found[sizes[0]]["peak"]
    assert grown < A_ROW * (sizes[-1] - sizes[0]) + workers * 100e6  # whatever each has in flight

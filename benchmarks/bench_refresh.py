"""What a refresh costs beside a full run: `pytest benchmarks/bench_refresh.py -s`.

250 test and 50,000 training rows, a model of 256 parameters, θ and curvature pinned.
"""

import sys
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from influence_dag.graph import artifacts
from influence_dag.running import load_study
from influence_dag.stages.base import Update, Workbench

N_TEST, N_TRAIN, FEATURES, OUTPUTS = 250, 50_000, 15, 16
SETTINGS = {
    "data": {"train": "train.npz", "test": "test.npz", "target": "y"},
    "model": {"build": "bench_model:build", "loss": "mse", "checkpoint": "theta.safetensors"},
    "damping": 0.01,
    "methods": {"direct": {}},
    "curvature": {"refresh": "pinned"},
    "store": {"path": "store", "chunks": {"test": N_TEST, "train": 1024}},
}
MODEL = f"""
from torch import nn


def build():
    return nn.Linear({FEATURES}, {OUTPUTS})
"""


class Bench:
    def __init__(self, root):
        self.root, self.folder = root, root / "assets" / "bench"
        self.folder.mkdir(parents=True)
        (root / "pyproject.toml").touch()
        (root / "bench_model.py").write_text(MODEL)
        rng = np.random.default_rng(0)
        theta = {"weight": (OUTPUTS, FEATURES), "bias": (OUTPUTS,)}
        tensors = {name: torch.from_numpy(rng.normal(size=shape)) for name, shape in theta.items()}
        save_file(tensors, root / "theta.safetensors")
        self.rows = {
            split: {"x": rng.normal(size=(n, FEATURES)), "y": rng.normal(size=(n, OUTPUTS))}
            for split, n in (("train", N_TRAIN), ("test", N_TEST))
        }
        for split, arrays in self.rows.items():
            np.savez(root / f"{split}.npz", **arrays)
        content = {"type": "influence_dag.components.InfluenceStudy", "attributes": SETTINGS}
        (self.folder / "defs.yaml").write_text(yaml.safe_dump(content))

    def edit(self, positions) -> None:
        self.rows["train"]["x"][positions] += 0.5
        np.savez(self.root / "train.npz", **self.rows["train"])

    def refresh(self) -> tuple[float, dict[str, Update]]:
        sys.modules.pop("bench_model", None)
        started = time.perf_counter()
        bench = Workbench(load_study(self.folder))
        updates = {node.name: node.refresh(bench) for node in artifacts(bench.study)}
        return time.perf_counter() - started, updates


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    return bench, *bench.refresh()


def written(updates) -> int:
    return sum(update.bytes_written for update in updates.values())


def told(what: str, seconds: float, updates: dict[str, Update], full_seconds: float) -> None:
    print(f"\n{what}: {seconds:.2f} s of {full_seconds:.2f} s, {written(updates):,} bytes")
    for name, update in updates.items():
        print(f"  {name:28} {update.blocks_computed:4} blocks {update.bytes_written:12,} bytes "
              f"{update.seconds:6.2f} s")  # fmt: skip


def test_nothing_changed(full_run):
    bench, full_seconds, _ = full_run
    seconds, updates = min((bench.refresh() for _ in range(5)), key=lambda run: run[0])
    told("nothing changed", seconds, updates, full_seconds)
    assert all(update.is_current for update in updates.values())
    assert {update.version for update in updates.values()} == {1}
    assert seconds <= 1


def test_a_hundred_rows_in_three_chunks(full_run):
    bench, full_seconds, full = full_run
    told("full run", full_seconds, full, full_seconds)
    bench.edit([start + k for start in (0, 20 * 1024, 40 * 1024) for k in range(34)][:100])
    seconds, updates = bench.refresh()
    told("100 rows in 3 chunks", seconds, updates, full_seconds)
    influences = updates["direct/influences"]
    assert influences.blocks_computed == 3
    assert influences.bytes_written <= 0.1 * full["direct/influences"].bytes_written
    assert influences.seconds <= 0.5 * full["direct/influences"].seconds  # links and labels stay

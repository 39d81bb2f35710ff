"""A small project made in a folder: csv files, a model, a `defs.yaml`. Its rows can be edited."""

import copy
import csv
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from influence_dag.query.results import StudyResults, open_study
from influence_dag.running import materialize
from influence_dag.stages.graph import artifacts
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Report, Workbench
from influence_dag.study.imported import import_callable
from influence_dag.study.loading import load_study

COLUMNS = ["id", "height", "width", "depth", "label"]
SETTINGS: dict[str, Any] = {
    "data": {"train": "train.csv", "test": "test.csv", "id": "id", "target": "label"},
    "model": {
        "build": "tiny_model:build",
        "fit": {"optimizer": "lbfgs", "weight_decay": 0.05, "seed": 0},
    },
    "methods": {"direct": {}, "cg": {"rtol": 1e-10, "rank": 8}},
    "perturbation": {"methods": ["direct"]},
    "compute": {"dtype": "float64"},
    "store": {"path": "store", "chunks": {"test": 4, "train": 8}},
}
MODEL = """\
import torch
from torch import nn


def build():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
"""


class Project:
    """A project with the study `tiny`: 40 training rows, 10 test rows, 3 features, 3 classes."""

    def __init__(self, root: Path, *, model: str = MODEL, **changes: Any):
        self.root = root
        self.settings = merged(SETTINGS, changes)
        (root / "assets" / "tiny").mkdir(parents=True)
        (root / "pyproject.toml").touch()
        self.write_model(model)
        self.write_settings()
        self.rows = {"train": make_rows("train", 40), "test": make_rows("test", 10)}
        self.write("train")
        self.write("test")

    def write(self, split: str, rows: list[list] | None = None) -> None:
        self.rows[split] = self.rows[split] if rows is None else rows
        with (self.root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *self.rows[split]])

    def write_model(self, source: str) -> None:
        (self.root / "tiny_model.py").write_text(source)
        sys.modules.pop("tiny_model", None)

    def write_settings(self, **changes: Any) -> None:
        self.settings = merged(self.settings, changes)
        content = {"type": "influence_dag.components.InfluenceStudy", "attributes": self.settings}
        (self.folder / "defs.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def edit(self, split: str, position: int, **values: Any) -> None:
        """Change some columns of a row."""
        rows = [list(row) for row in self.rows[split]]
        for column, value in values.items():
            rows[position][COLUMNS.index(column)] = value
        self.write(split, rows)

    @property
    def folder(self) -> Path:
        return self.root / "assets" / "tiny"

    @property
    def store(self) -> Path:
        return self.root / self.settings["store"]["path"] / "tiny"

    def materialize(self) -> StudyResults:
        """The whole job with its checks, in this process."""
        return materialize(self.folder, progress=False)

    def refresh(self, report: Report = lambda message: None) -> dict[str, Update]:
        """Every stage in order, without Dagster around them."""
        bench = Workbench(load_study(self.folder), report)
        return {node.name: node.refresh(bench) for node in artifacts(bench.study)}

    def bench(self) -> Workbench:
        return Workbench(load_study(self.folder))

    @property
    def results(self) -> StudyResults:
        return open_study(self.store)

    def data_versions(self) -> dict[str, str]:
        return {
            name: self.results.store.version(name).data_version for name in self.results.artifacts
        }

    def copy(self, root: Path, *, artifacts: Iterable[str] | None = None) -> "Project":
        """The project with its store, or with these artifacts of it, elsewhere."""
        leave = () if artifacts is None else (self.settings["store"]["path"],)
        copy_tree(self.root, root, leave)
        sys.modules.pop("tiny_model", None)
        other = copy.copy(self)
        other.root, other.rows = root, copy.deepcopy(self.rows)
        other.settings = copy.deepcopy(self.settings)
        for name in artifacts or ():
            copy_tree(self.store / name, other.store / name)
        return other

    def remove_store(self) -> None:
        shutil.rmtree(self.store)

    def tensors(self, split: str, dtype: Any = None) -> tuple:
        """Features (float64 unless said) and labels as the model sees them, from the rows."""
        import torch

        numbers = np.array([row[1:] for row in self.rows[split]], dtype=np.float64)
        return torch.tensor(numbers[:, :3], dtype=dtype or torch.float64), torch.tensor(
            numbers[:, 3]
        ).long()

    def stored_module(self) -> Any:
        """Its network with the stored parameters, in float64."""
        from safetensors.torch import load

        module = import_callable("tiny_model:build", self.root, "model.build")().double()
        module.load_state_dict(load(self.results.store.version("model").file("model.safetensors")))
        return module


def copy_tree(source: str | Path, target: str | Path, leave: Iterable[str] = ()) -> None:
    """`shutil.copytree`, links as links, in a third of its time: hundreds of tests wait for it."""
    with os.scandir(source) as found:
        entries = list(found)
    os.makedirs(target, exist_ok=True)  # which may lie in the source
    for entry in entries:
        there = f"{target}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), there)
        elif entry.name not in leave:
            (copy_tree if entry.is_dir() else _copy_file)(entry.path, there)
    status = os.stat(source)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_file(source: str, target: str) -> None:
    read = os.open(source, os.O_RDONLY)
    status = os.fstat(read)
    written = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, status.st_mode)
    assert os.write(written, os.read(read, status.st_size)) == status.st_size
    os.fchmod(written, status.st_mode)
    os.utime(written, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.close(read)
    os.close(written)


def make_rows(split: str, n: int) -> list[list]:
    """Three overlapping clouds of points."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(n) % 3
    x = (rng.normal(size=(n, 3)) + 1.2 * np.eye(3)[labels]).round(6).tolist()
    return [[f"{split}-{k:02d}", *x[k], int(labels[k])] for k in range(n)]


def merged(settings: dict, changes: dict) -> dict:
    """Settings with changes, group by group; None removes a setting."""
    result = copy.deepcopy(settings)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], value)
        else:
            result[name] = value
    return {name: value for name, value in result.items() if value is not None}


def shown(value: object) -> str:
    """The name of a test's argument; sets in an order that every process has."""
    return str(sorted(value)) if isinstance(value, set | frozenset) else str(value)

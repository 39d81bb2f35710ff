"""How a study grows with its training rows: 10⁴, 10⁵, 10⁶ synthetic ones, 100 test rows, p = 27.

`python benchmarks/scale.py --rows 10000 100000 1000000 --scratch FOLDER` makes each study in a
process of its own (softmax regression on 8 features, 3 classes; `direct`, float32) and prints of
each stage processor seconds, the peak of resident memory and bytes on disk, then how each grows:
the slope in logarithms between one size and the next.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from mnist_mlp import megabytes, timed

FEATURES, CLASSES, TESTS = 8, 3, 100
MODEL = f"""
from torch import nn


def build():
    return nn.Linear({FEATURES}, {CLASSES})
"""
STUDY = """
type: influence_dag.components.InfluenceStudy
attributes:
  data: {train: data/train.npz, test: data/test.npz, id: id, target: label}
  model: {build: linear:build, fit: {optimizer: lbfgs, weight_decay: 0.01, seed: 0}}
  methods: {direct: {}}
  store: store
"""
Found = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--scratch", type=Path, help="a folder on a disk, for project and store")
    parser.add_argument("--project", type=Path, help=argparse.SUPPRESS)  # in the other process
    options = parser.parse_args()
    if options.project:
        print(json.dumps(measured(options.project)))
        return
    found = {count: made(count, options.scratch) for count in options.rows}
    show(found)


def made(count: int, scratch: Path | None) -> Found:
    if scratch:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        write(Path(folder), count)
        here = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, folder])}
        command = [sys.executable, __file__, "--project", folder]
        done = subprocess.run(command, check=True, env=here, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def write(project: Path, count: int) -> None:
    """Rows around three centres, whose classes overlap."""
    (project / "data").mkdir()
    (project / "linear.py").write_text(MODEL)
    (project / "pyproject.toml").touch()
    centres = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    for split, rows, seed in (("train", count, 1), ("test", TESTS, 2)):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, CLASSES, rows)
        x = (centres[label] + 1.5 * rng.normal(size=(rows, FEATURES))).astype(np.float32)
        np.savez(project / f"data/{split}.npz", x=x, label=label, id=np.arange(rows))
    study = project / "assets" / "rows"
    study.mkdir(parents=True)
    (study / "defs.yaml").write_text(STUDY)


def measured(project: Path) -> Found:
    """Of each artifact, then of all checks, in the order in which they are made."""
    from influence_dag.stages.graph import artifacts
    from influence_dag.stages.workbench import Workbench
    from influence_dag.study.loading import load_study

    bench = Workbench(load_study(project / "assets" / "rows"))
    nodes, found = list(artifacts(bench.study)), {"imports": timed(lambda: None)}
    for node in nodes:
        found[node.name] = timed(lambda node=node: node.refresh(bench))
        version = bench.store.current(node.name)
        found[node.name]["disk_MB"] = megabytes(Path(version.address)) if version else 0.0
        print(node.name, found[node.name], file=sys.stderr, flush=True)
    asked = [promise for node in nodes for promise in node.checks]
    found["checks"] = timed(lambda: [promise.outcome(Workbench(bench.study)) for promise in asked])
    return found


def show(found: dict[int, Found]) -> None:
    counts = sorted(found)
    for name in found[counts[0]]:
        cells = [found[count][name] for count in counts]
        said = [
            f"{each['cpu_s']:8.2f} s {each['peak_MB']:6.0f} MB {each.get('disk_MB', 0):8.1f} MB"
            for each in cells
        ]
        print(f"{name:26}" + " |".join(said) + f" | {slopes(counts, cells)}")
    for count in counts:
        total = sum(each["cpu_s"] for each in found[count].values())
        most = max(each["peak_MB"] for each in found[count].values())
        print(f"{count:>9,} rows: {total:.1f} CPU s, at most {most:.0f} MB")


def slopes(counts: list[int], cells: list[dict[str, float]]) -> str:
    said = []
    for (n, one), (m, other) in itertools.pairwise(zip(counts, cells, strict=True)):
        ratio = max(other["cpu_s"], 1e-9) / max(one["cpu_s"], 1e-9)
        said.append(f"{math.log(ratio) / math.log(m / n):.2f}")
    return "n^" + ", n^".join(said) if said else ""


if __name__ == "__main__":
    main()

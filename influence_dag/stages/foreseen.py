"""What a study will cost and whether it can work, from a few rows: `influence-dag check`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.stages.costs import Cost, Rates, cost_of
from influence_dag.stages.graph import artifacts
from influence_dag.store import open_store
from influence_dag.study.loading import study_to_run
from influence_dag.study.study import Study
from influence_dag.study.torch_modes import study_modes
from influence_dag.texts import readable_bytes

if TYPE_CHECKING:
    from influence_dag.datasets.sources.on_demand import Values
    from influence_dag.datasets.split_rows import SplitRows
    from influence_dag.objective.objective import Objective, Rows

TRIED = 256  # rows that are differentiated to measure a rate
SLACK = 3  # estimated times hold within this factor, about


@dataclass(frozen=True)
class Foreseen:
    """What a study is made of and what it will cost, and what is worth a warning."""

    study: Study
    rows: dict[str, int]
    features: dict[str, tuple[int, ...]]
    classes: tuple[str, ...]
    parameters: int
    costs: tuple[Cost, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        classes = f", {len(self.classes)} classes ({', '.join(self.classes)})" * bool(self.classes)
        shapes = {name: " × ".join(map(str, of)) or "1" for name, of in self.features.items()}
        named = [f"{shape} {name}" for name, shape in shapes.items()]
        inputs = ", ".join(named) if len(named) > 1 else f"{next(iter(shapes.values()))} features"
        head = [
            f"{self.study.name}: {self.rows['train']:,} training rows, {self.rows['test']:,} test "
            f"rows, {inputs}{classes}; {self.parameters:,} parameters",
            f"  {'artifact':<34}{'disk':>10}{'memory':>10}{'time':>10}",
        ]
        total = Cost(
            "all",
            sum(cost.disk for cost in self.costs),
            max(cost.memory for cost in self.costs),
            sum(cost.seconds for cost in self.costs),
        )
        return "\n".join(
            [
                *head,
                *map(_line, (*self.costs, total)),
                f"  Times follow rates measured here on {TRIED} rows or less, within a factor of "
                f"{SLACK} or so; bytes are those before compression.",
                *(f"warning: {each}" for each in self.warnings),
            ]
        )


def _line(cost: Cost) -> str:
    disk, memory = readable_bytes(cost.disk), readable_bytes(cost.memory)
    return f"  {cost.artifact:<34}{disk:>10}{memory:>10}{_duration(cost.seconds):>10}"


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return "< 0.1 s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


@study_modes()
def foresee(folder: str | Path) -> Foreseen:
    """Read the rows, build the model, try both on a few rows; nothing is fitted, solved or stored.

    Raises what a refresh would raise for the settings, the rows, the module, its checkpoint and
    the loss.
    """
    study = study_to_run(folder)
    from influence_dag.datasets.splits import check_precisions, load_splits
    from influence_dag.stages.class_order import check_words

    train, test = load_splits(study.settings.data, study.root)
    check_words(study.settings, train)
    check_precisions((train, test), study.settings.compute.dtype)
    rates = _measured(study, train, test)
    costs = tuple(cost_of(name, study, rates) for name in (node.name for node in artifacts(study)))
    return Foreseen(
        study,
        {"train": len(train), "test": len(test)},
        {name: x.shape[1:] for name, x in train.x.items()},
        train.classes or (),
        rates.parameters,
        costs,
        tuple(_warnings(study, train, costs)),
    )


def _measured(study: Study, train: "SplitRows", test: "SplitRows") -> Rates:
    import torch

    from influence_dag.gradients.per_sample import per_sample_gradients

    objective, rows = _tried(study, train, test)
    few = rows[: min(len(rows), 4)]
    stored = sum(
        each[0].numel() for each in per_sample_gradients(objective, few).tensors().values()
    )
    dtype = getattr(torch, study.settings.compute.dtype)
    square = torch.rand(512, 512, dtype=dtype)
    return Rates(
        len(train),
        len(test),
        sum(int(np.prod(x.shape[1:])) for x in train.x.values()),
        dtype.itemsize,
        objective.size,
        stored,
        _seconds(lambda: _gradient(objective, rows)) / len(rows),
        train.on_demand,
        _seconds(lambda: square @ square) / 512**3,
    )


def _seconds(call: Callable[[], Any]) -> float:
    """The shortest of three runs, after one to warm up."""
    call()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _gradient(objective: "Objective", rows: "Rows") -> None:
    theta = objective.params.clone().requires_grad_()
    objective.mean_loss(theta, rows).backward()


def _tried(study: Study, train: "SplitRows", test: "SplitRows") -> "tuple[Objective, Rows]":
    """The model on a few training rows, checked as a refresh checks it; labels of all rows."""
    import torch

    from influence_dag.objective import modules
    from influence_dag.objective.checks import check_labels
    from influence_dag.stages.class_order import check_order
    from influence_dag.stages.reading import naming_targets, study_objective

    settings = study.settings.model
    dtype = getattr(torch, study.settings.compute.dtype)
    module = modules.build_module(settings, study.root, dtype).eval()
    if settings.checkpoint:
        modules.load_checkpoint(module, study.path(settings.checkpoint))
    objective = study_objective(study, module)
    few = _some_rows(train, TRIED, dtype)
    for split in (train, test)[: 1 if settings.measurement else 2]:
        with naming_targets(split.source, split.ids, study.settings.data.target):
            check_labels(objective, few[:2].x, torch.from_numpy(split.y))
    if settings.checkpoint:
        check_order(objective, few, list(train.classes or ()), settings.checkpoint)
    objective.check(few)
    return objective, few


def _some_rows(split: "SplitRows", count: int, dtype: Any) -> "Rows":
    """Rows that lie evenly among all: the first of a sorted file are of one class."""
    import torch

    from influence_dag.objective.objective import Rows

    count = min(count, len(split))
    at = np.arange(count) * len(split) // count

    def tensor(values: "Values") -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values[at]))
        return tensor.to(dtype) if tensor.is_floating_point() else tensor.long()

    x = {name: tensor(values) for name, values in split.x.items()}
    weights = None if split.weights is None else tensor(split.weights)
    if weights is not None and not weights.any():
        weights = None  # of these few rows none counts
    return Rows(next(iter(x.values())) if len(x) == 1 else x, tensor(split.y), weights)


def _warnings(study: Study, train: "SplitRows", costs: tuple[Cost, ...]) -> Iterator[str]:
    from influence_dag.datasets.standardising import unscaled
    from influence_dag.objective.free_memory import free_memory

    features = study.settings.data.features
    if not features.standardise and (names := unscaled(train)):
        told = "" if study.settings.compute.dtype == "float64" else "compute: {dtype: float64} or "
        yield (
            f"columns of very different scales ({', '.join(names)}) leave few digits to the "
            f"solves; {told}columns of one scale help"
        )
    yield from _above_the_limit(study, costs)
    need, free = sum(cost.disk for cost in costs), open_store(study.store_address).free_bytes()
    if free is not None and need > free:
        yield f"{readable_bytes(need)} are to be stored, {readable_bytes(free)} are free"
    memory, there = max(costs, key=lambda cost: cost.memory), free_memory()
    if there and memory.memory > there:
        yield (
            f"{memory.artifact} takes {readable_bytes(memory.memory)} of memory, "
            f"{readable_bytes(there)} are there; ekfac or cg need less than direct"
        )


def _above_the_limit(study: Study, costs: tuple[Cost, ...]) -> Iterator[str]:
    """Perturbation influences that a refresh will refuse to store, when it comes to them."""
    if (asked := study.settings.perturbation) is None:
        return
    name, limit = "/perturbation_influences", readable_bytes(asked.max_bytes)
    above = [each for each in costs if each.artifact.endswith(name) and each.disk > asked.max_bytes]
    for cost in above:
        yield (
            f"{cost.artifact} would take {readable_bytes(cost.disk)}, and is refused above "
            f"perturbation.max_bytes, {limit}; raise it, or keep less (perturbation.reduce, "
            "perturbation.pairs)"
        )

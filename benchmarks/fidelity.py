"""How faithful every method is on the bundled networks, and what it costs: `make fidelity`.

Fits the studies `digits` and `digits_cnn`, computes the influences of all training rows on some
test rows by every method, and compares with the exact damped solve (float64) and with models
fitted to random halves of the data. Prints a table for each study and puts it between its marks in
docs/methods.md; `python benchmarks/fidelity.py digits` measures one of them, `stopped_early` a
network that was not trained to a minimum (half a CPU minute). One thread, processor
seconds; memory is what a method adds to the process's peak (Linux only).
"""

import argparse
import ctypes
import datetime
import gc
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import partially_trained
import torch
from torch import Tensor

from influence_dag.curvature import Curvature, DenseCurvature, GaussNewton, Hessian
from influence_dag.datasets.splits import load_splits
from influence_dag.gradients.per_sample import per_sample_gradients
from influence_dag.objective import modules
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import (
    EKFAC,
    KFAC,
    Arnoldi,
    ConjugateGradient,
    Direct,
    Identity,
    LiSSA,
    Method,
    Nystroem,
)
from influence_dag.study.loading import load_study
from influence_dag.study.model import FitSettings
from influence_dag.study.study import Study
from influence_dag.validation.agreement import spearman
from influence_dag.validation.datamodels import (
    SubsetFits,
    draw_subsets,
    fit_subsets,
    initial_params,
    linear_datamodelling_score,
)

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/methods.md"
TESTS, TOP = 100, 20
OTHERS = {1.5e-3, 3e-3, 3e-2, 1e-1}  # dampings at which exact influences are scored as well
EARLY = "stopped_early"  # a network that is not at a minimum: partially_trained.py
HALVES = {"digits": (50, 1000), "digits_cnn": (20, 400)}  # subsets, most steps of their fits


@dataclass(frozen=True)
class Entry:
    """A method as a row of the table.

    `start` is what its factorisation is given: a matrix (Hessian H, Gauss-Newton G, empirical
    Fisher F), products with one, or the training rows.
    """

    name: str
    method: Method
    start: str


def entries(damping: float) -> list[Entry]:
    direct, cg, low = Direct(damping=damping), ConjugateGradient(), {"rank": 100}
    return [
        Entry("`direct`", direct, "H"),
        Entry("`cg`, `rtol: 1e-6`", cg, "products with H"),
        Entry("`lissa`", LiSSA(maxiter=20_000), "H"),
        *(Entry(f"`arnoldi`, rank {rank}, `complement: {complement}`",
                Arnoldi(rank=rank, complement=complement), "products with H")
          for rank in (50, 100) for complement in ("damping", "drop")),
        Entry("`nystroem`, rank 100", Nystroem(**low), "products with H"),
        Entry("`nystroem`, rank 100, `power_iterations: 0`",
              Nystroem(power_iterations=0, **low), "products with H"),
        Entry("`direct`, `curvature: gauss_newton`", direct, "G"),
        Entry("`cg`, `curvature: gauss_newton`", cg, "products with G"),
        Entry("`ekfac`", EKFAC(), "rows"),
        Entry("`ekfac`, `fisher: sampled`", EKFAC(fisher="sampled"), "rows"),
        Entry("`kfac`", KFAC(), "rows"),
        Entry("`ekfac`, `fisher: empirical`", EKFAC(fisher="empirical"), "rows"),
        Entry("empirical Fisher, whole matrix", direct, "F"),
        Entry("`identity`: dot products of gradients", Identity(), "rows"),
    ]  # fmt: skip


# What is measured -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """A call's result, its processor seconds and the MiB that it added to the peak."""

    result: Any
    seconds: float
    mebibytes: float


def measured(function: Callable[[], Any]) -> Measured:
    gc.collect()
    with suppress(OSError, AttributeError):  # memory kept for later would hide what is taken now
        ctypes.CDLL(None).malloc_trim(0)
    before = _reset_peak()
    start = time.process_time()
    result = function()
    return Measured(result, time.process_time() - start, _status("VmHWM") - before)


def _reset_peak() -> float:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> float:
    """MiB of this process's memory; NaN where the system does not tell."""
    with suppress(OSError):
        kilobytes = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(kilobytes[1]) / 1024 if kilobytes else float("nan")
    return float("nan")


@dataclass(frozen=True, eq=False)
class Problem:
    """A fitted network with its curvatures; refits of random halves; exact influences by λ."""

    study: Study
    train: Rows
    test: Rows
    curvatures: dict[str, Curvature]
    forming: dict[str, float]
    halves: SubsetFits
    rhs: Tensor
    gradients: Tensor
    exact: dict[float, np.ndarray]

    @property
    def damping(self) -> float:
        return self.study.settings.dampings[0]

    def factors(self, entry: Entry) -> Tensor:
        with warnings.catch_warnings(action="ignore"):  # that a sketch meets negative directions
            factorization = entry.method.factorize(self.curvatures[entry.start])
        return factorization.solve(self.rhs, damping=self.damping).x

    def row(self, entry: Entry) -> list[str]:
        cost = measured(lambda: self.factors(entry))
        influences = (cost.result @ self.gradients.T).double()
        found, exact = influences.numpy(), self.exact[self.damping]
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        score = linear_datamodelling_score(influences, self.halves)
        return [
            entry.name,
            entry.start,
            f"{error:.1e}",
            f"{np.nanmean(spearman(found, exact)):.3f}",
            f"{_same_top(found, exact):.2f}",
            f"{score.mean:.2f}",
            f"{cost.seconds:.2f}",
            f"{max(0, cost.mebibytes):.0f}",
        ]


def _same_top(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of the rows that help each test row most which are also found to."""
    tops = (np.argsort(-scores, axis=1)[:, :TOP] for scores in (found, exact))
    return float(np.mean([len(np.intersect1d(*pair)) / TOP for pair in zip(*tops, strict=True)]))


# The problems ---------------------------------------------------------------------------------


def problem(study: Study) -> Problem:
    settings = study.settings.model
    train, test = (
        Rows(torch.as_tensor(split.x["x"]), torch.as_tensor(split.y))
        for split in load_splits(study.settings.data, study.root)
    )
    test = test[:TESTS]
    assert isinstance(settings.fit, FitSettings)
    module = modules.build_module(settings, study.root, torch.float64)
    print(f"{study.name}: {modules.fit(module, settings.loss, train, settings.fit)}", flush=True)
    objective = Objective(module.eval(), settings.loss)
    halves = refits(study, objective, train, test)
    exact = exact_influences(objective, train, test, {study.settings.dampings[0], *OTHERS})
    train, test = (rows.to(dtype=torch.float32) for rows in (train, test))
    objective = Objective(module.float(), settings.loss)
    curvatures, forming = formed(objective, train)
    rhs, gradients = (per_sample_gradients(objective, rows).dense() for rows in (test, train))
    return Problem(study, train, test, curvatures, forming, halves, rhs, gradients, exact)


def exact_influences(
    objective: Objective, train: Rows, test: Rows, dampings: set[float]
) -> dict[float, np.ndarray]:
    """By general solves in float64, at the dampings that leave the Hessian positive definite."""
    hessian = Hessian(objective, train).dense()
    smallest = float(torch.linalg.eigvalsh(hessian)[0])
    rhs, gradients = (per_sample_gradients(objective, rows).dense() for rows in (test, train))
    identity = torch.eye(objective.size, dtype=objective.dtype)
    return {
        damping: (torch.linalg.solve(hessian + damping * identity, rhs.T).T @ gradients.T).numpy()
        for damping in sorted(dampings)
        if smallest + damping > 0
    }


def formed(objective: Objective, train: Rows) -> tuple[dict[str, Curvature], dict[str, float]]:
    """Every curvature that a method starts from, and the seconds that forming the matrices took."""
    operators = {"H": Hessian(objective, train), "G": GaussNewton(objective, train)}
    costs = {name: measured(operator.dense) for name, operator in operators.items()}
    gradients = per_sample_gradients(objective, train).dense()
    curvatures: dict[str, Curvature] = {
        **{name: DenseCurvature(cost.result) for name, cost in costs.items()},
        **{f"products with {name}": operator for name, operator in operators.items()},
        "F": DenseCurvature(gradients.T @ gradients / len(train)),
        "rows": operators["G"],
    }
    return curvatures, {name: cost.seconds for name, cost in costs.items()}


def refits(study: Study, objective: Objective, train: Rows, test: Rows) -> SubsetFits:
    """Models fitted to random halves from the initial weights of the full fit."""
    fit, build = study.settings.model.fit, study.settings.model.build
    assert isinstance(fit, FitSettings)
    count, most_steps = HALVES[study.name]
    start = initial_params(
        modules.import_callable(build, study.root, "model.build"), range(fit.seed, fit.seed + 1)
    )
    with warnings.catch_warnings(action="ignore"):  # that some were stopped early
        found = fit_subsets(
            objective,
            train,
            test,
            draw_subsets(len(train), count=count, seed=1),
            weight_decay=fit.weight_decay,
            start=start[0],
            tolerance=1e-4,
            max_steps=most_steps,
            on_failure="keep",
        )
    print(f"{study.name}: {count} halves, {found.refits}", flush=True)
    return found


# The document ---------------------------------------------------------------------------------

HEAD = ["method", "starts from", "relative error", "Spearman", f"top {TOP}", "LDS", "CPU s", "MiB"]


def section(problem: Problem) -> str:
    """The table of one study with what it was measured on."""
    rows = []
    for entry in entries(problem.damping):
        rows.append(problem.row(entry))
        print("  ".join(rows[-1]), flush=True)
    count = len(problem.halves.membership)
    swept = ", ".join(
        f"{linear_datamodelling_score(torch.from_numpy(exact), problem.halves).mean:.2f} at {λ:g}"
        for λ, exact in problem.exact.items()
        if λ != problem.damping
    )
    product = measured(lambda: problem.curvatures["products with H"].apply(problem.rhs)).seconds
    return f"""### `{problem.study.name}`: {problem.rhs.shape[1]:,} parameters

{len(problem.train):,} training rows, {len(problem.test)} test rows, λ = {problem.damping:g}.
Forming H takes {problem.forming["H"]:.2g} s, G {problem.forming["G"]:.2g} s, a product with H
{1e3 * product / len(problem.rhs):.2g} ms. LDS on {count} halves of the training rows;
of exact influences at other λ {swept}.
Measured on {datetime.date.today()}, {machine()}.

{table(rows)}
"""


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = [HEAD, ["---"] * 2 + ["---:"] * (len(HEAD) - 2), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return f"{os.cpu_count()} cores, {pages * size / 2**30:.0f} GiB of memory, one thread used"


def write(name: str, text: str, document: Path) -> None:
    """Put a study's table between its two marks in the document; what is around them stays."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = document.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{document} lacks the marks {begin} and {end} around the table")
    document.write_text(f"{before}{begin}\n{text}{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = [*HALVES, EARLY]
    parser.add_argument("studies", nargs="*", default=known, help=", ".join(known))
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="document with the marks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.studies:
        if name not in known:
            parser.error(f"no study {name!r} to measure; choose from {', '.join(known)}")
        if name == EARLY:
            text = partially_trained.section(machine())
        else:
            text = section(problem(load_study(ROOT / "assets" / name)))
        write(name, text, arguments.output)


if __name__ == "__main__":
    main()

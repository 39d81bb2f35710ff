"""What finds flipped labels: `make suspects` writes the table of docs/validation.md (CPU minutes).

Each case is drawn anew for several seeds, none of which was looked at when the combination was
chosen (those were 0 to 49); intervals are 95 % ones of the mean over seeds (Student's t). One
thread.

Where cleanlab is installed (the extra `oracles`) it ranks the same rows by the same out-of-fold
probabilities, as confident learning does; else its column is empty.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity import write
from scipy.stats import t as student
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn

from influence_dag.objective.objective import Objective, Rows
from influence_dag.suspicion import combined_suspicion
from influence_dag.validation.agreement import found_in_top, roc_auc
from influence_dag.validation.datamodels import initial_params
from influence_dag.validation.label_errors import LabelErrors, label_errors

DOCUMENT = Path(__file__).parents[1] / "docs/validation.md"
SHARES = (0.02, 0.05, 0.1, 0.2)
FIRST_SEED = 1000
SIMILAR = {4: 9, 9: 4, 3: 8, 8: 3, 1: 7, 7: 1, 5: 6, 6: 5, 0: 2, 2: 0}
RANKINGS = {  # by itself: what the table calls it
    "neighbour_disagreement": "neighbours",
    "loss": "loss",
    "out_of_fold_loss": "loss out of fold",
    "self_influence": "self-influence",
    "knn_shapley": "KNN-Shapley",
}

INFORMED = "knn_shapley"  # by the right labels of test rows, which the others do not see


@dataclass(frozen=True)
class Case:
    """Rows, a model for them, and how often labels are flipped."""

    name: str
    load: Callable[[], tuple[Rows, Rows]]
    build: Callable[[], nn.Module]
    options: dict[str, Any]
    seeds: int

    def found(self, share: float) -> Iterator[LabelErrors]:
        train, test = self.load()
        objective = Objective(self.build(), "cross_entropy")
        start = initial_params(self.build, range(1))[0]
        for seed in range(FIRST_SEED, FIRST_SEED + self.seeds):
            yield label_errors(
                objective, train, share=share, seed=seed, start=start, test=test, **self.options
            )


def digits() -> tuple[Rows, Rows]:
    data = load_digits()
    x, y = torch.tensor(data.data / 16), torch.tensor(data.target)
    return Rows(x[:1500], y[:1500]), Rows(x[1500:], y[1500:])


def breast_cancer() -> tuple[Rows, Rows]:
    data = load_breast_cancer()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor((data.data - data.data.mean(axis=0)) / data.data.std(axis=0))[order]
    y = torch.tensor(data.target)[order]
    return Rows(x[:456], y[:456]), Rows(x[456:], y[456:])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()


CONVEX = {"weight_decay": 1e-2, "max_steps": 1000}
NETWORK = {
    "weight_decay": 1e-3, "damping": 1e-2, "curvature": "gauss_newton", "tolerance": 1e-4,
    "max_steps": 300, "on_failure": "keep",
}  # fmt: skip
MISTAKEN = {"mistaken": SIMILAR}


def linear(inputs: int, classes: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, classes).double()


CASES = [
    Case("digits, softmax", digits, linear(64, 10), CONVEX, 10),
    Case("digits, similar classes", digits, linear(64, 10), CONVEX | MISTAKEN, 10),
    Case("breast cancer", breast_cancer, linear(30, 2), CONVEX, 100),
    Case("digits, network", digits, network, NETWORK, 5),
    Case("network, similar classes", digits, network, NETWORK | MISTAKEN, 5),
]


def scored(result: LabelErrors, score: Callable[..., float]) -> dict[str, float]:
    """How well each ranking does, and the combinations with and without refits."""
    unfitted = {n: v for n, v in result.rankings.items() if n != "out_of_fold_loss"}
    known = result.evidence and replace(result.evidence, out_of_fold=None)
    rankings = result.rankings | {
        "cleanlab": by_cleanlab(result),
        "combined": result.combined,
        "without": combined_suspicion(unfitted, known),
    }
    return {
        name: score(values, result.flipped) if np.isfinite(values).all() else np.nan
        for name, values in rankings.items()
    }


def by_cleanlab(result: LabelErrors) -> np.ndarray:
    """Its ranking: low out-of-fold probability of the label, less what the class has on average."""
    evidence = result.evidence
    if evidence is None or evidence.out_of_fold is None or not find_spec("cleanlab"):
        return np.full(len(result.labels), np.nan)
    from cleanlab.rank import get_label_quality_scores  # type: ignore[import-not-found]

    chances = np.exp(evidence.out_of_fold)
    return -get_label_quality_scores(evidence.labels, chances, adjust_pred_probs=True)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean's and half the width of its 95 % interval."""
    count = len(values)
    return float(values.mean()), float(
        student.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5
    )


def line(case: Case, share: float) -> tuple[list[str], float]:
    results = list(case.found(share))
    each = [scored(result, roc_auc) for result in results]
    columns = {name: np.array([scores[name] for scores in each]) for name in each[0]}
    alone = [name for name in RANKINGS if name != INFORMED]
    best = max(alone, key=lambda name: columns[name].mean())
    cells = [case.name, f"{share:.0%}"]
    for name in (*RANKINGS, "cleanlab", "without", "combined"):
        mean, half = interval(columns[name])
        text = f"{mean:.4f} ± {half:.4f}" if np.isfinite(mean) else "–"
        cells.append(f"**{text}**" if name == best else text)
    for name in ("without", "combined"):
        mean, half = interval(columns[name] - columns[best])
        cells.append(f"{1e4 * mean:+.1f} ± {1e4 * half:.1f}")
    top = [scored(r, lambda v, f: found_in_top(v, f, share=share))["combined"] for r in results]
    return [*cells, f"{np.mean(top):.0%}"], mean


HEAD = [
    "case", "flipped", *RANKINGS.values(), "cleanlab", "combined, nothing refitted", "combined",
    "nothing refitted less best single, 1e-4", "combined less best single, 1e-4",
    "of the flipped, among as many",
]  # fmt: skip


def section(shares: tuple[float, ...], cases: list[Case]) -> str:
    rows, started = [HEAD, ["---"] * 2 + ["---:"] * (len(HEAD) - 2)], time.process_time()
    for case in cases:
        for share in shares:
            cells, _ = line(case, share)
            rows.append(cells)
            print("  ".join(cells), f"[{time.process_time() - started:.0f} s]", flush=True)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    counts = ", ".join(f"{case.seeds} of {case.name}" for case in cases)
    spent = time.process_time() - started
    return (
        f"{table}\n\nMean AUC ± half its 95 % interval over seeds ({counts}); {spent:.0f} CPU s.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="document with the marks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write("wrong labels", section(SHARES, CASES), arguments.output)


if __name__ == "__main__":
    main()

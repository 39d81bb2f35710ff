"""What the page shows of a study: data, settings, strongest pairs, suspects, what changed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_dag.datasets.slots import SPLITS, Axis, shown_label
from influence_dag.errors import StoreError
from influence_dag.query.older import matrix_behind, theta_measured
from influence_dag.stages import naming
from influence_dag.study.curvatures import CURVATURE_KINDS
from influence_dag.texts import listed, literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from influence_dag.query.report.findings import Findings
    from influence_dag.query.results import StudyResults

SHOWN = 10  # rows that are named
MOST_LABELS = 24  # classes in a table; more are targets of a regression


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows and why it matters."""

    title: str
    why: str
    figure: "Figure"

    @property
    def is_wide(self) -> bool:
        width, height = self.figure.get_size_inches()
        return width > 2.5 * height


class Sections:
    """Everything of the page but findings and verdict, from what is stored."""

    def __init__(self, results: "StudyResults", findings: "Findings"):
        self.results, self.method, self.store = results, findings.method, results.store

    # The study

    @cached_property
    def data(self) -> dict[str, Any]:
        dataset = self.store.version("dataset")
        axes = {split: Axis.read(dataset, split) for split in SPLITS}
        shapes = {
            name: " × ".join(map(str, each.shape[1:])) or "1"
            for name, each in dataset.variables.items()
            if name.startswith("train_x")
        }
        return {
            "rows": {split: axis.count for split, axis in axes.items()},
            "sources": {split: dataset.attrs.get(f"{split}_source", "") for split in SPLITS},
            "features": ", ".join(shapes.values()),
            "labels": _label_counts(axes),
            "version": dataset.number,
        }

    @cached_property
    def influences(self) -> dict[str, Any]:
        version = self.store.version(naming.influences(self.method))
        about = dict(version.array("influences").attrs)
        return about | {"version": version.number, **{k: version.attrs[k] for k in ("symbols",)}}

    @cached_property
    def settings(self) -> list[tuple[str, str]]:
        """As the study says them, one a line."""
        stored = self.store.version(naming.factors(self.method)).attrs.get("study_settings", "{}")
        return list(_flat(json.loads(stored).get("settings", {})))

    @cached_property
    def made_with(self) -> dict[str, str]:
        return self.store.version(naming.influences(self.method)).attrs.get("made_with", {})

    @cached_property
    def theta(self) -> dict[str, str]:
        before, info = theta_measured(self.store), self.store.version("model").attrs["info"]
        info = info | {"measured": before} if before else info
        return {
            name.replace("_", " "): f"{value:.4g}" if isinstance(value, float) else str(value)
            for name, value in info.items()
            if isinstance(value, int | float | str)
        }

    @cached_property
    def artifacts(self) -> list[tuple[str, int, int]]:
        return [
            (n, self.store.version(n).number, len(self.store.versions(n)))
            for n in self.store.names()
        ]

    @cached_property
    def methods(self) -> list[dict[str, str]]:
        """Size of each method's influences."""
        report = self.store.current(naming.REPORT)
        strength = report.attrs["info"]["strength"] if report else {}
        return [{"method": m} | {k: f"{v:.3g}" for k, v in s.items()} for m, s in strength.items()]

    @cached_property
    def agreement(self) -> list[dict[str, str]]:
        report = self.store.current(naming.REPORT)
        pairs = report.attrs["info"]["agreement"] if report else {}
        return [{"pair": p} | {k: _defined(v) for k, v in m.items()} for p, m in pairs.items()]

    # Pictures

    @cached_property
    def pictures(self) -> list[Picture]:
        return [*self._spectrum(), *self._histogram(), *self._solves()]

    def _spectrum(self) -> Iterator[Picture]:
        curvature = self.store.version(naming.curvature(self.method))
        behind = (kind for kind in CURVATURE_KINDS if matrix_behind(self.store, curvature, kind))
        why = (
            "Directions of θ by how sharply the training loss rises along them. Below λ they count "
            "as flat; negative ones are where θ is no minimum of the unpenalised loss."
        )
        for of in (*behind, self.method, *self.results.methods):
            try:
                yield Picture("Spectrum", why, self.results.plot.spectrum(of))
                return
            except StoreError:  # it keeps none
                continue

    def _solves(self) -> Iterator[Picture]:
        methods = [m for m in self.results.methods if m != self.method]
        iterative = [m for m in [self.method, *methods] if self._is_iterative(m)]
        for method in iterative[:1] or [self.method]:
            why = (
                f"How exactly {method} solved for each test row. What a solve misses, its "
                "influences miss as well."
            )
            yield Picture(f"Solves by {method}", why, self.results.plot.convergence(method))

    def _is_iterative(self, method: str) -> bool:
        return "niter" in self.store.version(naming.factors(method)).variables

    def _histogram(self) -> Iterator[Picture]:
        why = "Most pairs hardly matter. The tails are the rows to look at."
        yield Picture("Distribution", why, self.results.plot.histogram(method=self.method))

    @cached_property
    def validation(self) -> list[Picture]:
        plot, stored = self.results.plot, self.results.artifacts
        known = [
            (
                naming.validation("leave_one_out"),
                "Leaving rows out",
                "Each point is a test row after a refit without one training row. On the diagonal, "
                "values are right; along a line, ranks are.",
                plot.leave_one_out,
            ),
            (
                naming.validation("datamodels"),
                "Random subsets",
                "Whether summed influences rank models fitted to random subsets. Baselines stand "
                "among the methods: what does not beat them explains nothing.",
                plot.lds,
            ),
            (
                naming.validation("label_errors"),
                "Flipped labels",
                "How early labels that were flipped on purpose turn up in each ranking.",
                plot.label_errors,
            ),
        ]
        return [Picture(title, why, draw()) for name, title, why, draw in known if name in stored]

    # Versions

    @cached_property
    def changes(self) -> dict[str, Any] | None:
        """From the version before to the current one: rows, and the influences that moved most."""
        artifact = naming.influences(self.method)
        kept = [version.number for version in self.results.versions(artifact)]
        if len(kept) < 2:
            return None
        newer = self.results.diff(artifact, kept[-2])
        whats = {"added": newer.added, "removed": newer.removed, "changed": newer.changed}
        rows = [
            (f"{split} rows {what}", len(names[split]), listed(names[split], SHOWN))
            for what, names in whats.items()
            for split in SPLITS
            if names.get(split)
        ]
        moved = [
            (
                " → ".join(literal(change.labels[split]) for split in ("train", "test")),
                f"{change.before:+.3g}",
                f"{change.after:+.3g}",
            )
            for change in newer.largest_changes("influences", 8)
        ]
        return {"before": kept[-2], "after": newer.after.number, "rows": rows, "moved": moved}


def _defined(value: float) -> str:
    """A number; a dash for what there is none of, as of a correlation of equal influences."""
    return "–" if isnan(value) else f"{value:.4g}"


def _label_counts(axes: dict) -> list[dict[str, Any]]:
    """How many rows of each split have each label; nothing of a regression's targets."""
    if any(axis.labels is None for axis in axes.values()):
        return []
    counts: dict[str, dict[str, int]] = {}
    for split, axis in axes.items():
        names, numbers = np.unique(axis.labels[axis.slots], return_counts=True)
        if len(names) > MOST_LABELS:
            return []
        for name, number in zip(names.tolist(), numbers.tolist(), strict=True):
            counts.setdefault(literal(shown_label(name)), dict.fromkeys(SPLITS, 0))[split] = number
    most = max((row["train"] for row in counts.values()), default=1) or 1
    return [{"label": n, **row, "share": row["train"] / most} for n, row in counts.items()]


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}.")
        elif value not in (None, {}, [], ""):
            yield path, literal(value if isinstance(value, str) else json.dumps(value), 120)

"""Pictures of a stored study: `study.plot.scores("test-0003")`, `study.plot.spectrum()`, …

What Dagster's UI shows of an artifact is drawn here as well, from a version of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from influence_dag.datasets.slots import Axis, Split
from influence_dag.errors import StoreError
from influence_dag.query import plots
from influence_dag.query.accessor import strongest
from influence_dag.query.contents import Content, Contents, named
from influence_dag.query.older import warn_of_older
from influence_dag.query.rows import at_damping, of_sweep, rows_named
from influence_dag.stages import naming
from influence_dag.stages.sampling import values_of_rows
from influence_dag.store import Store, Version
from influence_dag.study.curvatures import CURVATURE_KINDS
from influence_dag.suspicion import SUSPICIONS
from influence_dag.texts import did_you_mean, literal

if TYPE_CHECKING:
    import xarray as xr

    from influence_dag.query.questions import Questions

LARGEST = 2_000_000  # influences in a histogram


class Pictures:
    """Pictures of one study as matplotlib figures, which notebooks show and `savefig` saves."""

    def __init__(self, study: "Questions"):
        self._study = study

    def scores(self, test: Any, k: int = 8, **of: Any) -> Figure:
        """The `k` training rows that help a test row most, and the `k` that harm it most."""
        row = self._study.influences(test, **of)
        if row.ndim != 1:
            raise StoreError(f"scores are of one test row, not of {row.sizes['test']}; name one")
        helping, harming = strongest(row, k)
        shown = [*helping, *harming[::-1]]
        names, values = [named_row(each, "train") for each in shown], np.array(shown, np.float64)
        return plots.scores(names, values, title=f"{self._by(row, of)} on {named_row(row, 'test')}")

    def strongest(self, tests: Iterable[Any] | int = 5, k: int = 4, **of: Any) -> Figure:
        """Test images, each with the training images that help it most and harm it most.

        `tests` are ids, or a number of them, spread over the axis.
        """
        influences = self._study.influences(**of)
        names = influences.test.values
        if isinstance(tests, int | np.integer):
            names = names[np.linspace(0, len(names) - 1, min(tests, len(names))).astype(int)]
        else:
            names = rows_named(influences, "test", tests)
        chosen, contents = influences.sel(test=names), Contents(self._study)
        ends = zip(*(strongest(row, k) for row in chosen.load()), strict=True)
        rows = [[_images(contents.of("train", each.train.values)) for each in end] for end in ends]
        return plots.image_grid(_images(contents.of("test", names)), *rows)

    def histogram(self, test: Any = None, **of: Any) -> Figure:
        """How influences are distributed, on all test rows or on those that are named."""
        array = self._study.influences(test, **of)
        rows = max(1, LARGEST // array.sizes["train"])
        some = array[:rows] if array.ndim > 1 else array
        about = "" if some.size == array.size else f", first {rows} test rows"
        return plots.histogram(
            np.asarray(some.values).ravel(), title=f"{self._by(array, of)}{about}"
        )

    def feature_map(
        self,
        test: Any,
        train: Any,
        method: str | None = None,
        *,
        damping: float | None = None,
        input: str | None = None,
    ) -> Figure:
        """Which features of a training row help a test row: over an image, or by column name.

        `input` names one of several inputs of the model. From the stored perturbation influences,
        or computed where they are not stored, which needs the study's code (see `open_study`).
        """
        values = at_damping(self._perturbation(method, input), damping)
        values = values.sel(
            {"test": _row(values, "test", test), "train": _row(values, "train", train)}
        )
        values = values.load()
        rows = Contents(self._study)["train", train], Contents(self._study)["test", test]
        title = f"{literal(train, 24)} → {literal(test, 24)}{of_sweep(values)}"
        if values.ndim == 1:
            names = [str(name) for name in values[values.dims[0]].values]
            return plots.feature_bars(names, values.values, title=title)
        if values.ndim != 2:
            seen = " × ".join(map(str, values.shape))
            raise StoreError(
                f"a feature map is of an image or of columns, and rows here are {seen}; take what "
                f'is to be seen of study.perturbation("{self._method(method)}") by hand'
            )
        beside = {named(row): image for row in rows if (image := row.image) is not None}
        return plots.feature_map(values.values, title=title, rows=beside)

    def spectrum(self, of: str | None = None) -> Figure:
        """Eigenvalues of a stored matrix (`hessian`), or those that a method keeps (`ekfac`).

        A `RuntimeWarning` says where they are older than θ or the rows, as `open` does.
        """
        store = self._study.store
        known = [kind for kind in CURVATURE_KINDS if kind in self._study.artifacts]
        known += [name for name in self._study.methods if _has_spectrum(store, name)]
        if not known or (of is not None and of not in known):
            asked = "" if of is None else f" of {of!r}{did_you_mean(of, known)}"
            raise StoreError(
                f"{store.address} has no spectrum{asked} (stored: {', '.join(known) or 'none'})"
            )
        of = of or known[0]
        kind = of in CURVATURE_KINDS
        version = store.version(of if kind else naming.curvature(of))
        warn_of_older(store, version)
        lines = dampings(store, self._study.methods if kind else [of])
        return spectrum(version, None if kind else of, lines)

    def convergence(self, method: str | None = None) -> Figure:
        """Where the solve of each test row ended; by default of the first iterative method."""
        store = self._study.store
        solved = {name: store.current(naming.factors(name)) for name in self._study.methods}
        iterative = [name for name, each in solved.items() if each and "niter" in each.variables]
        method = method or next(iter(iterative), None) or self._method(None)
        return convergence(store.version(naming.factors(method)))

    def lds(self) -> Figure:
        """Linear datamodelling scores with their intervals, baselines among them."""
        return datamodels(self._study.store.version(naming.validation("datamodels")))

    def leave_one_out(self) -> Figure:
        """What refits without single rows found, against what influences said."""
        return leave_one_out(self._study.store.version(naming.validation("leave_one_out")))

    def label_errors(self) -> Figure:
        """The share of flipped labels among the first rows of each ranking."""
        return label_errors(self._study.store.version(naming.validation("label_errors")))

    def _perturbation(self, method: str | None, input: str | None) -> "xr.DataArray":
        artifacts = self._study.artifacts
        stored = [name for name in self._study.methods if naming.perturbation(name) in artifacts]
        method = method or next(iter(stored), None) or self._method(None)
        if method in stored and naming.keeps_all(
            self._study.store.version(naming.perturbation(method)).attrs
        ):
            return self._study.perturbation(method, input=input)
        return self._study.lazy_perturbation(method, input=input)

    def _method(self, method: str | None) -> str:
        if method is None and not self._study.methods:
            raise StoreError(f"{self._study.store.address} has no influences yet; materialise it")
        return method or self._study.methods[0]

    def _by(self, array: "xr.DataArray", of: dict[str, Any]) -> str:
        return f"Influence by {self._method(of.get('method'))}{of_sweep(array)}"


def _row(values: "xr.DataArray", split: Split, name: Any) -> Any:
    """A row's id as the axis has it."""
    return rows_named(values, split, [name])[0]


def named_row(row: "xr.DataArray", split: str) -> str:
    """`train-0017 (3)`, of one row of an influence array."""
    label = row.coords.get(f"{split}_label")
    return named(Content(row[split].item(), None if label is None else label.item()))


def _images(rows: Sequence[Content]) -> list[tuple[str, np.ndarray]]:
    images = [row.image for row in rows]
    shape = next((image.shape for image in images if image is not None), None)
    if rows and shape is None:
        raise StoreError("these rows are no images; `study.plot.scores(test)` shows them by name")
    gone = np.full(shape or (), np.nan)
    return [
        (named(row), gone if image is None else image)
        for row, image in zip(rows, images, strict=True)
    ]


# Of one version


def dampings(store: Store, methods: Sequence[str]) -> tuple[float, ...]:
    """Every λ that these methods' solves were with."""
    stored = (store.current(naming.factors(method)) for method in methods)
    given = [version.attrs.get("damping") for version in stored if version]
    return tuple(sorted({*_numbers(given)}))


def _numbers(given: Any) -> Iterator[float]:
    """Those in lists and by names; of a method without a damping there is none."""
    if isinstance(given, dict | list):
        for each in given.values() if isinstance(given, dict) else given:
            yield from _numbers(each)
    elif isinstance(given, int | float):
        yield float(given)


def _has_spectrum(store: Store, method: str) -> bool:
    version = store.current(naming.curvature(method))
    return bool(version and _eigenvalues(version))


def _eigenvalues(version: Version) -> list[str]:
    return [name for name in version.variables if name.endswith("eigenvalues")]


def spectrum(version: Version, method: str | None, damping: Sequence[float]) -> Figure:
    """The eigenvalues that are stored, of all layers or blocks together; `method` keeps them."""
    parts = [np.asarray(version.read(n), np.float64).ravel() for n in _eigenvalues(version)]
    values = np.concatenate(parts)
    title = (
        f"Spectrum of {CURVATURE_KINDS[version.artifact].title} ({len(values):,} parameters)"
        if method is None
        else f"{method}: the {len(values):,} eigenvalues that it keeps"
    )
    return plots.spectrum(values, damping=damping, title=title)


def convergence(version: Version) -> Figure:
    """Residuals of a method's solves; of an iterative one also its iterations."""
    iterative = "niter" in version.variables
    return plots.convergence(
        values_of_rows(version, "residual"),
        niter=values_of_rows(version, "niter") if iterative else None,
        curve=_residual_curve(version) if iterative else None,
        tolerance=version.attrs["method_settings"].get("rtol"),
    )


def _residual_curve(version: Version) -> np.ndarray:
    """Iterations, and the median and the worst residual at them, of rows that took any: (3, k)."""
    iterations = np.asarray(version.coordinate("iteration"))
    valid = Axis.read(version, "test").valid
    history = np.asarray(version.read("residual_history"), np.float64)[..., valid, :]
    niter = values_of_rows(version, "niter")
    begun = history.reshape(-1, len(iterations))[niter > 0]
    if not len(begun):
        return np.empty((3, 0))
    curve = np.stack([iterations, np.median(begun, axis=0), begun.max(axis=0)])
    return curve[:, iterations <= niter.max()]


def leave_one_out(version: Version) -> Figure:
    """Predicted against actual changes of the test losses."""
    arrays = {name: version.array(name) for name in version.variables if name != "actual"}
    predictions = {
        str(array.attrs["long_name"]): np.asarray(array[...]) for array in arrays.values()
    }
    title = "Leaving out single training rows"
    return plots.agreement(predictions, version.read("actual"), title=title)


def datamodels(version: Version) -> Figure:
    scores = version.attrs["info"]["scores"]
    names = [
        name if score["damping"] is None else f"{name} (λ = {score['damping']:g})"
        for name, score in scores.items()
    ]
    values = np.array([score["lds"] for score in scores.values()])
    lower, upper = np.array([score["interval"] for score in scores.values()]).T
    return plots.intervals(names, values, lower, upper)


def label_errors(version: Version) -> Figure:
    """What each ranking finds."""
    info = version.attrs["info"]
    rankings = {
        f"{name.replace('_', '-')}, AUC {info[name]['auc']:.4f}": _suspicion(version, name)
        for name in SUSPICIONS
        if name in version.variables
    }
    flipped = version.read("flipped")
    title = f"{flipped.sum()} of {len(flipped)} labels were flipped"
    return plots.detection(rankings, flipped, title=title)


def _suspicion(version: Version, name: str) -> np.ndarray:
    """A stored ranking, large where the label is suspect."""
    return -version.read(name) if name == "knn_shapley" else version.read(name)

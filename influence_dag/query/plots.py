"""Pictures of what is stored: spectra, convergence, histograms, helpful and harmful rows.

Every function takes plain arrays and returns a matplotlib figure. Ids and names of columns are
shown as they are: a dollar sign begins no mathematics.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from influence_dag.query.figures import Picture, as_it_is, panels, scaled_log, titled
from influence_dag.stages.ranks import Moments
from influence_dag.texts import literal

HELPS, HARMS, NEUTRAL = "#2166ac", "#b2182b", "#555555"
RANKINGS = (HELPS, HARMS, "#1b7837", "#e08214", "#762a83", "#8c6d31")


def spectrum(
    eigenvalues: NDArray, *, damping: Sequence[float] = (), title: str = "Spectrum of the Hessian"
) -> Figure:
    """Eigenvalues by size, positive and negative ones apart, with the dampings as lines.

    Those that are zero to rounding are counted and not drawn.
    """
    figure, (axes,) = panels(1, width=6.4, height=3.6)
    ordered = np.sort(eigenvalues)[::-1]
    position = np.arange(1, len(ordered) + 1)
    rounding = np.finfo(np.float64).eps * np.abs(ordered).max() * len(ordered)
    for mask, colour, label in (
        (ordered > rounding, HELPS, "positive"),
        (ordered < -rounding, HARMS, "negative (absolute value)"),
    ):
        if mask.any():
            axes.scatter(
                position[mask],
                np.abs(ordered[mask]),
                s=4,
                color=colour,
                label=f"{label}: {int(mask.sum())}",
                rasterized=True,
            )
    for value in damping:
        axes.axhline(value, color=NEUTRAL, linestyle="--", linewidth=1, label=f"damping {value:g}")
    if zeros := int((np.abs(ordered) <= rounding).sum()):
        axes.plot([], [], " ", label=f"zero to rounding: {zeros}")
    scaled_log(axes)
    titled(axes, title, x="rank", y="eigenvalue")
    axes.legend(frameon=False, fontsize=8)
    return figure


def convergence(
    residual: NDArray,
    *,
    niter: NDArray | None = None,
    curve: NDArray | None = None,
    tolerance: float | None = None,
) -> Figure:
    """Where each row's residual ended; of iterative solves also the iterations that it took.

    `curve` has iterations, and the median and the worst residual after each of them: `(3, k)`.
    """
    parts = [(_residuals, residual)]
    parts += [(_iterations, niter)] if niter is not None else []
    parts += [(_curve, curve)] if curve is not None and curve.size else []
    figure, grid = panels(len(parts), width=3.7, height=3.0)
    for axes, (draw, values) in zip(grid, parts, strict=True):
        draw(axes, values)
        if tolerance and draw is not _iterations:
            label = f"tolerance {tolerance:g}"
            axes.axhline(tolerance, color=NEUTRAL, linestyle="--", linewidth=1, label=label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    return figure


def _residuals(axes: Axes, residual: NDArray) -> None:
    axes.plot(np.sort(np.maximum(residual, 1e-18)), color=HELPS, linewidth=1)
    scaled_log(axes)
    titled(axes, "Residual ‖(H+λI)s−b‖/‖b‖", x="test rows, sorted", y="relative residual")


def _iterations(axes: Axes, niter: NDArray) -> None:
    axes.hist(niter, bins=list(np.arange(niter.min() - 0.5, niter.max() + 1.5)), color=HELPS)
    axes.locator_params("x", integer=True)
    titled(axes, "Iterations to tolerance", x="iterations", y="test rows")


def _curve(axes: Axes, curve: NDArray) -> None:
    iterations, *residuals = curve
    for values, label, colour in zip(
        residuals, ("median row", "worst row"), (HELPS, HARMS), strict=True
    ):
        axes.plot(iterations, np.maximum(values, 1e-18), color=colour, linewidth=1, label=label)
    scaled_log(axes)
    axes.locator_params("x", integer=True)  # no half steps
    titled(axes, "Convergence", x="iteration", y="relative residual")


def histogram(influences: NDArray, *, title: str = "Influences") -> Figure:
    """How influences are distributed: most pairs hardly matter, a few matter much."""
    figure, (axes,) = panels(1, width=6.4, height=3.0)
    limit = float(np.quantile(np.abs(influences), 0.999)) or 1.0
    bins = list(np.linspace(-limit, limit, 81))
    clipped = np.clip(influences, -limit, limit)
    for sign, colour, label in (
        (clipped >= 0, HELPS, "helps (positive)"),
        (clipped < 0, HARMS, "harms (negative)"),
    ):
        axes.hist(clipped[sign], bins=bins, color=colour, label=label, histtype="stepfilled")
    scaled_log(axes)
    titled(axes, title, x="influence (0.1 % tails folded in)", y="pairs")
    axes.legend(frameon=False, fontsize=8)
    return figure


def scores(names: Sequence[str], values: NDArray, *, title: str) -> Figure:
    """Influences of single training rows as bars, in the order in which they come."""
    figure, axes = _bars(values, (5.6, 0.26 * len(names) + 1.0), title)
    axes.axvline(0, color=NEUTRAL, linewidth=1)
    as_it_is(*axes.set_yticklabels([literal(name, 40) for name in names], fontsize=8))
    axes.set_xlabel("influence: blue helps the test row, red harms it", fontsize=8)
    return figure


def _bars(values: NDArray, size: tuple[float, float], title: str) -> tuple[Picture, Axes]:
    """Horizontal bars, the first on top, coloured by sign."""
    figure = Picture(figsize=size, layout="constrained")
    axes = figure.subplots()
    places = range(len(values))
    axes.barh(places, values, color=[HELPS if value >= 0 else HARMS for value in values])
    axes.set_yticks(places)
    axes.invert_yaxis()
    as_it_is(axes.set_title(literal(title), fontsize=9))
    return figure, axes


def image_grid(
    tests: Sequence[tuple[str, NDArray]],
    helpers: Sequence[Sequence[tuple[str, NDArray]]],
    harmers: Sequence[Sequence[tuple[str, NDArray]]],
) -> Figure:
    """One row a test image: itself, the training images that help it most and harm it most."""
    columns = 1 + max(map(len, helpers)) + max(map(len, harmers))
    figure = Picture(figsize=(1.05 * columns, 1.21 * len(tests) + 0.1))
    axes = figure.add_axes((0, 0, 1, 1 - 0.17 / figure.get_figheight()))
    axes.set(xlim=(0, columns), ylim=(len(tests), 0))
    axes.set_axis_off()
    for row, (test, helping, harming) in enumerate(zip(tests, helpers, harmers, strict=True)):
        cells = [
            (test, "black"),
            *((cell, HELPS) for cell in helping),
            *((cell, HARMS) for cell in harming),
        ]
        for column, (cell, colour) in enumerate(cells):
            _place(axes, row, column, *cell, colour)
    figure.text(
        0.5, 1 - 0.03 / figure.get_figheight(), "test row · helps most (blue) · harms most (red)",
        ha="center", va="top", fontsize=9,
    )  # fmt: skip
    return figure


def _place(axes: Axes, row: int, column: int, label: str, image: NDArray, colour: str) -> None:
    """One image with its caption. Axes for each, which have ticks, would take ten times as long."""
    height, width = np.array(image.shape[:2]) / max(image.shape[:2])
    middle, centre = column + 0.5, row + 0.58
    extent = (
        middle - 0.46 * width, middle + 0.46 * width, centre + 0.4 * height, centre - 0.4 * height
    )  # fmt: skip
    axes.imshow(image, cmap="gray_r", interpolation="nearest", extent=extent, aspect="auto")
    caption = axes.text(
        middle, extent[3] - 0.03, literal(label, 30),
        ha="center", va="bottom", fontsize=7, color=colour,
    )  # fmt: skip
    as_it_is(caption)


def thumbnail(image: NDArray) -> Figure:
    figure = Picture(figsize=(0.6, 0.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image, cmap="gray_r", interpolation="nearest")
    axes.set_axis_off()
    return figure


def agreement(predictions: Mapping[str, NDArray], actual: NDArray, *, title: str) -> Figure:
    """Predicted against actual changes, each kind of prediction with its correlation and slope.

    On the diagonal, predictions are right.
    """
    figure, (axes,) = panels(1, width=4.8, height=4.6)
    limit = float(max(np.abs(v).max() for v in (actual, *predictions.values()))) or 1.0
    axes.plot([-limit, limit], [-limit, limit], color=NEUTRAL, linewidth=1, label="equal")
    for (name, predicted), colour in zip(predictions.items(), (HELPS, HARMS), strict=False):
        x, y = predicted.ravel(), actual.ravel()
        with np.errstate(invalid="ignore"):
            fit = f"Pearson {Moments.of(x, y).pearson:.3f}, slope {x @ y / (x @ x):.2f}"
        axes.scatter(x, y, s=4, alpha=0.4, color=colour, label=f"{name}: {fit}", rasterized=True)
    titled(axes, title, x="predicted change of the test loss", y="change after a refit")
    axes.legend(frameon=False, fontsize=7, loc="upper left")
    return figure


def intervals(names: Sequence[str], values: NDArray, lower: NDArray, upper: NDArray) -> Figure:
    """A score with its interval for each candidate, best first; zero says nothing."""
    figure = Picture(figsize=(5.2, 0.3 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    spread = np.abs(np.stack([values - lower, upper - values]))
    axes.errorbar(values, range(len(names)), xerr=spread, fmt="o", color=HELPS, capsize=3)
    axes.axvline(0, color=NEUTRAL, linewidth=1)
    axes.set(
        yticks=range(len(names)), yticklabels=names,
        xlabel="linear datamodelling score, with its 95 % interval",
    )  # fmt: skip
    axes.invert_yaxis()
    return figure


def detection(rankings: Mapping[str, NDArray], positive: NDArray, *, title: str) -> Figure:
    """The share of wrong rows among the first rows of each ranking, and of rows taken by chance."""
    figure, (axes,) = panels(1, width=4.8, height=3.6)
    looked_at = np.linspace(0, 1, len(positive) + 1)
    for (name, scores), colour in zip(rankings.items(), cycle(RANKINGS), strict=False):
        hits = positive[np.argsort(-scores, kind="stable")]
        recall = np.concatenate([[0.0], np.cumsum(hits) / max(1, hits.sum())])
        axes.plot(looked_at, recall, color=colour, label=name)
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linestyle="--", linewidth=1, label="by chance")
    titled(axes, title, x="share of rows looked at", y="share of wrong labels found")
    axes.legend(frameon=False, fontsize=8)
    return figure


def feature_map(
    values: NDArray, *, title: str, rows: Mapping[str, NDArray] | None = None
) -> Figure:
    """A perturbation influence over a two-dimensional input: blue, more of the pixel helps.

    `rows` are images that stand beside it, by their captions.
    """
    beside = rows or {}
    figure = Picture(figsize=(3.2 + 2.1 * len(beside), 3.0), layout="constrained")
    *images, axes = figure.subplots(
        1, len(beside) + 1, squeeze=False, width_ratios=[*(1.0 for _ in beside), 1.3]
    )[0]
    for own, (caption, image) in zip(images, beside.items(), strict=True):
        own.imshow(image, cmap="gray_r", interpolation="nearest")
        own.set_axis_off()
        as_it_is(own.set_title(literal(caption, 28), fontsize=8))
    limit = float(np.abs(values).max()) or 1.0
    drawn = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    as_it_is(axes.set_title(literal(title), fontsize=8))
    axes.set_axis_off()
    figure.colorbar(drawn, ax=axes, shrink=0.8).set_label("blue: more of it helps", fontsize=7)
    return figure


def feature_bars(names: Sequence[str], values: NDArray, *, title: str) -> Figure:
    """A perturbation influence over named features."""
    figure, axes = _bars(values, (4.8, 0.28 * len(names) + 0.9), title)
    as_it_is(*axes.set_yticklabels([literal(name) for name in names]))
    axes.set_xlabel("blue: more of it helps", fontsize=7)
    return figure

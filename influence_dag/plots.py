"""Pictures of what is stored: spectra, convergence, histograms, helpful and harmful rows.

Every function takes plain arrays and returns a matplotlib figure; nothing touches pyplot's
global state, so they work in threads and without a screen.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

HELPS, HARMS, NEUTRAL = "#2166ac", "#b2182b", "#555555"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def markdown(figure: Figure, alt: str) -> str:
    """The figure inside a markdown image, readable without any other file."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png(figure)).decode()})"


def spectrum(
    eigenvalues: NDArray, *, damping: Sequence[float] = (), title: str = "Spectrum of the Hessian"
) -> Figure:
    """Eigenvalues by size, positive and negative ones apart, with the dampings as lines.

    Those that are zero to rounding are counted and not drawn.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
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
    axes.set(yscale="log", xlabel="rank", ylabel="eigenvalue", title=title)
    axes.legend(frameon=False, fontsize=8)
    return figure


def convergence(
    niter: NDArray,
    residual: NDArray,
    curves: tuple[NDArray, NDArray],
    *,
    tolerance: float | None = None,
) -> Figure:
    """Residuals of rows by iteration, how many iterations each took, where its residual ended.

    `curves` are the iterations and, one line a row, the relative residuals at them (NaN once the
    row has stopped).
    """
    figure = Figure(figsize=(10.4, 3.0), layout="constrained")
    first, left, right = figure.subplots(1, 3)
    iterations, history = curves
    shown = history[:: max(1, len(history) // 100)]
    first.plot(iterations, np.maximum(shown, 1e-18).T, color=HELPS, linewidth=0.6, alpha=0.5)
    first.set(xscale="log", yscale="log", xlabel="iteration", ylabel="relative residual")
    first.set_title(f"Residuals of {len(shown)} solves")
    bins = list(np.arange(niter.min() - 0.5, niter.max() + 1.5))
    left.hist(niter, bins=bins, color=HELPS)
    left.set(xlabel="iterations", ylabel="test rows", title="Iterations to tolerance")
    right.plot(np.sort(np.maximum(residual, 1e-18)), color=HELPS, linewidth=1)
    if tolerance:
        right.axhline(
            tolerance, color=NEUTRAL, linestyle="--", linewidth=1, label=f"rtol {tolerance:g}"
        )
        right.legend(frameon=False, fontsize=8)
    right.set(
        yscale="log",
        xlabel="test rows, sorted",
        ylabel="relative residual",
        title="Residual ‖(H+λI)s−b‖/‖b‖",
    )
    return figure


def histogram(influences: NDArray, *, title: str = "Influences") -> Figure:
    """How influences are distributed: most pairs hardly matter, a few matter much."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axes = figure.subplots()
    limit = float(np.quantile(np.abs(influences), 0.999)) or 1.0
    bins = list(np.linspace(-limit, limit, 81))
    clipped = np.clip(influences, -limit, limit)
    axes.hist(clipped[clipped >= 0], bins=bins, color=HELPS, label="helps (positive)")
    axes.hist(clipped[clipped < 0], bins=bins, color=HARMS, label="harms (negative)")
    axes.set(yscale="log", xlabel="influence (0.1 % tails folded in)", ylabel="pairs", title=title)
    axes.legend(frameon=False, fontsize=8)
    return figure


def image_grid(
    tests: Sequence[tuple[str, NDArray]],
    helpers: Sequence[Sequence[tuple[str, NDArray]]],
    harmers: Sequence[Sequence[tuple[str, NDArray]]],
) -> Figure:
    """One row a test image: itself, the training images that help it most and harm it most."""
    columns = 1 + max(map(len, helpers)) + max(map(len, harmers))
    figure = Figure(figsize=(1.05 * columns, 1.25 * len(tests)), layout="constrained")
    grid = figure.subplots(len(tests), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (test, helping, harming) in enumerate(zip(tests, helpers, harmers, strict=True)):
        cells = [
            (test, "black"),
            *((cell, HELPS) for cell in helping),
            *((cell, HARMS) for cell in harming),
        ]
        for axes, ((label, image), colour) in zip(grid[row], cells, strict=False):
            axes.imshow(image, cmap="gray_r", interpolation="nearest")
            axes.set_title(label, fontsize=7, color=colour)
    figure.suptitle("test row · helps most (blue) · harms most (red)", fontsize=9)
    return figure


def agreement(predicted: NDArray, actual: NDArray, *, title: str) -> Figure:
    """Predicted against actual changes: on the diagonal the influences are right."""
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.subplots()
    limit = float(max(np.abs(predicted).max(), np.abs(actual).max())) or 1.0
    axes.plot([-limit, limit], [-limit, limit], color=NEUTRAL, linewidth=1)
    axes.scatter(predicted.ravel(), actual.ravel(), s=3, alpha=0.4, color=HELPS, rasterized=True)
    axes.set(xlabel="predicted change of the test loss", ylabel="change after a refit", title=title)
    return figure


def intervals(names: Sequence[str], values: NDArray, lower: NDArray, upper: NDArray) -> Figure:
    """A score with its interval for each candidate, best first."""
    figure = Figure(figsize=(5.2, 0.3 * len(names) + 1.0), layout="constrained")
    axes = figure.subplots()
    spread = np.abs(np.stack([values - lower, upper - values]))
    axes.errorbar(values, range(len(names)), xerr=spread, fmt="o", color=HELPS, capsize=3)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="linear datamodelling score")
    axes.invert_yaxis()
    return figure


def feature_map(values: NDArray, *, title: str) -> Figure:
    """A perturbation influence over a two-dimensional input: blue, more of the pixel helps."""
    figure = Figure(figsize=(3.2, 3.0), layout="constrained")
    axes = figure.subplots()
    limit = float(np.abs(values).max()) or 1.0
    drawn = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()
    figure.colorbar(drawn, ax=axes, shrink=0.8).set_label("blue: more of it helps", fontsize=7)
    return figure


def feature_bars(names: Sequence[str], values: NDArray, *, title: str) -> Figure:
    """A perturbation influence over named features."""
    figure = Figure(figsize=(4.8, 0.28 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(names), values, color=[HELPS if value >= 0 else HARMS for value in values])
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("blue: more of it helps", fontsize=7)
    return figure

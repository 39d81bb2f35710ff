"""What a materialisation shows: shape, chunks, bytes, seconds, solver info, and a picture."""

from collections.abc import Callable
from typing import Any

import dagster as dg
import numpy as np

from influence_dag import plots
from influence_dag.labelled import Axis
from influence_dag.stages.base import Update, Workbench
from influence_dag.store import Version

SHOWN = 5  # test rows in a picture
SAMPLE = 200_000  # numbers in a histogram


def materialize_result(
    bench: Workbench, update: Update, method: str | None
) -> dg.MaterializeResult:
    """The result of one asset: its data version and everything worth seeing about it."""
    version = bench.require(update.artifact)
    metadata = _numbers(update) | _arrays(version) | _info(update)
    picture = PICTURES.get(update.artifact.rpartition("/")[2])
    if picture:
        metadata |= picture(bench, version, method)
    return dg.MaterializeResult(data_version=dg.DataVersion(update.data_version), metadata=metadata)


def _numbers(update: Update) -> dict[str, Any]:
    return {
        "version": update.version,
        "path": dg.MetadataValue.path(str(update.path)),
        "blocks_computed": update.blocks_computed,
        "blocks_reused": update.blocks_reused,
        "bytes_written": update.bytes_written,
        "seconds": round(update.seconds, 3),
    }


def _arrays(version: Version) -> dict[str, Any]:
    """Shape and chunks of every array, as a table."""
    records = [
        dg.TableRecord(
            {
                "array": name,
                "dims": " × ".join(entry.dims),
                "shape": " × ".join(map(str, entry.shape)),
                "chunks": " × ".join(map(str, entry.chunks)),
                "dtype": entry.dtype,
            }
        )
        for name, entry in version.variables.items()
    ]
    return {"arrays": dg.MetadataValue.table(records)}


def _info(update: Update) -> dict[str, Any]:
    return {
        name: dg.MetadataValue.json(value) if isinstance(value, dict | list) else value
        for name, value in update.info.items()
    }


def _spectrum(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    if "eigenvalues" not in version.variables:
        return {}
    values = np.asarray(version.array("eigenvalues")[...], np.float64)
    title = (
        f"Spectrum of the Hessian ({len(values):,} parameters)"
        if method is None
        else f"{method}: eigenvalues it keeps"
    )
    figure = plots.spectrum(values, damping=bench.settings.dampings, title=title)
    return {"spectrum": dg.MetadataValue.md(plots.markdown(figure, "spectrum"))}


def _convergence(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    valid = Axis.read(version, "test").valid
    residual = np.asarray(version.array("residual")[...], np.float64)[..., valid].ravel()
    found: dict[str, Any] = {"worst_residual": float(residual.max())}
    if "niter" in version.variables:
        niter = np.asarray(version.array("niter")[...])[..., valid].ravel()
        settings = bench.settings.methods[str(method)]
        figure = plots.convergence(niter, residual, tolerance=getattr(settings, "rtol", None))
        found |= {
            "most_iterations": int(niter.max()),
            "convergence": dg.MetadataValue.md(plots.markdown(figure, "convergence")),
        }
    return found


def _influences(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    array = version.array("influences")
    rows = max(1, SAMPLE // array.shape[-1])
    block = np.asarray(array[:rows] if array.ndim == 2 else array[-1, :rows])
    figure = plots.histogram(
        block[np.isfinite(block)], title=f"Influences by {method}, first {len(block)} test rows"
    )
    return {"histogram": dg.MetadataValue.md(plots.markdown(figure, "histogram of influences"))}


def _summary(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    test, train = Axis.read(version, "test"), Axis.read(version, "train")
    shown = test.slots[np.linspace(0, test.count - 1, min(SHOWN, test.count)).astype(int)]
    ranked = {end: _last(version.array(f"{end}_train"))[shown][:, :4] for end in ("top", "bottom")}
    dataset = bench.require("dataset")
    if "train_x" in dataset.variables and dataset.array("train_x").ndim == 3:
        return _pictures(dataset, test, train, shown, ranked)
    records = [
        dg.TableRecord(
            {
                "test": str(test.ids[j]),
                "helps most": _ids(train, up),
                "harms most": _ids(train, down),
            }
        )
        for j, up, down in zip(shown, ranked["top"], ranked["bottom"], strict=True)
    ]
    return {"strongest": dg.MetadataValue.table(records)}


def _pictures(
    dataset: Version, test: Axis, train: Axis, shown: np.ndarray, ranked: dict
) -> dict[str, Any]:
    tests = [(_name(test, j), np.asarray(dataset.array("test_x")[int(j)])) for j in shown]
    strongest = [
        [
            [(_name(train, i), np.asarray(dataset.array("train_x")[int(i)])) for i in row]
            for row in ranked[end]
        ]
        for end in ("top", "bottom")
    ]
    figure = plots.image_grid(tests, *strongest)
    return {
        "strongest": dg.MetadataValue.md(
            plots.markdown(figure, "most helpful and most harmful training images")
        )
    }


def _last(array: Any) -> np.ndarray:
    values = np.asarray(array[...])
    return values if values.ndim == 2 else values[-1]


def _ids(axis: Axis, slots: np.ndarray) -> str:
    return ", ".join(str(axis.ids[i]) for i in slots)


def _name(axis: Axis, slot: int) -> str:
    label = "" if axis.labels is None else f" ({axis.labels[slot]:g})"
    return f"{axis.ids[slot]}{label}"


def _perturbation(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    """The strongest helper of the first test row: which of its features matter."""
    name = next(iter(version.variables))
    array = version.array(name)
    summary = bench.store.current(f"{method}/summary")
    test, train = Axis.read(version, "test"), Axis.read(version, "train")
    j = int(test.slots[0])
    i = int(_last(summary.array("top_train"))[j, 0]) if summary else int(train.slots[0])
    values = np.asarray(array[j, i] if "damping" not in version.coordinates else array[-1, j, i])
    title = f"{train.ids[i]} → {test.ids[j]}"
    if values.ndim == 2:
        figure = plots.feature_map(values, title=title)
    elif values.ndim == 1 and len(values) <= 64:
        dim = version.variables[name].dims[-1]
        labels = version.coordinate(dim) if dim in version.coordinates else range(len(values))
        figure = plots.feature_bars([str(label) for label in labels], values, title=title)
    else:
        return {}
    return {
        "example": dg.MetadataValue.md(plots.markdown(figure, "perturbation influence of one pair"))
    }


PICTURES: dict[str, Callable[[Workbench, Version, str | None], dict[str, Any]]] = {
    "hessian": _spectrum,
    "gauss_newton": _spectrum,
    "curvature": _spectrum,
    "influence_factors": _convergence,
    "influences": _influences,
    "perturbation_influences": _perturbation,
    "summary": _summary,
}

"""What a materialisation shows: shape, chunks, bytes, seconds, solver info, and a picture."""

from collections.abc import Callable
from typing import Any

import dagster as dg
import numpy as np

from influence_dag.components.captions import picture
from influence_dag.components.changes import changes, made_from
from influence_dag.components.keys import DATA_VERSION_TAG
from influence_dag.datasets.slots import SPLITS, Axis, shown_label
from influence_dag.query import pictures, plots
from influence_dag.stages.updates import Update
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version
from influence_dag.study.curvatures import CURVATURE_KINDS
from influence_dag.texts import code, literal

DRAWN = (
    *("spectrum", "convergence", "residuals", "histogram", "strongest", "example"),
    *("agreement", "scores", "detection", "verdict", "measured", "strength"),
)
SHOWN = 5  # test rows in a picture
SAMPLE = 200_000  # numbers in a histogram


def materialize_result(
    context: dg.AssetExecutionContext,
    bench: Workbench,
    update: Update,
    method: str | None,
    tags: dict[str, str] | None = None,
) -> dg.MaterializeResult:
    """The result of one asset: its data version and everything worth seeing about it.

    Pictures cost more than a refresh that finds nothing to do: they are drawn once a version, and
    not at all when the run is not recorded.
    """
    version = bench.require(update.artifact)
    draw, metadata = PICTURES.get(update.artifact.rpartition("/")[2]), {}
    if draw and not context.instance.is_ephemeral:
        metadata = _drawn_before(context, update) or _drawn(context, draw, bench, version, method)
    if not context.instance.is_ephemeral:
        metadata |= changes(bench, update) | made_from(bench, update, method)
    info = {name: value for name, value in _info(update).items() if name not in metadata}
    metadata |= info | _solves(version) | _charted(version, update.info)
    metadata |= _numbers(update) | _arrays(version)
    metadata |= _row_count(version)
    data_version = dg.DataVersion(update.data_version)
    return dg.MaterializeResult(data_version=data_version, metadata=metadata, tags=tags)


def _drawn(
    context: dg.AssetExecutionContext, draw: Callable[..., dict[str, Any]], *of: Any
) -> dict[str, Any]:
    """The pictures, or a line that says why not: the numbers are stored, and sound without them."""
    try:
        return draw(*of)
    except Exception as error:
        said = f"{type(error).__name__}: {error!s:.300}"
        context.log.warning(f"the picture of this version could not be drawn: {said}")
        return {"picture": f"could not be drawn: {said}"}


def _drawn_before(context: dg.AssetExecutionContext, update: Update) -> dict[str, Any]:
    """The pictures of the last materialisation, if it was of the same data."""
    event = context.instance.get_latest_materialization_event(context.asset_key)
    last = event.asset_materialization if event else None
    if last is None or (last.tags or {}).get(DATA_VERSION_TAG) != update.data_version:
        return {}
    return {name: value for name, value in last.metadata.items() if name in DRAWN}


def _numbers(update: Update) -> dict[str, Any]:
    return {
        "version": update.version,
        "path": dg.MetadataValue.path(update.address),
        "blocks_computed": update.blocks_computed,
        "blocks_reused": update.blocks_reused,
        "bytes_written": update.bytes_written,
        "reasons": update.why or "current",
        "seconds": round(update.seconds, 3),
    }


def _row_count(version: Version) -> dict[str, int]:
    """Rows of the artifact: of the dataset those of both splits, else those on its first axis."""
    splits = [split for split in SPLITS if f"{split}_valid" in version.coordinates]
    if version.artifact != "dataset":
        dims = [dim for each in version.variables.values() for dim in each.dims]
        leading = (split for split in splits if split in dims)
        splits = sorted(leading, key=lambda split: dims.index(split))[:1]
    counts = [int(np.sum(version.coordinate(f"{split}_valid") != 0)) for split in splits]
    return {"dagster/row_count": sum(counts)} if counts else {}


def _arrays(version: Version) -> dict[str, Any]:
    """Shape and chunks of every array, as a table; nothing of an artifact without any."""
    if not version.variables:  # the factorisation of a method that needs none
        return {}
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


def _solves(version: Version) -> dict[str, Any]:
    """The worst of what the solves noted, which the UI charts from run to run."""
    worst = {"residual": "worst_residual", "niter": "most_iterations"}
    noted = {
        told: pictures.of_rows(version, name)
        for name, told in worst.items()
        if name in version.variables
    }
    return {told: float(values.max()) for told, values in noted.items() if len(values)}


def _charted(version: Version, info: dict[str, Any]) -> dict[str, float]:
    """Numbers inside tables and arrays that one follows from run to run: the UI charts them."""
    found: dict[str, float] = {}
    for name, score in info.get("scores", {}).items():
        found[f"lds_{name}"] = float(score["lds"])
    for name, told in info.items():
        if isinstance(told, dict) and "auc" in told:
            found[f"auc_{name}"] = float(told["auc"])
    for split in SPLITS:
        if f"{split}_loss" in version.variables:
            values = version.read(f"{split}_loss")[Axis.read(version, split).slots]
            found[f"mean_{split}_loss"] = float(values.mean())
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _spectrum(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    from influence_dag.stages import dampings

    if not any(name.endswith("eigenvalues") for name in version.variables):
        return {}
    known = (
        dampings.of_matrix(bench, version.artifact)
        if method is None
        else dampings.of_method(bench, method)
    )
    figure = pictures.spectrum(version, method, known)
    return picture("spectrum", figure, "spectrum")


def _convergence(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    name = "convergence" if "niter" in version.variables else "residuals"
    figure = pictures.convergence(version)
    return picture(name, figure, name)


def _influences(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    array = version.array("influences")
    rows = max(1, SAMPLE // array.shape[-1])
    block = np.asarray(array[:rows] if array.ndim == 2 else array[-1, :rows])
    figure = plots.histogram(
        block[np.isfinite(block)], title=f"Influences by {method}, first {len(block)} test rows"
    )
    return picture("histogram", figure, "histogram of influences")


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
                "test": _name(test, j),
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
    strongest = [[_images(dataset, train, row) for row in ranked[end]] for end in ("top", "bottom")]
    figure = plots.image_grid(_images(dataset, test, shown), *strongest)
    return picture("strongest", figure, "most helpful and most harmful training images")


def _images(dataset: Version, axis: Axis, slots: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Captions and images of rows, found by id: the dataset may be newer than the summary."""
    at = {str(name): slot for slot, name in enumerate(Axis.read(dataset, axis.name).ids)}
    array = dataset.array(f"{axis.name}_x")
    gone = np.full(array.shape[1:], np.nan)
    ids = [str(axis.ids[slot]) for slot in slots]
    images = [np.asarray(array[at[name]]) if name in at else gone for name in ids]
    return [(_name(axis, slot), image) for slot, image in zip(slots, images, strict=True)]


def _last(array: Any) -> np.ndarray:
    values = np.asarray(array[...])
    return values if values.ndim == 2 else values[-1]


def _ids(axis: Axis, slots: np.ndarray) -> str:
    return ", ".join(_name(axis, i) for i in slots)


def _name(axis: Axis, slot: int) -> str:
    label = "" if axis.labels is None else f" ({literal(shown_label(axis.labels[slot]), 24)})"
    return f"{literal(axis.ids[slot], 24)}{label}"


def _perturbation(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    """One pair of the first block: the training row whose features matter most."""
    name, entry = next(iter(version.variables.items()))
    test, train = Axis.read(version, "test"), Axis.read(version, "train")
    *lead, j = [-1] * ("damping" in version.coordinates) + [int(test.slots[0])]
    span = entry.chunks[len(lead) + 1]
    block = np.asarray(version.array(name)[(*lead, j, slice(0, span))], np.float64)
    i = int(np.nansum(np.abs(block).reshape(len(block), -1), axis=1).argmax())
    values, title = block[i], f"{literal(train.ids[i], 28)} → {literal(test.ids[j], 28)}"
    if values.ndim == 2:
        figure = plots.feature_map(values, title=title)
    elif values.ndim == 1 and len(values) <= 64:
        dim = entry.dims[-1]
        labels = version.coordinate(dim) if dim in version.coordinates else range(len(values))
        figure = plots.feature_bars([str(label) for label in labels], values, title=title)
    else:
        return {}
    return picture("example", figure, "perturbation influence of one pair")


def _leave_one_out(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    figure = pictures.leave_one_out(version)
    return picture("agreement", figure, "predicted against refits")


def _datamodels(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    figure = pictures.datamodels(version)
    return picture("scores", figure, "linear datamodelling scores")


def _label_errors(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    figure = pictures.label_errors(version)
    return picture("detection", figure, "flipped labels found")


def _report(bench: Workbench, version: Version, method: str | None) -> dict[str, Any]:
    """What may be trusted, as of this version, and how methods compare."""
    from influence_dag.query.report import findings_of
    from influence_dag.query.results import StudyResults

    findings = findings_of(StudyResults(bench.store.address))
    reasons = "".join(f"- {reason}\n" for reason in findings.verdict.reasons)
    page = f"The whole page: {code(f'influence-dag report {bench.store.address}')}"
    return {
        "verdict": dg.MetadataValue.md(f"### {findings.verdict.headline}\n\n{reasons}\n{page}"),
        "measured": _records([{"what": each.name, "seen": each.says} for each in findings.found]),
        "agreement": _records(_rows(version.attrs["info"]["agreement"], "methods")),
        "strength": _records(_rows(version.attrs["info"]["strength"], "method")),
    }


def _rows(found: dict[str, dict[str, float]], of: str) -> list[dict[str, str]]:
    """Numbers that a person reads, a row for each of `of`."""
    return [
        {of: name} | {what.replace("_", " "): f"{value:.4g}" for what, value in values.items()}
        for name, values in found.items()
    ]


def _records(rows: list[dict[str, str]]) -> dg.TableMetadataValue | str:
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows]) if rows else "one method"


PICTURES: dict[str, Callable[[Workbench, Version, str | None], dict[str, Any]]] = {
    **dict.fromkeys(CURVATURE_KINDS, _spectrum),
    "curvature": _spectrum,
    "influence_factors": _convergence,
    "influences": _influences,
    "perturbation_influences": _perturbation,
    "summary": _summary,
    "leave_one_out": _leave_one_out,
    "datamodels": _datamodels,
    "label_errors": _label_errors,
    "report": _report,
}

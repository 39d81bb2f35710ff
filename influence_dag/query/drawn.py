"""What is shown of a new version of each artifact: pictures and tables, by name.

The graph names these functions (`Picture` in `stages.artifacts`).
"""

from collections.abc import Callable, Iterable
from textwrap import wrap

import numpy as np
from matplotlib.figure import Figure

from influence_dag.datasets.slots import Axis, shown_label
from influence_dag.query import figures, pictures, plots
from influence_dag.stages import automatic, dampings
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Variable, Version
from influence_dag.texts import code, literal, short

SHOWN, EACH = 5, 4  # test rows in a picture, and training rows on either side of each
SAMPLE = 200_000  # numbers in a histogram

Drawn = dict[str, str | list[dict[str, str]]]  # Markdown, or the rows of a table


def spectrum(bench: Workbench, version: Version, method: str | None) -> Drawn:
    if not any(name.endswith("eigenvalues") for name in version.variables):
        return {}
    known = (
        automatic.of_matrix(bench, version.artifact)
        if method is None
        else dampings.of_method(bench, method)
    )
    figure = pictures.spectrum(version, method, known)
    return {"spectrum": figures.markdown(figure, "spectrum")}


def convergence(bench: Workbench, version: Version, method: str | None) -> Drawn:
    name = "convergence" if "niter" in version.variables else "residuals"
    figure = pictures.convergence(version)
    return {name: figures.markdown(figure, name)}


def influences(bench: Workbench, version: Version, method: str | None) -> Drawn:
    rows = max(1, SAMPLE // version.variables["influences"].shape[-1])
    slots = Axis.read(version, "test").slots[:rows]
    block = dampings.at(version, "influences", -1, slice(slots[0], slots[-1] + 1))[slots - slots[0]]
    figure = plots.histogram(
        block[np.isfinite(block)],
        title=f"Influences by {method}{_of_sweep(version)}, first {len(block)} test rows",
    )
    return {"histogram": figures.markdown(figure, "histogram of influences")}


def _of_sweep(version: Version) -> str:
    """The λ of a sweep that is drawn; of a single one nothing."""
    known = dampings.stored_values(version)
    return f" at λ = {short(known[-1])}" if known else ""


def summary(bench: Workbench, version: Version, method: str | None) -> Drawn:
    test, train = Axis.read(version, "test"), Axis.read(version, "train")
    shown = test.slots[np.linspace(0, test.count - 1, min(SHOWN, test.count)).astype(int)]
    helps, harms = (_strongest(version, end, shown) for end in ("top", "bottom"))
    dataset = bench.require("dataset")
    if "train_x" in dataset.variables and dataset.array("train_x").ndim == 3:
        rows = (_rows_of_images(dataset, train, end) for end in (helps, harms))
        figure = plots.image_grid(_images(dataset, test, shown), *rows)
        return {
            "strongest": figures.markdown(figure, "most helpful and most harmful training images")
        }
    rows = zip(shown, helps, harms, strict=True)
    return {
        "strongest": [
            {"test": _name(test, j), "helps most": _ids(train, up), "harms most": _ids(train, down)}
            for j, up, down in rows
        ]
    }


def _strongest(version: Version, end: str, tests: np.ndarray) -> list[np.ndarray]:
    """Slots of the first training rows of a ranking, of each test row, that have its sign."""
    slots, values = (
        dampings.at(version, f"{end}_{what}", -1)[tests][:, :EACH]
        for what in ("train", "influence")
    )
    signed = values > 0 if end == "top" else values < 0
    return [of[mask] for of, mask in zip(slots, signed, strict=True)]


def _rows_of_images(
    dataset: Version, axis: Axis, rows: list[np.ndarray]
) -> list[list[tuple[str, np.ndarray]]]:
    images = iter(_images(dataset, axis, np.concatenate(rows)))
    return [[next(images) for _ in slots] for slots in rows]


def _images(dataset: Version, axis: Axis, slots: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Captions and images of rows, found by id: the dataset may be newer than the summary."""
    rows = Axis.read(dataset, axis.name)
    at = {str(rows.ids[slot]): int(slot) for slot in rows.slots}
    found = np.array([at.get(str(axis.ids[slot]), -1) for slot in slots])
    array = dataset.array(f"{axis.name}_x")
    images = np.full((len(slots), *array.shape[1:]), np.nan)
    images[found >= 0] = array.oindex[found[found >= 0]]
    return [(_name(axis, slot), image) for slot, image in zip(slots, images, strict=True)]


def _ids(axis: Axis, slots: np.ndarray) -> str:
    return ", ".join(_name(axis, i) for i in slots) or "nobody"


def _name(axis: Axis, slot: int) -> str:
    label = "" if axis.labels is None else f" ({literal(shown_label(axis.labels[slot]), 24)})"
    return f"{literal(axis.ids[slot], 24)}{label}"


def perturbation(bench: Workbench, version: Version, method: str | None) -> Drawn:
    """One pair of the first block: the training row whose features matter most."""
    name, entry = next(iter(version.variables.items()))
    if "reduce" in version.attrs and version.attrs["reduce"]["over"] == "feature":
        return {}
    values, title = _derivative(version, name, entry)
    if values.ndim == 2:
        figure = plots.feature_map(values, title=title)
    elif values.ndim == 1 and len(values) <= 64:
        dim = entry.dims[-1]
        labels = version.coordinate(dim) if dim in version.coordinates else range(len(values))
        figure = plots.feature_bars([str(label) for label in labels], values, title=title)
    else:
        return {}
    return {"example": figures.markdown(figure, "perturbation influence of one pair")}


def _derivative(version: Version, name: str, entry: Variable) -> tuple[np.ndarray, str]:
    """The longest derivative of the first block that has a row, and whose it is."""
    train, lead, title = Axis.read(version, "train"), (), "all test rows"
    if "test" in entry.dims:
        test = Axis.read(version, "test")
        j = int(test.slots[0])
        lead, title = (slice(j, j + 1),), literal(test.ids[j], 28)
    ranked = "rank" in entry.dims
    span = entry.chunks[entry.dims.index("rank" if ranked else "train")]
    start = 0 if ranked else int(train.slots[0]) // span * span
    block = dampings.at(version, name, -1, *lead, slice(start, start + span)).astype(np.float64)
    block = block[0] if lead else block
    length = np.abs(block).reshape(len(block), -1).sum(axis=1)  # NaN where there is no row
    i = int(np.nanargmax(length))
    row = int(dampings.at(version, "top_train", -1, *lead)[0, i]) if ranked else start + i
    return block[i], f"{literal(train.ids[row], 28)} → {title}{_of_sweep(version)}"


def _of_version(
    name: str, draw: Callable[[Version], Figure], alt: str
) -> Callable[[Workbench, Version, str | None], Drawn]:
    return lambda bench, version, method: {name: figures.markdown(draw(version), alt)}


leave_one_out = _of_version("agreement", pictures.leave_one_out, "predicted against refits")
datamodels = _of_version("scores", pictures.datamodels, "linear datamodelling scores")
label_errors = _of_version("detection", pictures.label_errors, "flipped labels found")


def report(bench: Workbench, version: Version, method: str | None) -> Drawn:
    """What may be trusted, as of this version, and how methods compare."""
    from influence_dag.query.report import findings_of
    from influence_dag.query.results import StudyResults

    first = bench.settings.methods.names[0]  # one that the study no longer has may be stored too
    findings = findings_of(StudyResults(bench.store.address), first)
    info, reasons = version.attrs["info"], _list(findings.verdict.reasons)
    page = f"The whole page: {code(f'influence-dag report {bench.store.address}')}"
    return {
        "verdict": f"### {findings.verdict.headline}\n\n{reasons}\n{page}",
        "measured": _list(f"**{each.name}**: {each.says}" for each in findings.found),
        "agreement": _numbers(info["agreement"]),
        "strength": _numbers(info["strength"]),
    }


WIDTH = 44  # letters a line: what a window of 1,600 pixels shows of a value


def _list(sentences: Iterable[str]) -> str:
    """As Markdown, in lines that are broken: Dagster cuts off what is wider than its column."""
    items = (wrap(sentence, WIDTH, break_on_hyphens=False) for sentence in sentences)
    return "".join("- " + "  \n  ".join(lines) + "\n" for lines in items)


def _numbers(table: dict[str, dict[str, float]]) -> str:
    """Numbers that a person reads, of each method or pair of methods."""
    said = {
        name: ", ".join(f"{what.replace('_', ' ')} {value:.4g}" for what, value in values.items())
        for name, values in table.items()
    }
    return _list(f"**{name}**: {values}" for name, values in said.items())

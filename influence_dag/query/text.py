"""A study's results in a few lines of text: where they are, what they say, what to type next."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.local import get_sync

from influence_dag.addresses import folder_of, scheme_of
from influence_dag.datasets.slots import Axis, Split, shown_label
from influence_dag.errors import StoreError
from influence_dag.query.accessor import strongest
from influence_dag.query.contents import Content
from influence_dag.query.perturbations import example
from influence_dag.query.results import StudyResults, largest, spelled
from influence_dag.query.rows import of_sweep
from influence_dag.stages import naming
from influence_dag.store.differences import Change, Difference
from influence_dag.texts import listed, literal

TESTS, NEIGHBOURS = 3, 3
SHOWN = 10  # labels in a list
WIDEST = 70  # characters of a text that is quoted
SHADES = " ░▒▓█"
PROGRAM = "influence-dag"


def describe(results: StudyResults) -> str:
    """Where the arrays are, the strongest training rows of a few test rows, what to type next."""
    root = _short(results.store.address)
    lines = [f"\n{results.store.name}: stored in {root}", *_artifact_lines(results), ""]
    if not results.methods:
        return "\n".join([*lines, "No influences yet: materialise the study."])
    method = results.methods[0]
    influences = results.influences(method=method)
    by = f"{method}{of_sweep(influences)}"
    lines += [f"Influences by {by}: {_sizes(influences)}; positive helps, negative harms"]
    tests = influences.sizes["test"]
    for position in np.linspace(0, tests - 1, min(TESTS, tests)).astype(int):
        # Were it named, a cluster would be looked for, by what takes long to import.
        row = influences.isel(test=position).load(scheduler=get_sync)
        lines += _strongest(row)
    return "\n".join([*lines, "", *_next(root, method, results, influences)])


def _short(address: str) -> str:
    """The path from here when it is below the working directory."""
    path, here = folder_of(address), Path.cwd()
    return str(path.relative_to(here)) if path and path.is_relative_to(here) else address


def _artifact_lines(results: StudyResults) -> list[str]:
    names = results.artifacts
    width = max(map(len, names))
    return [f"  {name:<{width}}  {_contents(results, name)}" for name in names]


def _contents(results: StudyResults, name: str) -> str:
    version = results.store.version(name)
    array = largest(version)
    return f"version {version.number}, {'no arrays' if array is None else spelled(array)}"


def _sizes(array: xr.DataArray) -> str:
    return " × ".join(f"{size:,} {dim}" for dim, size in array.sizes.items())


def _strongest(row: xr.DataArray) -> list[str]:
    """The most helpful and most harmful training rows of one test row."""
    helps, harms = strongest(row, NEIGHBOURS)
    head = f"  {_name(row, 'test')}"
    if kept := _kept(row, "test"):
        pairs = [*_lines("helped by", helps), *_lines("harmed by", harms)]
        return [f"{head}  {kept}", *pairs]
    return [head, f"    helped by  {_list(helps)}", f"    harmed by  {_list(harms)}"]


def _lines(what: str, rows: xr.DataArray) -> Iterator[str]:
    """A line for each row, with what is kept of it."""
    for row in rows:
        yield f"    {what}  {float(row):+.3g}  {_name(row, 'train')}  {_kept(row, 'train')}"


def _list(rows: xr.DataArray) -> str:
    return ", ".join(f"{_name(row, 'train')} {float(row):+.3g}" for row in rows) or "nobody"


def _name(row: xr.DataArray, split: Split) -> str:
    label = row.coords.get(f"{split}_label")
    shown = "" if label is None else f" ({literal(shown_label(label.item()))})"
    return f"{literal(row[split].item())}{shown}"


def _kept(row: xr.DataArray, split: Split) -> str:
    """The columns that travel along, as a person would quote them."""
    names = [
        name
        for name in Axis.coordinate_names(split, map(str, row.coords))[4:]
        if row.coords[name].ndim == 0
    ]
    told = (str(row.coords[name].item()) for name in names)
    return "  ".join(_quoted(text) for text in told if text)


def _quoted(text: str) -> str:
    plain = " ".join(text.split())
    return literal(plain if len(plain) <= WIDEST else f"{plain[: WIDEST - 1]}…")


def _next(root: str, method: str, results: StudyResults, influences: xr.DataArray) -> list[str]:
    test = _in_python(influences.test.values.tolist()[0])
    lines = [
        "Next, in Python:",
        "  import influence_dag as idag",
        f"  study = idag.open_study({_in_python(root)})",
        f'  study["{method}"].influences.sel(test={test}).idag.top_k(5)',
    ]
    if naming.perturbation(method) in results.artifacts:
        stored = results.store.version(naming.perturbation(method))
        row = f".sel(test={test})" if "test" in stored.sizes else ""
        lines.append(f"  {example(stored, method)}{row}")
    if scheme_of(root) == "memory":  # nobody else can open it
        return lines
    address = results.store.version(naming.influences(method)).address
    if folder_of(address) is not None:
        plain = f"  xarray.open_zarr({_in_python(_short(address))})"
        lines += ["or with xarray alone:", plain]
    return [*lines, *_in_the_browser(root)]


def _in_python(value: object) -> str:
    """A number as it is, a text between quotation marks; what is not printed by its number."""
    quoted = json.dumps(value, ensure_ascii=False)
    return literal(quoted, 10 * len(quoted))


def _in_the_browser(root: str) -> list[str]:
    """The commands that show it, as they can be typed where this is printed."""
    called = sys.argv[0]
    program = called if Path(called).name == PROGRAM else PROGRAM  # by its path: not activated
    explore = f"  {shlex.join([program, 'explore', root])}"
    makefile = Path("Makefile")
    graph = makefile.is_file() and "\nui:" in makefile.read_text(errors="replace")
    ui = ["  make ui  # the graph of assets, in Dagster"] if graph else []
    return ["or in the browser:", explore, *ui]


def stored(results: StudyResults) -> dict[str, Any]:
    """The study's artifacts with their versions and arrays, as plain values."""
    versions = [results.store.version(name) for name in results.artifacts]
    return {
        "study": results.store.name,
        "store": results.store.address,
        "methods": results.methods,
        "artifacts": [
            {
                "artifact": each.artifact,
                "version": each.number,
                "data_version": each.data_version,
                "arrays": {
                    name: {"dims": entry.dims, "shape": entry.shape, "dtype": entry.dtype}
                    for name, entry in each.variables.items()
                },
            }
            for each in versions
        ],
    }


def describe_difference(
    results: StudyResults, artifact: str, before: int | None = None, after: int | None = None
) -> str:
    """Rows that came, went and changed, chunks that differ, values that moved most."""
    found = difference(results, artifact, before, after)
    lines = [f"{artifact}: version {found.before.number} → {found.after.number}"]
    rows = {"added": found.added, "removed": found.removed, "changed": found.changed}
    for what, labels in rows.items():
        lines += [
            f"  {dim} {what}: {listed(names, SHOWN)}" for dim, names in labels.items() if names
        ]
    for name, chunks in found.chunks.items():
        total = int(np.prod(found.after.variables[name].grid))
        lines.append(f"  {name}: {len(chunks)} of {total} chunks differ")
        lines += [f"    {_moved(change)}" for change in found.largest_changes(name, NEIGHBOURS)]
    return "\n".join(lines)


def difference(
    results: StudyResults, artifact: str, before: int | None = None, after: int | None = None
) -> Difference:
    """From one version to another; by default from the last but one to the current one."""
    if before is None:
        kept = [version.number for version in results.versions(artifact)]
        if len(kept) < 2:
            raise StoreError(
                f"{artifact} has {len(kept)} version; two are needed to compare: a refresh after a "
                "change makes the next"
            )
        before = kept[-2]
    return results.diff(artifact, before, after)


def difference_as_values(change: Difference) -> dict[str, Any]:
    """The same as `describe_difference` says, as plain values."""
    return {
        "artifact": change.after.artifact,
        "before": change.before.number,
        "after": change.after.number,
        "rows": {"added": change.added, "removed": change.removed, "changed": change.changed},
        "arrays": {
            name: {
                "chunks": int(np.prod(change.after.variables[name].grid)),
                "chunks_changed": len(chunks),
                "largest_changes": [
                    {"at": each.labels, "before": each.before, "after": each.after}
                    for each in change.largest_changes(name)
                ],
            }
            for name, chunks in change.chunks.items()
        },
    }


def _moved(change: Change) -> str:
    at = ", ".join(literal(label) for label in change.labels.values())
    return f"{at}: {change.before:+.3g} → {change.after:+.3g}"


def content_lines(content: Content) -> Iterator[str]:
    """A row as text: an image in shades, features by name, columns that travelled along."""
    image = content.image
    if image is not None and max(image.shape[:2]) <= WIDEST:
        yield from _shaded(image if image.ndim == 2 else image.mean(axis=-1))
    elif features := content.features:
        width = max(map(len, map(literal, features)))
        yield from (f"  {literal(name):<{width}}  {value:g}" for name, value in features.items())
    else:
        for name, array in content.inputs.items():
            yield f"  {name}: {' × '.join(map(str, array.shape))} numbers"
    yield from (f"  {literal(name)}: {_quoted(str(value))}" for name, value in content.kept.items())


def _shaded(image: np.ndarray) -> Iterator[str]:
    """Two characters a pixel, darker where values are larger."""
    low, high = np.nanmin(image), np.nanmax(image)
    levels = np.nan_to_num((image - low) / ((high - low) or 1.0))
    shades = np.array(list(SHADES))[np.round(levels * (len(SHADES) - 1)).astype(int)]
    yield from ("  " + "".join(np.repeat(row, 2)).rstrip() for row in shades)

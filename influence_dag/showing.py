"""A study's results in a few lines of text: where they are, what they say, what to type next."""

from pathlib import Path

import numpy as np
import xarray as xr

from influence_dag.query import StudyResults

TESTS, NEIGHBOURS = 3, 3


def describe(results: StudyResults) -> str:
    """Where the arrays are, the strongest training rows of a few test rows, what to type next."""
    method = results.methods[0]
    root = _short(results.store.root)
    lines = [f"\n{results.store.root.name}: stored in {root}", *_artifact_lines(results), ""]
    influences = results[method].influences
    if "damping" in influences.dims:
        influences = influences.isel(damping=-1)
    lines += [f"Influences by {method}: {_sizes(influences)}; positive helps, negative harms"]
    for position in np.linspace(0, influences.sizes["test"] - 1, TESTS).astype(int):
        lines += _strongest(influences.isel(test=position))
    return "\n".join([*lines, "", *_next(root, method, results, influences)])


def _short(path: Path) -> Path:
    """The path from here when it is below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _artifact_lines(results: StudyResults) -> list[str]:
    names = results.artifacts
    width = max(map(len, names))
    return [f"  {name:<{width}}  {_contents(results, name)}" for name in names]


def _contents(results: StudyResults, name: str) -> str:
    version = results.store.version(name)
    largest = max(version.variables.values(), key=lambda entry: np.prod(entry.shape))
    shape = " × ".join(
        f"{dim} {size:,}" for dim, size in zip(largest.dims, largest.shape, strict=True)
    )
    return f"version {version.number}, {shape}, {largest.dtype}"


def _sizes(array: xr.DataArray) -> str:
    return " × ".join(f"{size:,} {dim}" for dim, size in array.sizes.items())


def _strongest(row: xr.DataArray) -> list[str]:
    """The most helpful and most harmful training rows of one test row."""
    helps, harms = row.idag.top_k(NEIGHBOURS), row.idag.bottom_k(NEIGHBOURS)
    return [
        f"  {_name(row, 'test')}",
        f"    helped by  {_list(helps)}",
        f"    harmed by  {_list(harms)}",
    ]


def _list(rows: xr.DataArray) -> str:
    return ", ".join(f"{_name(row, 'train')} {float(row):+.3g}" for row in rows)


def _name(row: xr.DataArray, split: str) -> str:
    label = row.coords.get(f"{split}_label")
    return str(row[split].item()) + ("" if label is None else f" ({label.item():g})")


def _next(root: Path, method: str, results: StudyResults, influences: xr.DataArray) -> list[str]:
    test = influences.test.values[0]
    lines = [
        "Next, in Python:",
        "  import influence_dag as idag",
        f'  study = idag.open_study("{root}")',
        f'  study["{method}"].influences.sel(test="{test}").idag.top_k(5)',
    ]
    if f"{method}/perturbation_influences" in results.artifacts:
        lines.append(f'  study.perturbation("{method}").sel(test="{test}")')
    plain = f'  xarray.open_zarr("{root}/{method}/influences/current")'
    return [*lines, "or with xarray alone:", plain, "or in the browser: make ui"]

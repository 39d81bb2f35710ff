"""Arrays: .npz and .zarr, with the target, perhaps ids, and one input or several."""

from pathlib import Path

import numpy as np

from influence_dag.data_settings import DataSettings
from influence_dag.errors import DataError
from influence_dag.sources.base import INPUT, Source, chosen, demand, same_length


def read_npz(path: Path, name: str, data: DataSettings) -> Source:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: not a readable .npz of plain arrays: {error}") from error
    return _arrays(arrays, name, data)


def read_zarr(path: Path, name: str, data: DataSettings) -> Source:
    import zarr  # here: the formats that most studies use do not need it

    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{name}: not a readable Zarr group: {error}") from error
    return _arrays({key: np.asarray(array[...]) for key, array in group.arrays()}, name, data)


def _arrays(arrays: dict[str, np.ndarray], name: str, data: DataSettings) -> Source:
    """The target, ids where there are some, and every other array as an input."""
    ids = arrays.pop("id", None) if data.id is None else None
    if data.id is not None:
        demand(name, arrays, data.id, "id", "data.id")
        ids = arrays.pop(data.id)
    demand(name, arrays, data.target, "target", "data.target")
    target = arrays.pop(data.target)
    inputs = chosen(name, arrays, data.features.columns)
    if len(inputs) == 1:
        inputs = {INPUT: next(iter(inputs.values()))}
    return same_length(Source(name, inputs, target, ids))

"""Perturbation influences that are computed when sliced and never stored."""

from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr

from influence_dag.query import settings_of, without_holes
from influence_dag.store import ArtifactStore
from influence_dag.study import Study, StudySettings


def lazy_perturbation(store: ArtifactStore, method: str) -> xr.DataArray:
    """A dask-backed array, dims `(test, train, *features)`, whose blocks are computed on demand.

    Each block differentiates the stored model at the stored training rows; the values equal the
    stored `perturbation_influences`. The blocks are those that the store would use.
    """
    from influence_dag.stages import perturbation
    from influence_dag.stages.base import Workbench

    known = settings_of(store)
    study = Study(
        store.root.name, StudySettings.model_validate(known["settings"]), Path(known["project"])
    )
    bench = Workbench(study)
    layout, kernel = perturbation.prepare(bench, method)
    if len(layout.variables) > 1:
        names = ", ".join(variable.name for variable in layout.variables)
        raise NotImplementedError(
            f"the lazy form is for models with one input; this study has {names}"
        )
    variable = next(iter(layout.variables))
    edges = [
        tuple(range(0, size, chunk))
        for size, chunk in zip(variable.shape, variable.chunks, strict=True)
    ]
    sizes = tuple(
        tuple(min(chunk, size - start) for start in starts)
        for starts, size, chunk in zip(edges, variable.shape, variable.chunks, strict=True)
    )

    def block(block_info: dict) -> np.ndarray:
        where = block_info[None]["array-location"]
        return kernel.block(
            variable.name, [start for start, _ in where], [stop for _, stop in where]
        )

    array = da.map_blocks(
        block, chunks=sizes, dtype=variable.dtype, meta=np.empty((0,) * len(sizes), variable.dtype)
    )
    coordinates = {item.name: (item.dims, item.values) for item in layout.coordinates}
    dataset = xr.Dataset(
        {variable.name: (variable.dims, array, variable.attrs)}, coordinates, layout.attrs
    )
    return without_holes(dataset)[variable.name]

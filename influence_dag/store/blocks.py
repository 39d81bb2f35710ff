"""What is opened as dask arrays."""

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

from influence_dag.fingerprints import fingerprint

if TYPE_CHECKING:  # whoever only compares keys does not pay for its import
    import xarray as xr


def in_blocks(dataset: "xr.Dataset", names: Iterable[Hashable], *known_by: str) -> "xr.Dataset":
    """Variables as dask arrays of even blocks, named by what stands for all of their values.

    By default dask pickles the store for a name, which takes longer than to open it.
    """
    blocks = {
        name: dataset.variables[name].chunk(
            "auto", name=f"{name}-{fingerprint(*known_by, str(name))}"
        )
        for name in names
    }
    return dataset.assign(blocks)

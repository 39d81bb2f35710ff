"""Of which test rows residuals are computed, each a product with all training rows."""

import math
from dataclasses import dataclass

import numpy as np

from influence_dag.datasets.slots import Axis
from influence_dag.stages import naming
from influence_dag.stages.workbench import Workbench
from influence_dag.store import Version

FREE = 2**28  # numbers n times p up to which a product costs no more than a solve


@dataclass(frozen=True)
class Sample:
    """Rows whose content key is a multiple of `every`: the same rows whatever others there are."""

    every: int = 1

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Positions of those that are in the sample."""
        return np.flatnonzero(keys % np.uint64(self.every) == 0)

    @property
    def attributes(self) -> dict[str, str]:
        """What the array says of it; nothing where it has all rows."""
        if self.every == 1:
            return {}
        chosen = f"test rows whose test_key is a multiple of {self.every}; NaN of others"
        return {"sample": f"{chosen} (residuals: all computes them)"}


def values_of_rows(version: Version, name: str) -> np.ndarray:
    """What solves noted of each test row that exists, or of those in a sample of them."""
    valid = Axis.read(version, "test").valid
    values = np.asarray(version.read(name), np.float64)[..., valid].ravel()
    return values[~np.isnan(values)] if naming.is_sampled(version, name) else values


def of_method(bench: Workbench, method: str) -> Sample:
    """All rows where they are asked for, or the product is as cheap as a solve.

    Else one of 2, 4, 8, … rows, so that the products cost no more than solves, however many
    training rows there are.
    """
    if getattr(bench.settings.methods[method], "residuals", "all") == "all":
        return Sample()
    parameters = bench.require("model").attrs["info"]["parameters"]
    numbers = bench.require(naming.curvature(method)).attrs["n_train"] * parameters
    return Sample(2 ** max(0, math.ceil(math.log2(numbers / FREE))))

"""The rows of one split, as they are read and before they have slots."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from influence_dag.datasets.sources.on_demand import RowsOnDemand, Values
from influence_dag.datasets.sources.row_keys import input_keys, value_keys
from influence_dag.datasets.standardising import Units


@dataclass(frozen=True, eq=False)
class SplitRows:
    """The rows of one split, in the order of its file or files.

    `x` maps input names to arrays `(n, *shape)`: `{"x": …}` for one input, the names of the
    module's arguments for several; of a callable's data set they are `RowsOnDemand`, with
    `known_keys`, the hashes of the inputs as they were when all of them were seen, and `close`
    lets go of what they are read from, until they are asked for again. `scale` is
    applied. Floating inputs stay floating, tables are float64, unscaled integer arrays are
    integers. `y` is int64 for whole-number columns.
    `feature_names` are a table's feature columns, row-major where the input has a shape, `axes`
    what other axes are called and `axis_labels` what stands along them, where a format says so.
    `units` are those of a standardised input, the same for both splits.
    `weights` (n,) are those of training rows, None where all count alike; test rows have none.
    Labels that were words are numbers in `y`, positions in `classes`, which are `ordered` as
    somebody said and not by the alphabet; of those that were whole numbers `counted` says whether
    they were positions already, or names. `kept` are columns that travel along, one value a row.
    """

    ids: np.ndarray
    x: dict[str, Values]
    y: np.ndarray
    feature_names: tuple[str, ...] | None
    dims: tuple[str, ...]
    source: str
    weights: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    units: Units | None = None
    known_keys: np.ndarray | None = None
    ordered: bool = False
    counted: bool | None = None
    close: Callable[[], None] = lambda: None
    axis_labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def on_demand(self) -> bool:
        """Whether inputs are read when they are asked for, so that few are in memory."""
        return any(isinstance(values, RowsOnDemand) for values in self.x.values())

    @property
    def labels(self) -> np.ndarray | None:
        """Each row's target as it is shown: the name of its class, else the number."""
        if self.y.ndim != 1:
            return None
        if self.classes is None:
            return self.y
        return np.array(self.classes, np.dtypes.StringDType())[self.y]

    def __len__(self) -> int:
        return len(self.ids)

    def row_keys(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Hash of each row's inputs, target and weight, uint8 `(n, 16)`.

        Ids and order do not matter, nor does it whether 2 was written as 2.0.
        """
        weights = {} if self.weights is None else {"weight": self.weights[rows]}
        return value_keys({"y": self.y[rows], **weights}, {"x": self._input_keys(rows)})

    def _input_keys(self, rows: np.ndarray | slice) -> np.ndarray:
        if self.known_keys is not None:
            return self.known_keys[rows]
        if self.on_demand:
            return input_keys(self.x)[rows]
        return input_keys({name: values[rows] for name, values in self.x.items()})

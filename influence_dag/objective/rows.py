"""Rows of data as tensors: inputs, targets and weights, whatever structure holds them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from influence_dag.errors import ModelError
from influence_dag.structures import described, map_tensors, tensors_of, with_tensors

Inputs: TypeAlias = Tensor | tuple[Any, ...] | dict[str, Any]

_TARGETS = ("labels", "label", "targets", "target", "y")  # of a batch that is one mapping
_WEIGHTS = ("weights", "weight", "sample_weight")


@dataclass(frozen=True, eq=False)
class Rows:
    r"""Samples `(x_i, y_i)` as tensors whose leading axis is the sample, and how much each counts.

    A tuple of inputs is passed to the model by position, a dict by name. With `weights` $w_i$,
    shape `(n,)`, means over rows are $\sum_i w_i L_i / \sum_i w_i$: a weight of 2 is the row
    twice. Without, every row counts once.
    """

    x: Any
    y: Any
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        leaves = tensors_of((self.x, self.y, self.weights))
        if any(leaf.ndim == 0 for leaf in leaves):
            raise ModelError(
                f"a batch holds a tensor without axes (inputs: {described(self.x)}; targets: "
                f"{described(self.y)}); every tensor needs the sample as its leading axis"
            )
        lengths = {len(leaf) for leaf in leaves}
        if len(lengths) != 1:
            raise ModelError(
                f"inputs and targets disagree on the number of rows: {sorted(lengths)}; "
                "every tensor needs the sample as its leading axis"
            )
        if self.weights is not None and self.weights.ndim != 1:
            raise ModelError(
                f"weights of rows have shape {tuple(self.weights.shape)}; one number a row is "
                f"wanted, shape ({len(self.weights)},)"
            )

    @classmethod
    def from_loader(cls, loader: Iterable[Any]) -> "Rows":
        """All batches of a data loader in order, a ragged last one included.

        A batch is `(x, y)`, `(x, y, weights)`, or a mapping with the targets under `labels`
        (`label`, `targets`, `target`, `y`) and, if there are any, the rows' weights under
        `weights`; what is left of it goes to the model by name. Arrays and lists of numbers
        become tensors. Raises `ModelError` for anything else, saying what was seen.
        """
        batches = [rows for rows in map(batch_rows, loader) if len(rows)]
        if not batches:
            raise ModelError("the data loader is empty; at least one (x, y) batch is needed")
        rows = cls.joined(batches)
        if rows.weights is not None:
            checked_weights(rows.weights)
        return rows

    @classmethod
    def joined(cls, parts: "list[Rows]") -> "Rows":
        """One after the other. Raises `ModelError` where their structures or shapes differ."""
        known = [part.weights for part in parts if part.weights is not None]
        if known and len(known) < len(parts):
            raise ModelError("some batches of the loader have weights of rows and some have none")
        return Rows(
            _concatenated([part.x for part in parts], "inputs"),
            _concatenated([part.y for part in parts], "targets"),
            torch.cat(known) if known else None,
        )

    def __len__(self) -> int:
        return len(tensors_of((self.y, self.x))[0])

    def __getitem__(self, index: slice | Tensor) -> "Rows":
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self
        return self.map(lambda leaf: leaf[index])

    def map(self, function: Any) -> "Rows":
        """The rows with `function` of each of their tensors, weights too."""
        weights = None if self.weights is None else function(self.weights)
        return Rows(map_tensors(function, self.x), map_tensors(function, self.y), weights)

    @property
    def weight_sum(self) -> float:
        r"""$W = \sum_i w_i$, by which means are divided; n without weights."""
        return float(len(self)) if self.weights is None else float(self.weights.double().sum())

    @property
    def shares(self) -> Float[Tensor, " n"]:
        """What each row's loss counts in the mean, $w_i / W$, float64; 1/n without weights."""
        if self.weights is None:
            return torch.full((len(self),), 1 / len(self), dtype=torch.float64)
        return self.weights.double().cpu() / self.weight_sum

    def weighted(self, values: Num[Tensor, "n ..."]) -> Num[Tensor, "n ..."]:
        """Values of the rows, each times its row's weight."""
        if self.weights is None:
            return values
        weights = self.weights.to(values.dtype)
        return values * weights.reshape(-1, *[1] * (values.ndim - 1))

    @property
    def ranks(self) -> Int[Tensor, " n"] | None:
        """Which of the draws of a seed falls to each row; None where that of its position does."""
        return None

    @property
    def unweighted(self) -> "Rows":
        """The same rows, each counting once: as test rows, whose losses are their own."""
        return self if self.weights is None else Rows(self.x, self.y)

    def batches(self, size: int) -> Iterator["Rows"]:
        """Consecutive slices of at most `size` rows."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """Positions of the rows in a random order."""
        return torch.randperm(len(self), generator=generator)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Rows":
        """On another device, or with floating tensors (labels stay integers) in another dtype."""

        def move(leaf: Tensor) -> Tensor:
            return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

        return self.map(move)


def checked_weights(weights: Tensor) -> Float[Tensor, " n"]:
    """Weights of rows, if they can be such.

    Raises `ModelError` for a weight that is negative or not finite, naming its row, for weights
    that are all zero, and for whole numbers, which are more often positions of the rows.
    """
    if not weights.is_floating_point():
        raise ModelError(
            f"the weights of rows are {described(weights)}; weights are floating-point numbers "
            "(write weights.double()), and a batch's third part is nothing else: drop positions "
            "or ids of rows from it"
        )
    wrong = (~(weights >= 0) | weights.isinf()).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise ModelError(
            f"row {row} has weight {weights[row].tolist()}; weights of rows are finite and not "
            "negative",
            row=row,
        )
    if not weights.sum() > 0:
        raise ModelError("the weights of all rows are zero; at least one row has to count")
    return weights


# Batches of loaders ----------------------------------------------------------------------------


def batch_rows(batch: Any) -> Rows:
    """A batch of a loader as rows; see `Rows.from_loader`."""
    if isinstance(batch, Rows):
        return batch
    if isinstance(batch, Mapping):
        return _of_mapping(batch)
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise _not_a_batch(batch)
    x, y, *weights = (_tensors(part, batch) for part in batch)
    return Rows(x, y, _row_weights(weights[0], batch) if weights else None)


def _of_mapping(batch: Mapping[str, Any]) -> Rows:
    target = next((name for name in _TARGETS if name in batch), None)
    if target is None:
        raise _not_a_batch(batch)
    weight = next((name for name in _WEIGHTS if name in batch), None)
    x = {name: value for name, value in batch.items() if name not in (target, weight)}
    if not x:
        raise _not_a_batch(batch)
    weights = None if weight is None else _row_weights(_tensors(batch[weight], batch), batch)
    return Rows(_tensors(x, batch), _tensors(batch[target], batch), weights)


def _not_a_batch(batch: Any) -> ModelError:
    return ModelError(
        f"a batch of the data loader is a {described(batch)}; wanted (x, y), (x, y, weights of "
        "rows) or a mapping with 'labels': collate it so, for example "
        "DataLoader(data, collate_fn=lambda rows: (x, y))"
    )


def _tensors(value: Any, batch: Any) -> Any:
    """Mappings as dicts, sequences as tuples, arrays and lists of numbers as tensors."""
    if isinstance(value, Tensor):
        return _plain(value)
    if np.ma.is_masked(value):
        raise ModelError(
            f"a batch of the data loader holds a masked {described(value)}, whose gaps would "
            "become what stands below them; fill them (filled(0)) and pass the mask along"
        )
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.itemsize <= 8:
        return torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    if isinstance(value, Mapping):
        return {name: _tensors(part, batch) for name, part in value.items()}
    if isinstance(value, tuple | list) and value:
        return _sequence(value, batch)
    raise ModelError(
        f"a batch of the data loader holds a {described(value)} ({described(batch)}); the model "
        "and the loss are given tensors only: drop it from the batch, or encode it as numbers"
    )


def _plain(value: Tensor) -> Tensor:
    """The tensor by itself, where it has a number at each place of its shape."""
    kinds = {
        "nested": value.is_nested,
        "quantised": value.is_quantized,
        "meta": value.device.type == "meta",
        str(value.layout).removeprefix("torch."): value.layout is not torch.strided,
    }
    if kind := next((kind for kind, is_so in kinds.items() if is_so), None):
        raise ModelError(
            f"a batch of the data loader holds a {kind} tensor ({value.dtype}); rows are dense "
            "tensors of numbers: to_dense(), dequantize(), or pad them and pass a mask along"
        )
    return value.detach()


def _sequence(value: tuple[Any, ...] | list[Any], batch: Any) -> Any:
    if all(hasattr(part, "dtype") and part.ndim == 0 for part in value):
        value = [part.item() for part in value]
    if all(isinstance(part, bool | int | float) for part in value):
        is_decimal = any(isinstance(part, float) for part in value)
        return torch.tensor(value, dtype=torch.float64 if is_decimal else None)
    return tuple(_tensors(part, batch) for part in value)


def _row_weights(value: Any, batch: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise _not_a_batch(batch)
    return value.squeeze(1) if value.ndim == 2 and value.shape[1] == 1 else value


def _concatenated(parts: list[Any], what: str) -> Any:
    """One after the other; of whole numbers and float32, `torch.cat` would round the former."""
    kinds = [str(map_tensors(lambda leaf: (leaf.shape[1:], leaf.dtype), part)) for part in parts]
    for part, kind in zip(parts, kinds, strict=True):
        if kind != kinds[0]:
            raise ModelError(
                f"{what} differ from batch to batch: {described(parts[0])} and {described(part)}; "
                "all rows need one structure, one dtype and one shape: pad them to the longest row "
                "of the data, and pass a mask or lengths as a further input"
            )
    leaves = zip(*map(tensors_of, parts), strict=True)
    return with_tensors(parts[0], [torch.cat(each) for each in leaves])

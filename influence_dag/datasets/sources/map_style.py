"""Rows of a map-style data set, read block by block, in this process or in workers."""

import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_dag.datasets.sources.base import INPUT, demand, stacked
from influence_dag.datasets.sources.numbers import of_one_type
from influence_dag.errors import DataError
from influence_dag.study.users_code import named_by
from influence_dag.texts import a_kind

TARGETS = ("y", "labels", "label", "targets", "target")  # where the settings name none
WEIGHTS = ("weights", "weight", "sample_weight")
_AS_ARRAYS = (
    "hand over what numpy takes (.detach() of a tensor with a gradient, .float() of bfloat16, "
    ".to_dense() of a sparse one, .cpu())"
)


@dataclass(frozen=True)
class Form:
    """How the rows of `name` are: `sizes` of an item; of one that is a mapping names of its parts.

    `target` and `weight` are None where the settings name none. `like` has the shape of each part
    of row 0, by its name; None before it is known.
    """

    name: str
    sizes: tuple[int, ...]
    target: str | None = None
    weight: str | None = None
    like: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows: inputs by name, targets and weights (1 where there are none)."""

    inputs: dict[str, np.ndarray]
    target: np.ndarray
    weights: np.ndarray


def read_rows(dataset: Any, positions: Sequence[int], form: Form) -> Block:
    """Rows by position. Raises `DataError` naming the first that is not as row 0 is."""
    rows = [_row(dataset, position, form) for position in positions]
    like = form.like or {key: value.shape for key, value in rows[0].items()}
    for position, row in zip(positions, rows, strict=True):
        _check_names(form.name, position, row, like)
    parts = {}
    for key, shape in like.items():
        part, name = [row[key] for row in rows], key.removeprefix("x.")
        parts[key] = stacked(form.name, name, part, positions, shape)
    target, weights = parts.pop("y"), parts.pop("weight")
    return Block({key.removeprefix("x."): part for key, part in parts.items()}, target, weights)


def _row(dataset: Any, position: int, form: Form) -> dict[str, np.ndarray]:
    """A row's parts: `x.<name>` for each input, `y`, `weight`."""
    wanted = "every row has to be readable, in any order"
    with named_by(f"{form.name}: row {position}", wanted, DataError):
        item = dataset[position]
    item = in_parts(item, form, position)
    size = len(item) if isinstance(item, tuple | list) else 0
    if size not in form.sizes:
        pair = "a pair (x, y)" if 2 in form.sizes else "(x, y, weight), as data.weight is set"
        seen = f"{a_kind(item)}{f' of {size}' if size else ''}"
        cure = "; set data.weight if the third part is the row's weight" if size == 3 else ""
        if isinstance(item, Mapping):
            cure = f"; name its target, of {', '.join(map(str, item))}, in data.target"
        raise DataError(f"{form.name}: row {position} is {seen}; expected {pair}{cure}")
    x, y, weight = item if size == 3 else (*item, 1.0)
    if isinstance(x, tuple | list):
        raise DataError(
            f"{form.name}: row {position} has a {type(x).__name__} as x; expected one tensor, or a "
            "dict whose names are the arguments of the module's forward"
        )
    if isinstance(y, Mapping):
        raise DataError(
            f"{form.name}: row {position} has a {type(y).__name__} as target; expected numbers of "
            "one shape, or a word: several targets of a row stand in one array, in a fixed order"
        )
    named = x if isinstance(x, Mapping) else {INPUT: x}
    if any(np.ma.is_masked(value) for value in (*named.values(), y, weight)):
        raise DataError(
            f"{form.name}: row {position} holds a masked array, whose gaps would become what "
            "stands below them; fill them (filled(0)), and let the mask be a further input"
        )
    with named_by(f"{form.name}: row {position} as arrays", _AS_ARRAYS, DataError):
        arrays = {f"x.{key}": np.asarray(value) for key, value in named.items()}
        return arrays | {"y": np.asarray(y), "weight": np.asarray(weight)}


def in_parts(item: Any, form: Form, position: int) -> Any:
    """A row that is one mapping as `(inputs, target)` or `(inputs, target, weight)`.

    The parts are under the names that the settings give; where they give none, the target is under
    `y` (`labels`, `label`, `targets`, `target`) and the weight under `weights` (`weight`,
    `sample_weight`).
    """
    if not isinstance(item, Mapping):
        return item
    inputs, where = dict(item), f"{form.name}: row {position}"
    target = _name_of("target", form.target, TARGETS, inputs, where)
    if form.weight is not None and 2 in form.sizes:  # testing rows may have one, which is not used
        weight = form.weight if form.weight in inputs else None
    else:
        weight = _name_of("weight", form.weight, WEIGHTS, inputs, where)
    if target is None:
        return item
    parts = [inputs.pop(name) for name in (target, weight) if name is not None]
    return (next(iter(inputs.values())) if len(inputs) == 1 else inputs, *parts)


def _name_of(
    role: str, given: str | None, usual: Sequence[str], item: Mapping[Any, Any], where: str
) -> str | None:
    """The name in a row of what has this role. Raises `DataError` where one is given and lacks."""
    if given is None:
        return next((name for name in usual if name in item), None)
    demand(where, [str(name) for name in item], given, role, f"data.{role}")
    return given


def _check_names(
    name: str, position: int, row: Mapping[str, np.ndarray], like: Mapping[str, tuple[int, ...]]
) -> None:
    if list(row) != list(like):
        seen, wanted = (
            [key.removeprefix("x.") for key in each if key.startswith("x.")] for each in (row, like)
        )
        raise DataError(f"{name}: row {position} has inputs {seen}, row 0 has {wanted}")


def joined(name: str, blocks: Sequence[Block]) -> Block:
    """The rows of several blocks of the data set `name`, in their order."""
    if len(blocks) == 1:
        return blocks[0]
    starts = np.cumsum([0, *(len(each.target) for each in blocks)])

    def place(block: int, row: int) -> str:
        return f"{name}: row {int(starts[block]) + row} of those that were read"

    def together(key: str, parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(of_one_type(parts, name=key, row_name=place))

    return Block(
        {key: together(key, [each.inputs[key] for each in blocks]) for key in blocks[0].inputs},
        together("y", [each.target for each in blocks]),
        together("weight", [each.weights for each in blocks]),
    )


# In other processes ----------------------------------------------------------------------------


class Workers:
    """Processes that each have the data set and read a part of what is asked for.

    They end with `close`, or with whoever holds them.
    """

    def __init__(self, dataset: Any, count: int, seed: int):
        self._count = count
        self._pool = ProcessPoolExecutor(count, initializer=_begin, initargs=(dataset, seed))

    def read(self, positions: np.ndarray, form: Form) -> Block:
        parts = np.array_split(positions, min(self._count, len(positions)))
        pending = [self._pool.submit(_read, part.tolist(), form) for part in parts]
        try:
            return joined(form.name, [future.result() for future in pending])
        except BrokenProcessPool as error:
            raise DataError(
                f"{form.name}: a process that was to read rows has ended by itself (out of memory? "
                f"a data set that cannot be pickled?); data.workers is {self._count}: fewer take "
                "less memory, 0 reads in this process"
            ) from error

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


_dataset: Any = None  # of a worker


def _begin(dataset: Any, seed: int) -> None:
    """A worker's start: the data set, random numbers, one thread; interrupts are the parent's."""
    import torch

    from influence_dag.objective.seeding import seed_all

    global _dataset
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    seed_all(seed)
    _dataset = dataset


def _read(positions: list[int], form: Form) -> Block:
    return read_rows(_dataset, positions, form)

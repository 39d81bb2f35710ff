"""What both splits of a study have to agree on."""

from dataclasses import replace
from functools import partial
from typing import Any

from influence_dag.datasets.sources.joining import check_axes
from influence_dag.datasets.sources.numbers import decimal
from influence_dag.datasets.sources.on_demand import RowsOnDemand, Values, seen
from influence_dag.datasets.sources.words import TRUTH
from influence_dag.datasets.split_rows import SplitRows
from influence_dag.errors import DataError
from influence_dag.texts import listed

SHOWN = 5  # how many columns an error lists


def check_alike(train: SplitRows, test: SplitRows) -> None:
    """Raise `DataError` unless both splits have the same columns, inputs, shapes and target."""
    pair = f"{test.source} and {train.source}"
    _check_columns(train, test, pair)
    check_axes(pair, test, train)
    if list(train.x) != list(test.x):
        raise DataError(f"{pair} disagree on the inputs: {list(test.x)} and {list(train.x)}")
    for name in train.x:
        seen, wanted = test.x[name].shape[1:], train.x[name].shape[1:]
        if seen != wanted:
            raise DataError(f"{pair} disagree on the shape of {name}: {seen} and {wanted} a row")
    if train.classes is None and test.classes not in (None, TRUTH):
        raise DataError(
            f"{pair} disagree on the target: the training rows have numbers, the test rows words "
            f"({', '.join(map(repr, test.classes[:SHOWN]))})"
        )
    _check_whole_labels(train, test, pair)
    if set(train.kept) != set(test.kept):
        differing = sorted(set(train.kept) ^ set(test.kept))
        raise DataError(
            f"{pair} disagree on the columns that travel along: only one of them has the text "
            f"{differing[:SHOWN]}; data.keep can name those to keep"
        )
    if train.y.shape[1:] != test.y.shape[1:]:
        raise DataError(
            f"{pair} disagree on the target: {test.y.dtype} of shape {test.y.shape[1:]} and "
            f"{train.y.dtype} of shape {train.y.shape[1:]} a row"
        )


def _check_whole_labels(train: SplitRows, test: SplitRows, pair: str) -> None:
    """A `DataError` where a 1 is the class named 1 in one split, the second class in the other."""
    if None in (train.counted, test.counted) or train.counted == test.counted:
        return
    named, other = (test, train) if train.counted else (train, test)
    assert train.classes is not None
    raise DataError(
        f"{pair} disagree on the target: in {named.source} whole numbers are names of data.classes "
        f"({listed(train.classes)}), in {other.source} none of them is one, and they would count "
        "the model's outputs; write the labels of both in one way, or list all their names"
    )


def of_one_type(split: SplitRows, other: SplitRows) -> SplitRows:
    """The split, its whole numbers as decimals where the other split has decimals.

    2 and 2.0 are the same target: what one file happens to hold does not decide a type.
    """

    def place(values: Values, row: int) -> str:
        if isinstance(values, RowsOnDemand):  # `row` is one of a block
            return split.source
        return f"{split.source}: id {split.ids[row]!r}"

    def alike(values: Values, others: Values, name: str) -> Any:
        if values.dtype.kind == "f" or others.dtype.kind != "f":
            return values
        return seen(values, partial(decimal, name=name, row_name=partial(place, values)))

    x = {name: alike(values, other.x[name], name) for name, values in split.x.items()}
    return replace(split, x=x, y=alike(split.y, other.y, "target"))


def _check_columns(train: SplitRows, test: SplitRows, pair: str) -> None:
    seen, wanted = test.feature_names or (), train.feature_names or ()
    if seen == wanted:
        return
    missing = [name for name in wanted if name not in seen]
    extra = [name for name in seen if name not in wanted]
    if not missing and not extra:
        raise DataError(
            f"{pair} have the same feature columns in different orders; "
            "fix the order with data.features.columns, or write arrays in one order"
        )
    alone = ", ".join(
        f"only {split.source} has {listed(names)}"
        for split, names in ((train, missing), (test, extra))
        if names
    )
    raise DataError(
        f"{pair} disagree on the feature columns: {alone}; data.features.columns can name those to "
        "use"
    )

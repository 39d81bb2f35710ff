"""Stored perturbation influences as one labelled array: whole, reduced, or the strongest pairs."""

from collections.abc import Iterable
from typing import Any

import xarray as xr

from influence_dag.errors import StoreError
from influence_dag.stages.naming import LONGEST_PAIRS, PERTURBATIONS
from influence_dag.store import Version
from influence_dag.texts import did_you_mean


def variable_of(names: Iterable[str], input: str | None, asked: str) -> str:
    """The variable of an input of the model, which has to be named where there are several."""
    known = [name for name in names if name.startswith(PERTURBATIONS)]
    if input is None and len(known) == 1:
        return known[0]
    if (name := f"{PERTURBATIONS}_{input}") in known:
        return name
    inputs = [name.removeprefix(f"{PERTURBATIONS}_") for name in known if name != PERTURBATIONS]
    if not inputs:
        raise StoreError(
            f"{asked}: the model has one input, without a name; leave out input={input!r}"
        )
    said = "" if input is None else f"none named {input!r}{did_you_mean(input, inputs)}, but "
    raise StoreError(
        f"{asked}: the model has {said}the inputs {', '.join(inputs)}; name one: "
        f"input={inputs[0]!r}"
    )


def of_input(dataset: xr.Dataset, input: str | None, asked: str) -> xr.DataArray:
    """The array of one input, as `with_rows` has it."""
    return with_rows(dataset, variable_of(map(str, dataset.data_vars), input, asked))


def with_rows(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """An array; of the longest pairs with the training rows that they are of."""
    array = dataset[name]
    if LONGEST_PAIRS not in dataset or "rank" not in array.dims:
        return array
    of_rows = [name for name, each in dataset.coords.items() if each.dims == ("train",)]
    places = dataset[LONGEST_PAIRS].reset_coords(drop=True).compute()
    chosen = dataset.coords.to_dataset()[of_rows].isel(train=places)
    return array.assign_coords(chosen.coords)


def example(version: Version, method: str) -> str:
    """What to write to see some of it."""
    names = [name for name in version.variables if name.startswith(PERTURBATIONS)]
    inner = names[0].removeprefix(f"{PERTURBATIONS}_")
    told: Any = "" if len(names) == 1 else f', input="{inner}"'
    return f'study.perturbation("{method}"{told})'

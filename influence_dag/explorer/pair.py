"""One pair of rows: what each feature of the training row does to the test row's loss."""

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_dag.explorer.content import Contents, is_picture
from influence_dag.explorer.numbers import number, numbers
from influence_dag.explorer.opened import View
from influence_dag.explorer.shown import at, differences, project, row
from influence_dag.stages import dampings, naming

KEPT = 64  # maps that were computed on demand
BARS = 40  # columns of a table, the strongest


class Maps:
    """Feature maps: stored ones, and those that were computed because somebody asked."""

    def __init__(self, contents: Contents):
        self.contents = contents
        self._computed: OrderedDict[tuple, dict[str, NDArray]] = OrderedDict()
        self._lazy: dict[tuple, dict[str, Any]] = {}
        self._one_at_a_time = threading.Lock()

    def of(self, view: View, test: str, train: str) -> tuple[dict[str, NDArray], str]:
        """Maps by input, and where they are from; none where none is stored or computed yet."""
        if (computed := self._computed.get(_key(view, test, train))) is not None:
            return computed, "computed"
        stored = self._stored(view, test, train)
        return stored, "stored" if stored else "none"

    def _stored(self, view: View, test: str, train: str) -> dict[str, NDArray]:
        base = _made_from(view.influences)
        for kept in view.opened.kept(naming.perturbation(view.method)):
            if _made_from(kept) != base or not naming.keeps_all(kept.attrs):
                continue
            places = [_slot(view, kept, *each) for each in (("test", test), ("train", train))]
            if None in places:
                continue
            return {_input(view, name): _read(view, kept, name, places) for name in _maps(kept)}
        return {}

    def compute(self, view: View, test: str, train: str) -> None:
        """Have the map computed: this imports the study's code (see docs/security.md).

        Where a row is tokens, which nothing can be differentiated by, it is the share of each.
        """
        view.check_current()
        with self._one_at_a_time:
            at_ = view.method, view.influences.data_version
            if at_ not in self._lazy:
                self._lazy.clear()
                self._lazy[at_] = _lazy(view)
            of_damping = {"damping": view.damping}
            place = {"test": view.test.position(test), "train": view.train.position(train)}
            sliced = {
                _input(view, name): array.isel(of_damping | place, missing_dims="ignore").load()
                for name, array in self._lazy[at_].items()
            }
        values = {name: each.values.astype(np.float64) for name, each in sliced.items()}
        self._computed[_key(view, test, train)] = values
        while len(self._computed) > KEPT:
            self._computed.popitem(last=False)


def _lazy(view: View) -> dict[str, Any]:
    """What is computed when it is sliced, by the name that its array would have."""
    results = view.opened.results
    if _are_tokens(view):
        return {naming.PERTURBATIONS: results.position_influences(view.method)}
    return results.lazy_perturbations(view.method)


def _key(view: View, test: str, train: str) -> tuple:
    return view.method, view.influences.data_version, view.damping, test, train


def _are_tokens(view: View) -> bool:
    dataset = view.opened.version("dataset")
    inputs = dataset.variables.get("train_x")
    return inputs is not None and inputs.dtype.startswith("int")


def _made_from(version: Any) -> list[Any]:
    """What maps have to share with influences to be derivatives of them."""
    return [version.attrs.get(name) for name in (*naming.SYSTEM, "measurement")]


def _maps(version: Any) -> list[str]:
    return [name for name in version.variables if name.startswith(naming.PERTURBATIONS)]


def _input(view: View, name: str) -> str:
    """The input of the model that a stored variable is about."""
    if name != naming.PERTURBATIONS:
        return name.removeprefix(f"{naming.PERTURBATIONS}_")
    return str(view.opened.version("dataset").attrs["inputs"][0])


def _slot(view: View, version: Any, split: Any, name: str) -> int | None:
    """Where a row is in another artifact, if it is there with the same content."""
    here = view.split(split)
    return view.opened.rows(version, split).slot(name, here.keys[here.position(name)])


def _read(view: View, version: Any, name: str, places: list) -> NDArray:
    region = (slice(place, place + 1) for place in places)
    return dampings.at(version, name, view.damping, *region)[0, 0].astype(np.float64)


def pair(
    view: View, contents: Contents, maps: Maps, test: str, train: str, marks: dict[str, Any]
) -> dict[str, Any]:
    """Both rows, the entry, and the map over the training row's features."""
    place = view.test.position(test), view.train.position(train)
    shown, source = maps.of(view, test, train)
    influence = float(view.of_test(place[0])[place[1]])
    sides = ((view.train, place[1]), (view.test, place[0]))
    return {
        "test": row(view, contents, "test", place[0], marks),
        "train": row(view, contents, "train", place[1], marks),
        "at": at(view),
        "influence": number(influence),
        "change": None if view.no_change else number(influence / view.n),
        "no_change": view.no_change,
        "n": view.n,
        "source": source,
        "maps": [_shown(view, contents, name, values, place[1]) for name, values in shown.items()],
        "differences": differences(contents, *sides),
        "project": project(view.opened),
    }


def _shown(
    view: View, contents: Contents, name: str, values: NDArray, train: int
) -> dict[str, Any]:
    told = {"name": name, "largest": number(np.nanmax(np.abs(values), initial=0.0))}
    if is_picture(values.shape):
        return {"kind": "picture", "shape": list(values.shape), **told}
    if values.ndim != 1:
        return {"kind": "array", "shape": list(values.shape), **told}
    content = contents.values(view.train, train, name)
    if content and content[1].dtype.kind in "iu" and content[1].shape == values.shape:
        tokens = content[1].tolist()
        return {"kind": "tokens", "tokens": tokens, "values": numbers(values), **told}
    names = (content[0].names(name) if content else None) or []
    if len(names) != len(values):
        names = [f"{name}[{k}]" for k in range(len(values))]
    order = np.argsort(-np.abs(values), kind="stable")[:BARS]
    bars = [names[k] for k in order.tolist()]
    return {"kind": "bars", "columns": bars, "values": numbers(values[order]), **told}

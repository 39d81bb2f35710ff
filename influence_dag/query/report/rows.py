"""The rows that the page shows: strongest pairs with their content, and suspects."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from influence_dag.datasets.slots import shown_label
from influence_dag.errors import StoreError
from influence_dag.query import plots
from influence_dag.query.contents import Content, Contents
from influence_dag.stages import naming
from influence_dag.texts import literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from influence_dag.query.results import StudyResults

TESTS, EACH, SUSPECTS = 6, 4, 12
NUMBERS = 12  # features of a row in a table


@dataclass(frozen=True)
class Cell:
    """One number or text of a row; whether it `differs` from the test row's.

    A number does by more than the standard deviation of its column, a text by any letter.
    """

    text: str
    differs: bool = False


@dataclass(frozen=True)
class Line:
    """A row of the training data beside a test row."""

    name: str
    label: str
    influence: str
    helps: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Pairs:
    """One test row and the training rows behind its loss."""

    test: Line
    rows: tuple[Line, ...]


@dataclass(frozen=True)
class Suspect:
    """A row on which the model leans for its own sake."""

    name: str
    label: str
    score: str
    share: float
    image: "Figure | None"


class ShownRows:
    """Test rows with what is behind them, and training rows to look at, by one method."""

    def __init__(self, results: "StudyResults", method: str):
        self.results, self.method, self.contents = results, method, Contents(results)

    @cached_property
    def tests(self) -> list[Any]:
        """The test rows with the strongest influences, strongest first."""
        summary = self.results.open(naming.summary(self.method))
        found = [abs(summary[f"{end}_influence"]).max("position") for end in ("top", "bottom")]
        strength = np.maximum(*(_last(each).values for each in found))
        order = np.argsort(-np.nan_to_num(strength), kind="stable")[:TESTS]
        return summary["test"].values[order].tolist()

    @cached_property
    def is_of_images(self) -> bool:
        row = self.contents.of("test", self.tests[:1])
        return bool(row) and row[0].image is not None

    @cached_property
    def grid(self) -> "Figure":
        """Test images with what helps and harms them."""
        return self.results.plot.strongest(self.tests, EACH, method=self.method)

    @cached_property
    def pairs(self) -> list[Pairs]:
        """The same of rows that are no images: a table each."""
        return [self._pair(test) for test in self.tests]

    @cached_property
    def columns(self) -> list[str]:
        """Names of what is shown of each row of a table."""
        rows = self.contents.of("test", self.tests[:1])
        return [literal(name) for name in _shown(rows[0])] if rows else []

    def _pair(self, test: Any) -> Pairs:
        row = self.results.influences(test, method=self.method).load()
        mine = self.contents.of("test", [test])[0]
        helps, harms = row.idag.top_k(EACH), row.idag.bottom_k(EACH)
        lines = [
            self._line(each["train"].item(), f"{float(each):+.3g}", array is helps, mine)
            for array in (helps, harms)
            for each in array
        ]
        shown = tuple(Cell(text) for text in _shown(mine).values())
        return Pairs(Line(literal(test), _label(mine), "", True, shown), tuple(lines))

    def _line(self, name: Any, influence: str, helps: bool, test: Content) -> Line:
        content = self.contents.of("train", [name])[0]
        own = _shown(content)
        cells = tuple(
            Cell(own.get(column, ""), self._differs(content, test, column))
            for column in _shown(test)
        )
        return Line(literal(name), _label(content), influence, helps, cells)

    def _differs(self, one: Content, other: Content, column: str) -> bool:
        if column in other.kept:
            return one.kept.get(column) != other.kept[column]
        pair = [content.features.get(column, np.nan) for content in (one, other)]
        return bool(abs(pair[0] - pair[1]) > self.contents.spreads.get(column, np.inf))

    @cached_property
    def suspects(self) -> list[Suspect]:
        """The training rows with the largest stored self-influence."""
        try:
            scores = self.results.self_influence()
        except StoreError:
            return []
        order = np.argsort(-np.nan_to_num(scores.values, nan=-np.inf), kind="stable")[:SUSPECTS]
        largest = float(scores.values[order[0]]) or 1.0
        return [self._suspect(scores[int(k)], largest) for k in order]

    def _suspect(self, score: xr.DataArray, largest: float) -> Suspect:
        content = self.contents.of("train", [score["train"].item()])[0]
        image = None if content.image is None else plots.thumbnail(content.image)
        share = max(0.0, float(score) / largest)
        return Suspect(literal(content.id), _label(content), f"{float(score):.3g}", share, image)


def _last(array: xr.DataArray) -> xr.DataArray:
    return array.isel(damping=-1, missing_dims="ignore")


def _label(content: Content) -> str:
    return "" if content.label is None else literal(shown_label(content.label))


def _shown(content: Content) -> dict[str, str]:
    """Kept columns first, then the first features, as texts."""
    kept = {name: literal(value, 200) for name, value in content.kept.items()}
    some = list(content.features.items())[: max(0, NUMBERS - len(kept))]
    return kept | {name: f"{value:.3g}" for name, value in some}

"""The rows that the page shows: strongest pairs with their content, and suspects."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from influence_dag.datasets.neighbours import cost, has_points
from influence_dag.datasets.slots import shown_label
from influence_dag.errors import StoreError
from influence_dag.query import plots
from influence_dag.query.accessor import strongest
from influence_dag.query.contents import Content, Contents
from influence_dag.query.rows import at_damping
from influence_dag.stages import naming
from influence_dag.suspicion import NEIGHBOURS
from influence_dag.texts import literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from influence_dag.query.results import StudyResults

TESTS, EACH, SUSPECTS = 6, 4, 12
MOST_DISTANCES = 5e10  # multiplications: seconds
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
    """A row whose label its neighbours and the model doubt; `share` is how much neighbours do."""

    name: str
    label: str
    predicted: str
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
        ends = [abs(summary[f"{end}_influence"]).max("position") for end in ("top", "bottom")]
        strength = np.maximum(*(at_damping(each, None).values for each in ends))
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
        helps, harms = strongest(row, EACH)
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
        """The most suspicious training rows, by what is stored; none without self-influence."""
        try:
            ranked = self.results.suspects(SUSPECTS, neighbours=self._neighbours)
        except StoreError:
            return []
        return [self._suspect(ranked.isel(train=k)) for k in range(ranked.sizes["train"])]

    @property
    def _neighbours(self) -> int:
        """None where all distances would take longer than the rest of the page."""
        dataset = self.results.store.version("dataset")
        few = has_points(dataset) and cost(dataset) <= MOST_DISTANCES
        return NEIGHBOURS if few else 0

    def _suspect(self, row: xr.Dataset) -> Suspect:
        content = self.contents.of("train", [row["train"].item()])[0]
        image = None if content.image is None else plots.thumbnail(content.image)
        own = f"self-influence {float(row.self_influence):.3g}, loss {float(row.loss):.3g}"
        of_classes = "knn_shapley" in row  # else it is a distance
        share = float(row.neighbour_disagreement) if of_classes else 0.0
        predicted = shown_label(row.predicted.item()) if "predicted" in row else ""
        names = literal(content.id), _label(content), literal(predicted)
        return Suspect(*names, own, share, image)


def _label(content: Content) -> str:
    return "" if content.label is None else literal(shown_label(content.label))


def _shown(content: Content) -> dict[str, str]:
    """Kept columns first, then the first features, as texts."""
    kept = {name: literal(value, 200) for name, value in content.kept.items()}
    some = list(content.features.items())[: max(0, NUMBERS - len(kept))]
    return kept | {name: f"{value:.3g}" for name, value in some}

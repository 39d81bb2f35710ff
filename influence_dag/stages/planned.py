"""What a refresh would publish, as far as it is known before anything is computed."""

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from influence_dag.store import Layout, Variable


class NotComputedError(Exception):
    """A plan asked for numbers of an artifact that is yet to be computed."""

    def __init__(self, artifact: str):
        super().__init__(f"{artifact} is yet to be computed")
        self.artifact = artifact


@dataclass(frozen=True)
class PlannedVersion:
    """Stands for the next version of an artifact while planning: labels and attributes.

    Without a layout nothing is known of it. Whoever asks for more gets a `NotComputedError`: its
    own plan has to wait.
    """

    artifact: str
    layout: Layout | None = None

    @property
    def attrs(self) -> dict[str, Any]:
        return self._known.attrs

    @property
    def variables(self) -> dict[str, Variable]:
        return {variable.name: variable for variable in self._known.variables}

    @property
    def parts(self) -> dict[str, str]:
        return self._known.parts

    @property
    def coordinates(self) -> list[str]:
        return [each.name for each in self._known.coordinates]

    def coordinate(self, name: str) -> np.ndarray:
        return {each.name: each.values for each in self._known.coordinates}[name]

    @property
    def _known(self) -> Layout:
        return self.layout or self._unknown()

    def _unknown(self) -> NoReturn:
        raise NotComputedError(self.artifact)

    def __getattr__(self, name: str) -> NoReturn:  # data_version, array, path and the like
        raise NotComputedError(self.artifact)

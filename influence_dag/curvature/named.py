"""Curvatures by the names that settings have for them."""

from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from influence_dag.study.curvatures import CURVATURE_KINDS

if TYPE_CHECKING:
    from influence_dag.curvature.batched import BatchedCurvature


class _Operators(Mapping[str, "type[BatchedCurvature]"]):
    def __getitem__(self, name: str) -> "type[BatchedCurvature]":
        return resolve_name(CURVATURE_KINDS[name].operator)

    def __iter__(self) -> Iterator[str]:
        return iter(CURVATURE_KINDS)

    def __len__(self) -> int:
        return len(CURVATURE_KINDS)


CURVATURES = _Operators()

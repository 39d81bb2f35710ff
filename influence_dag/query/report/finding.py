"""One measured thing, with a sentence about its number."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["good", "warn", "bad"]
SIZES = (0.8, 1.25)  # slopes of values that are right to a fifth
RANKS, VALUES = 0.5, 0.9  # correlations from which ranks, and values, can be trusted


@dataclass(frozen=True)
class Finding:
    """One measured thing: `number` is what the sentence `says`, `limit` what it is held against."""

    name: str
    number: float
    limit: float | None
    outcome: Outcome
    says: str
    interval: tuple[float, float] | None = None

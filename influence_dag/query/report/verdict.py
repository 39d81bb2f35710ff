"""Whether to trust these ranks, these values or neither, in words; each reason has its number."""

from collections.abc import Sequence
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


Trust = Literal["values", "ranks", "neither"]
HEADLINES: dict[Trust, str] = {
    "values": "Trust these values",
    "ranks": "Trust these ranks, not these values",
    "neither": "Trust neither these ranks nor these values",
}
UNMEASURED = "Trust these ranks with care, and not these values"
NO_REFITS = (
    "nothing was refitted, and so nothing measured against the truth: ask for validation: "
    "{leave_one_out: {rows: 50}}"
)


@dataclass(frozen=True)
class Verdict:
    """What may be trusted, whether refits stand behind it, and why."""

    trust: Trust
    is_measured: bool
    headline: str
    reasons: tuple[str, ...]

    @property
    def text(self) -> str:
        """The headline and its reasons, as one sentence."""
        return f"{self.headline}, because {'; '.join(self.reasons)}."


def verdict(findings: Sequence[Finding]) -> Verdict:
    """What is broken decides first, then refits of single rows, then of subsets, then what is left.

    Values need a correlation of 0.9 and sizes right to a fifth; ranks a correlation of 0.5, by
    rows or by subsets. It is the worse end of the interval that counts.
    """
    named = {each.name: each for each in findings}
    broken = [each for each in findings if each.outcome == "bad"]
    refits, sizes, subsets = map(named.get, ("refits", "sizes", "subsets"))
    measured = refits is not None or subsets is not None
    if broken:
        return _verdict("neither", measured, broken)
    if refits is not None and sizes is not None:
        trust = _by_refits(refits, sizes)
        return _verdict(trust, measured, [refits, sizes, *_doubts(findings, subsets)])
    if subsets is not None:
        trust = "ranks" if _surely(subsets) else "neither"
        return _verdict(trust, measured, [subsets, *_doubts(findings)])
    doubts = _doubts(findings) or [each for each in findings if each.name == "minimum"]
    says = [NO_REFITS, *(each.says for each in doubts)]
    return Verdict("ranks", False, UNMEASURED, tuple(says))


def _by_refits(refits: Finding, sizes: Finding) -> Trust:
    low, high = sizes.interval or (sizes.number, sizes.number)
    if _surely(refits, VALUES) and SIZES[0] <= low and high <= SIZES[1]:
        return "values"
    return "ranks" if _surely(refits) else "neither"


def _surely(finding: Finding, least: float = RANKS) -> bool:
    """Whether even the lower end of the interval is enough."""
    return finding.interval is not None and finding.interval[0] >= least


def _doubts(findings: Sequence[Finding], *others: Finding | None) -> list[Finding]:
    told = ("refits", "sizes", "subsets")
    doubts = [f for f in findings if f.outcome == "warn" and f.name not in told]
    return [*(each for each in others if each is not None), *doubts]


def _verdict(trust: Trust, is_measured: bool, reasons: list[Finding]) -> Verdict:
    return Verdict(trust, is_measured, HEADLINES[trust], tuple(each.says for each in reasons))

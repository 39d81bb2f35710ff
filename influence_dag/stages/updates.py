"""What a refresh has done to an artifact, or would do."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_dag.store import Plan

if TYPE_CHECKING:
    from influence_dag.stages.workbench import Workbench


@dataclass(frozen=True)
class Update:
    """What a refresh did to one artifact, or would do when it was only planned.

    `reasons` counts the blocks to compute by why they were not current; `info` has what the stage
    knows besides, for the dataset how many rows were added, changed and removed.
    """

    artifact: str
    version: int
    address: str
    data_version: str
    blocks_computed: int
    blocks_reused: int
    bytes_written: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The address as a path, of a store that is a folder."""
        return Path(self.address)

    @property
    def is_current(self) -> bool:
        """True when nothing had to be computed."""
        return self.blocks_computed == 0 and self.bytes_written == 0 and not self.reasons

    @property
    def why(self) -> str:
        """The reasons in words: `2 inputs changed, 1 damaged`; empty when there is none."""
        return ", ".join(f"{n} {reason}" if n else reason for reason, n in self.reasons.items())

    def __str__(self) -> str:
        if self.is_current:
            return (
                f"{self.artifact}: current (version {self.version}, {self.blocks_reused} blocks "
                "kept)"
            )
        return (
            f"{self.artifact}: version {self.version}, {self.blocks_computed} blocks computed, "
            f"{self.blocks_reused} kept, {self.seconds:.1f} s"
        )


def current_update(
    bench: "Workbench", artifact: str, *, kept: int, info: Mapping[str, Any] | None
) -> Update:
    if not bench.plan_only:
        bench.store.restore_pointer(artifact)  # a copied store may lack it
    return _told(bench, artifact, 0, kept, info)


def finished_update(
    bench: "Workbench",
    artifact: str,
    started: float,
    counts: tuple[int, int, int],
    reasons: Mapping[str, int],
    info: Mapping[str, Any] | None,
) -> Update:
    """`counts` are blocks computed, blocks kept and bytes written."""
    computed, kept, written = counts
    reasons = dict(reasons) if computed or written else {}  # else another process did the work
    seconds = time.perf_counter() - started
    return _told(bench, artifact, computed, kept, info, written, seconds, reasons)


def _told(
    bench: "Workbench",
    artifact: str,
    computed: int,
    kept: int,
    info: Mapping[str, Any] | None,
    *work: Any,
) -> Update:
    version = bench.published(artifact)
    about = (artifact, version.number, version.address, version.data_version)
    update = Update(*about, computed, kept, *work, info=dict(info or {}))
    bench.report(str(update))
    return update


def planned_update(
    bench: "Workbench",
    artifact: str,
    computed: int,
    kept: int,
    reasons: Mapping[str, int],
    info: Mapping[str, Any] | None,
) -> Update:
    """What a refresh would do; version and data version are those that are stored now."""
    current = bench.store.current(artifact)
    return Update(
        artifact,
        version=current.number if current else 0,
        address=f"{bench.store.address}/{artifact}",
        data_version=current.data_version if current else "",
        blocks_computed=computed,
        blocks_reused=kept,
        reasons=dict(reasons),
        info=dict(info or {}),
    )


def reasons_of(plan: Plan) -> dict[str, int]:
    """Why a plan's blocks are to be computed; without any, that their labels are to be written."""
    return plan.reasons or {"labels or attributes changed": 0}

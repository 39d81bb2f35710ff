"""What a refresh would compute, artifact by artifact, and why. Nothing is computed to find out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_dag.stages.artifacts import Artifact
from influence_dag.stages.graph import artifacts
from influence_dag.study.loading import study_to_run
from influence_dag.study.study import Study

if TYPE_CHECKING:
    from influence_dag.stages.workbench import Workbench


@dataclass(frozen=True)
class ArtifactStatus:
    """Whether what is stored of an artifact is what the data and settings ask for.

    `reasons` counts the blocks that are not current by why (`inputs changed`, `not computed`,
    `damaged`, `labels or attributes changed`). With `waits_for` that cannot be told yet, and the
    numbers of blocks are None: it depends on numbers of an artifact that is yet to be computed.
    """

    artifact: str
    version: int | None
    blocks_current: int | None = None
    blocks_outdated: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    waits_for: str | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def is_current(self) -> bool:
        return self.waits_for is None and not self.reasons

    @property
    def why(self) -> str:
        """`current`, `waits for model`, or what is not current and why."""
        if self.waits_for:
            return f"waits for {self.waits_for}"
        told = [f"{count} {reason}" if count else reason for reason, count in self.reasons.items()]
        return ", ".join([*told, *_rows_changed(self.info)]) or "current"


def _rows_changed(info: dict[str, Any]) -> Iterator[str]:
    """What the dataset says of its rows: `train: 3 changed`."""
    for split in ("train", "test"):
        if changes := [f"{n} {what}" for what, n in info.get(split, {}).items() if n]:
            yield f"{split}: {' '.join(changes)}"


@dataclass(frozen=True)
class StudyStatus:
    """The status of every artifact of a study, in the order in which they are computed."""

    study: str
    artifacts: tuple[ArtifactStatus, ...]

    @property
    def is_current(self) -> bool:
        """True when a refresh would find nothing to do."""
        return not self.outdated

    @property
    def outdated(self) -> list[str]:
        """The artifacts that are not current, in the order of the graph."""
        return [each.artifact for each in self.artifacts if not each.is_current]

    def __getitem__(self, artifact: str) -> ArtifactStatus:
        return {each.artifact: each for each in self.artifacts}[artifact]

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """As a table: the names of its columns, then a row for each artifact."""
        return [("artifact", "version", "current", "status"), *map(_row, self.artifacts)]

    def __str__(self) -> str:
        rows = self.rows
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def _row(status: ArtifactStatus) -> tuple[str, str, str, str]:
    current, outdated = status.blocks_current, status.blocks_outdated
    blocks = "" if current is None or outdated is None else f"{current} of {current + outdated}"
    return status.artifact, str(status.version or "none"), blocks, status.why


def status(folder: str | Path) -> StudyStatus:
    """What `materialize` would compute in the study that a folder's `defs.yaml` describes.

    The files are read and compared with what is stored; nothing is computed or written. Labels and
    fingerprints of what is to be computed are known before its numbers, so most of what depends on
    an edit is told as well; what depends on numbers (of a refit model, of a curvature) waits.

    Raises `StudyError` or `DataError` as a refresh would.
    """
    return status_of(study_to_run(folder))


def status_of(study: Study) -> StudyStatus:
    """The status of a study whose settings are read and whose project is on Python's path.

    Code that has not made what is stored is imported, to tell what is wrong with it; of what is
    current nothing is imported, nor is torch.
    """
    from influence_dag.stages.keys import has_run, import_named  # here: settings are told at once
    from influence_dag.stages.workbench import Workbench

    bench = Workbench(study, plan_only=True)
    status = StudyStatus(study.name, tuple(each_status(bench)))
    if not status.is_current and not has_run(bench):
        import_named(study)
    return status


def each_status(bench: "Workbench") -> Iterator[ArtifactStatus]:
    """The status of each artifact, on a workbench that only plans, in the order of the graph."""
    return (_status_of(node, bench) for node in artifacts(bench.study))


def _status_of(node: Artifact, bench: "Workbench") -> ArtifactStatus:
    from influence_dag.stages.planned import NotComputedError

    stored = bench.store.current(node.name)
    version = stored.number if stored else None
    try:
        update = node.refresh(bench)
    except NotComputedError as missing:
        bench.plan(node.name)
        return ArtifactStatus(node.name, version, waits_for=missing.artifact)
    return ArtifactStatus(
        node.name,
        version,
        blocks_current=update.blocks_reused,
        blocks_outdated=update.blocks_computed,
        reasons=update.reasons,
        info=update.info,
    )

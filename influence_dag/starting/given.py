"""What `init` is told, and what it makes of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Start:
    """What `init` is told."""

    folder: Path
    train: str
    test: str
    target: str | None = None
    id: str | None = None
    model: str | None = None
    checkpoint: str | None = None
    classes: tuple[str, ...] | None = None


@dataclass
class Plan:
    """What is written, and what is told about it; `copies` are of tables, with ids.

    `written` are the files that there are of it, which a start that fails takes back.
    """

    data: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

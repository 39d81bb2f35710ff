"""What commands print: tables for people, JSON for programs, both plain where nobody looks.

On a terminal tables have colours and its width. Piped or redirected they are aligned text without
either, uncut. Names are shown as they are: nothing in them is markup.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from influence_dag.texts import literal

if TYPE_CHECKING:
    from rich.console import Console

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
UNCUT = 10_000  # columns of what is piped
LONGEST = 2000  # characters of a cell


def emit(value: Any, text: str | Callable[[], object], *, as_json: bool) -> None:
    """The value as JSON, or else a text, or what prints one."""
    if as_json:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # what is in memory has none
        every = "utf" not in encoding.lower()  # signs that the stream may not have
        click.echo(json.dumps(plain(value), ensure_ascii=every, indent=2, allow_nan=False))
    elif callable(text):
        text()
    else:
        click.echo(text)


def plain(value: Any) -> Any:
    """The value in what JSON has; numbers that are not finite are null.

    >>> plain({"a": np.float32(0.5), "b": (float("nan"), Path("x"))})
    {'a': 0.5, 'b': [None, 'x']}
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """Rows under their columns, those that `right` names (numbers) to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = _console()
    found = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        padding=(0, 2, 0, 0),
        show_header=any(columns),
    )
    for name in columns:
        side = "right" if name in right else "left"
        shown = name.replace("_", " ") if console.is_terminal else name  # it may be broken there
        found.add_column(Text(shown), justify=side, overflow="fold")
    for row in rows:
        found.add_row(*(Text(literal(cell, LONGEST), _style(cell)) for cell in row))
    with console.capture() as captured:
        console.print(found)
    click.echo("\n".join(map(str.rstrip, captured.get().splitlines())).strip("\n"))


def _style(cell: object) -> str:
    """Signed numbers by their sign, as in pictures: blue helps, red harms."""
    if isinstance(cell, str) and cell[:1] in "+-−" and cell[1:2].isdigit():
        return "blue" if cell[0] == "+" else "red"
    return ""


def heading(text: str) -> None:
    """A line above a table, bold on a terminal."""
    click.secho(literal(text, LONGEST), bold=True)


def _console() -> "Console":
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    return (
        console if console.is_terminal else Console(file=sys.stdout, width=UNCUT, color_system=None)
    )

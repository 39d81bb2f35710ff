"""What `init` finds in pictures: how many channels they have, and of what size they are."""

from pathlib import Path

import pandas as pd

from influence_dag.datasets.sources.images import SUFFIXES, is_see_through
from influence_dag.errors import DataError
from influence_dag.files import files_behind
from influence_dag.starting.given import Plan

PICTURES = 50  # that are opened to see of what size and colours they are
LARGEST = 64  # rows and columns of pictures, if nobody says more


def look_at_pictures(folder: Path, plan: Plan) -> None:
    files = sorted(map(Path, files_behind(folder)))
    pictures = (path for path in files if path.suffix.lower() in SUFFIXES)
    if not (found := list(pictures)):
        raise DataError(
            f"{folder} has no pictures ({', '.join(SUFFIXES)}); give a folder of pictures with a "
            "folder a class, a table or arrays"
        )
    look_at_some(found, plan)


def pictures_of(frame: pd.DataFrame, path: Path, plan: Plan) -> list[str] | None:
    """The paths in a column of pictures' names; None where there is no such column."""
    for column in frame:
        cells = frame[column].tolist()
        named = all(isinstance(cell, str) and cell.lower().endswith(SUFFIXES) for cell in cells)
        if cells and named and (path.parent / cells[0]).is_file():
            plan.data["images"] = {"path": str(column)}
            return cells
    return None


def look_at_some(paths: list[Path], plan: Plan) -> None:
    """Channels and size of pictures, from some of them that lie evenly among all."""
    from PIL import Image

    modes, sizes, see_through = set(), set(), False
    for path in paths[:: max(1, len(paths) // PICTURES)]:
        try:
            with Image.open(path) as picture:
                modes.add(picture.mode)
                sizes.add((picture.height, picture.width))
                see_through = see_through or is_see_through(picture)
        except Exception as error:  # damage fails in many types
            raise DataError(f"{path} is no readable picture: {error}") from error
    settings = plan.data.setdefault("images", {})
    settings["channels"] = 4 if see_through else 1 if modes <= {"1", "L", "I;16"} else 3
    rows, columns = (min(LARGEST, min(size[axis] for size in sizes)) for axis in (0, 1))
    if sizes and sizes != {(rows, columns)}:
        settings["size"] = [rows, columns]
    plan.told.append(
        f"  pictures: {settings['channels']} channels, {rows} × {columns}"
        + (" (all are made this size: images.size)" if "size" in settings else "")
    )

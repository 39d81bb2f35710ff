"""Pictures: a folder with a folder a class, or a table with a column of paths."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from influence_dag.datasets.sources.base import INPUT, Source
from influence_dag.datasets.sources.texts import numbers_or_words, texts
from influence_dag.errors import DataError
from influence_dag.files import files_behind
from influence_dag.study.data import DataSettings, ImageSettings
from influence_dag.texts import listed

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
DIMS = ("channel", "row", "column")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
DEEP = ("I", "F")  # modes whose numbers Pillow would cut at 255, or at 0
Reader = Callable[[Path, str, DataSettings], Source]


def read_folder(path: Path, name: str, data: DataSettings) -> Source:
    """The pictures in the folders of a folder: a row's label is its folder, its id is its path."""
    assert data.images is not None
    found = sorted(
        each for each in map(Path, files_behind(path)) if each.suffix.lower() in SUFFIXES
    )
    if loose := [each.name for each in found if each.parent == path]:
        raise DataError(
            f"{name}: {listed(loose, 3)} lies beside the folders of the classes, and its folder is "
            "what a picture is labelled by; move it into one, or write a table with a column of "
            "paths"
        )
    if lost := [each for each in found if not each.is_file()]:  # reading a pipe would wait for ever
        raise DataError(
            f"{name}: {lost[0].relative_to(path)} is no file, or a link to none; take it out"
        )
    if not found:
        raise DataError(
            f"{name}: no pictures ({', '.join(SUFFIXES)}) in folders of this folder; a folder a "
            "class is wanted, or a table with a column of paths"
        )
    ids = np.array([each.relative_to(path).as_posix() for each in found], object)
    labels = np.array([each.relative_to(path).parts[0] for each in found], object)
    classes = numbers_or_words(labels)
    names = {folder: k for k, folder in zip(classes.tolist(), labels.tolist(), strict=True)}
    if len(set(names.values())) < len(names):
        alike = [folder for folder, k in names.items() if [*names.values()].count(k) > 1]
        raise DataError(
            f"{name}: the folders {listed(alike, 3)} are one number, and so would be one class; "
            "rename one"
        )
    return Source(
        name,
        {INPUT: _pictures(found, ids.tolist(), name, data.images)},
        classes,
        ids,
        line_of=_line_of(ids),
        text_of_target=lambda: labels,
        dims=DIMS,
    )


def _line_of(ids: np.ndarray) -> Callable[[int], str]:
    return lambda position: f"picture {position + 1} of {len(ids)}"


def read_pictures(
    read: Reader,
    path: Path,
    name: str,
    data: DataSettings,
    root: Path,
) -> Source:
    """A table's rows with the pictures that a column of it names as their inputs.

    The paths travel along as a coordinate, and so does what else `data.keep` names.
    """
    assert data.images is not None
    table, written, found = named_pictures(read, path, name, data, root)
    pictures = _pictures(found, written, name, data.images)
    return replace(table, inputs={INPUT: pictures}, columns=None, dims=DIMS)


def named_pictures(
    read: Reader, path: Path, name: str, data: DataSettings, root: Path
) -> tuple[Source, list[str], list[Path]]:
    """A table without its pictures, the paths that stand in it, and the files that these are."""
    assert data.images is not None
    column = data.images.path
    kept = tuple(dict.fromkeys((column, *data.keep)))
    table = read(path, name, data.model_copy(update={"keep": kept}))
    base = path.parent if data.images.root is None else root / Path(data.images.root).expanduser()
    written = texts(table.kept[column]).tolist()
    missing = [each for each in written if not (base / each).is_file()]
    if missing:
        row = written.index(missing[0])
        seen = f"no file {missing[0]!r} in {base}" if missing[0] else "no path"
        raise DataError(
            f"{name}: {table.row_name(row)}, column {column!r}: {seen} "
            f"({len(missing)} such rows); data.images.root says where paths start"
        )
    return table, written, [base / each for each in written]


def _pictures(
    paths: Sequence[Path], names: Sequence[str], source: str, settings: ImageSettings
) -> np.ndarray:
    """All pictures as one array, float32 `(n, channels, rows, columns)`, from 0 to 1."""
    pictures = [
        _picture(path, f"{source}: {name}", settings)
        for path, name in zip(paths, names, strict=True)
    ]
    sizes = {picture.shape[1:] for picture in pictures}
    if len(sizes) > 1:
        shown = listed([f"{rows} × {columns}" for rows, columns in sorted(sizes)], 3)
        raise DataError(
            f"{source}: pictures of {len(sizes)} sizes (rows × columns: {shown}); "
            "data.images.size: [rows, columns] makes them one"
        )
    return np.stack(pictures)


def is_deep(file: Any) -> bool:
    """Whether an opened picture has numbers of more than 8 bits.

    Of some kinds Pillow has no mode for these (RGB of 16 bits) and reads their upper 8 bits: how
    their pixels are stored tells, `RGB;16B`, or the largest number of a `.ppm`.
    """
    tiles = getattr(file, "tile", ())
    return (
        file.mode.startswith(DEEP)
        or any(re.search(";16[BLN]", repr(tile)) for tile in tiles)
        or any(_is_deep_ppm(codec, stored) for codec, _, _, stored in tiles)
    )


def _is_deep_ppm(codec: str, stored: Any) -> bool:
    """By its largest number; bits (`P1`, `P4`) have none, and a mode alone stands in its place."""
    return codec.startswith("ppm") and isinstance(stored, tuple) and stored[1] > 255


def is_see_through(file: Any) -> bool:
    """Whether an opened picture has a pixel that is not opaque, by its alpha or its palette."""
    return file.has_transparency_data and file.convert("RGBA").getextrema()[3][0] < 255


def _picture(path: Path, name: str, settings: ImageSettings) -> np.ndarray:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(f"{name}: reading pictures needs Pillow; pip install pillow") from error
    try:
        with Image.open(path) as file:
            if is_deep(file):
                raise ValueError(
                    f"its numbers are not of 8 bits (mode {file.mode}) and would be cut; save it "
                    "with 8 bits a channel, or all pictures as arrays"
                )
            if file.format != "MPO" and (frames := getattr(file, "n_frames", 1)) > 1:
                raise ValueError(
                    f"it holds {frames} pictures, of which one would be read; save each by itself, "
                    "or all as arrays"
                )
            picture = ImageOps.exif_transpose(file)
            if settings.channels < 4 and is_see_through(picture):
                raise ValueError(
                    "parts of it are transparent, which would be lost; data.images.channels: 4 "
                    "keeps that, or save it on a background"
                )
            if picture.has_transparency_data:  # by way of it: not every palette goes straight
                picture = picture.convert("RGBA")
            picture = picture.convert(MODES[settings.channels])
            if settings.size is not None:
                rows, columns = settings.size
                picture = picture.resize((columns, rows), Image.Resampling.BILINEAR)
            values = np.asarray(picture, np.float32) / 255
    except Exception as error:  # damage fails in many types
        raise DataError(
            f"{name} is no readable picture: {error}; replace it, or take it out"
        ) from error
    return values.reshape(*values.shape[:2], -1).transpose(2, 0, 1)

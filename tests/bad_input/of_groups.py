"""Zarr groups and pictures that are not what they should be."""

import json
import os

import numpy as np
import xarray as xr
from bad_input.kinds import Kind, Section, refresh, settings, without
from tiny_project import Project

PICTURES = {
    "images": {"size": [4, 4], "channels": 1},
    "train": "train",
    "test": "test",
    "id": None,
    "target": None,
    "features": None,
}


def zarr(edit=lambda folder: None, make=lambda: None):
    """A training group, then damaged."""

    def spoil(project: Project) -> None:
        dataset = make() or xr.Dataset(
            {
                "x": (("row", "feature"), np.arange(36.0).reshape(12, 3)),
                "label": ("row", np.arange(12) % 3),
            }
        )
        folder = project.root / "train.zarr"
        chunks = {"x": {"chunks": (4, 3)}} if "x" in dataset else {}
        dataset.to_zarr(folder, encoding=chunks, consolidated=False)
        edit(folder)
        project.write_settings(data={"train": "train.zarr", "id": None})

    return spoil


def long(folder) -> None:
    """Both arrays say that they have a trillion rows."""
    metadata("x", shape=[10**12, 3])(folder)
    metadata("label", shape=[10**12])(folder)


def metadata(name: str, **changes):
    """Other words in the metadata of an array."""

    def edit(folder) -> None:
        path = folder / name / "zarr.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def junk(folder) -> None:
    for path in (folder / "x/c").rglob("*"):
        if path.is_file():
            path.write_bytes(b"junk")


def chunk(folder):
    return next(path for path in sorted((folder / "x/c").rglob("*")) if path.is_file())


GROUPS = [
    Kind(
        "an empty folder called `.zarr`",
        zarr(lambda folder: [without(each) for each in folder.iterdir()]),
    ),
    Kind(
        "a file called `.zarr`",
        lambda p: [
            (p.root / "train.zarr").write_text("x"),
            p.write_settings(data={"train": "train.zarr", "id": None}),
        ],
    ),
    Kind(
        "a truncated `zarr.json`", zarr(lambda folder: (folder / "x/zarr.json").write_text('{"a'))
    ),
    Kind(
        "a group without its arrays",
        zarr(lambda folder: [without(folder / each) for each in ("x", "label")]),
    ),
    Kind("a chunk that is missing", zarr(lambda folder: chunk(folder).unlink())),
    Kind(
        "a truncated chunk",
        zarr(lambda folder: chunk(folder).write_bytes(chunk(folder).read_bytes()[:5])),
    ),
    Kind("an empty chunk", zarr(lambda folder: chunk(folder).write_bytes(b""))),
    Kind("chunks of other bytes", zarr(junk)),
    Kind(
        "a FIFO for a chunk",
        zarr(lambda folder: [(path := chunk(folder)).unlink(), os.mkfifo(path)]),
    ),
    Kind(
        "a FIFO for `zarr.json`",
        zarr(lambda folder: [(path := folder / "x/zarr.json").unlink(), os.mkfifo(path)]),
    ),
    Kind("arrays that say they have a trillion rows", zarr(long)),
    Kind("an array that says it has 80 TB", zarr(metadata("x", shape=[10**12, 10]))),
    Kind(
        "an array that says it has 80 TB, in one chunk",
        zarr(
            metadata(
                "x",
                shape=[10**12, 10],
                chunk_grid={"name": "regular", "configuration": {"chunk_shape": [10**12, 10]}},
            )
        ),
    ),
    Kind("an array of a negative length", zarr(metadata("x", shape=[-12, 3]))),
    Kind("an array of a type that there is not", zarr(metadata("x", data_type="float13"))),
    Kind(
        "a codec that there is not",
        zarr(metadata("x", codecs=[{"name": "bytes"}, {"name": "magic"}])),
    ),
    Kind(
        "arrays of two lengths",
        zarr(
            make=lambda: xr.Dataset(
                {"x": (("row", "feature"), np.ones((12, 3))), "label": ("other", np.arange(11) % 3)}
            )
        ),
    ),
    Kind(
        "packed numbers with a gap",
        zarr(
            make=lambda: xr.Dataset(
                {
                    "x": (
                        ("row", "feature"),
                        np.arange(36).reshape(12, 3),
                        {"scale_factor": 0.5, "_FillValue": 7},
                    ),
                    "label": ("row", np.arange(12) % 3),
                }
            )
        ),
    ),
    Kind(
        "times for inputs",
        zarr(
            make=lambda: xr.Dataset(
                {
                    "x": (("row", "feature"), np.zeros((12, 3), "M8[ns]")),
                    "label": ("row", np.arange(12) % 3),
                }
            )
        ),
    ),
]


def pictures(spoil=lambda folder: None, **images):
    """Folders of pictures of two classes, then spoilt."""

    def made(project: Project) -> None:
        from PIL import Image

        for split in ("train", "test"):
            for name in ("cat", "dog"):
                folder = project.root / split / name
                folder.mkdir(parents=True)
                for k in range(2):
                    values = np.random.default_rng(k).integers(0, 255, (4, 4), np.uint8)
                    Image.fromarray(values).save(folder / f"{k}.png")
        project.write_settings(data=PICTURES)
        project.write_settings(data={"images": images})
        spoil(project.root / "train")

    return made


def replaced(content) -> object:
    """A picture that holds other bytes."""
    return lambda folder: (folder / "cat/0.png").write_bytes(
        content((folder / "cat/0.png").read_bytes())
    )


def huge(folder) -> None:
    """A picture that says it is 100,000 pixels wide and high."""
    path = folder / "cat/0.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def several(folder) -> None:
    """A file of two pages."""
    from PIL import Image

    pages = [Image.new("L", (4, 4), grey) for grey in (0, 255)]
    pages[0].save(folder / "cat/scan.tif", save_all=True, append_images=pages[1:])


def see_through(folder) -> None:
    """A picture in front of nothing."""
    from PIL import Image

    Image.new("LA", (4, 4), (255, 0)).save(folder / "cat/0.png")


def fifo(folder) -> None:
    for picture in (folder / "cat").iterdir():
        picture.unlink()
        os.mkfifo(picture)


def paths(text: str):
    """A table with a column of paths."""

    def spoil(project: Project) -> None:
        (project.root / "train.csv").write_text(text)
        project.write_settings(data={"images": {"channels": 1}})

    return spoil


IMAGES = [
    Kind(
        "a folder of pictures without `data.images`",
        lambda p: [(p.root / "train").mkdir(), p.write_settings(data={"train": "train"})],
    ),
    Kind(
        "a folder without pictures",
        pictures(lambda folder: [without(each) for each in folder.iterdir()]),
    ),
    Kind("an empty picture", pictures(replaced(lambda content: b""))),
    Kind("a truncated picture", pictures(replaced(lambda content: content[:-30]))),
    Kind("a text called `.png`", pictures(replaced(lambda content: b"hello"))),
    Kind("a picture that says it has 10¹⁰ pixels", pictures(huge)),
    Kind("a picture that is a FIFO", pictures(fifo)),
    Kind(
        "pictures of several sizes",
        lambda p: [
            pictures()(p),
            p.write_settings(data={"images": {"size": None}}),
            resized(p.root / "train/cat/0.png"),
        ],
    ),
    Kind("pictures resized to 10¹⁰ pixels", pictures(size=[100_000, 100_000])),
    Kind("pictures of two channels", pictures(channels=2)),
    Kind(
        "another class in the test pictures",
        pictures(lambda folder: (folder.parent / "test/cat").rename(folder.parent / "test/fox")),
    ),
    Kind("ids of a folder of pictures", lambda p: [pictures()(p), settings(data={"id": "a"})(p)]),
    Kind("several pictures in a file", pictures(several)),
    Kind("a picture with transparent parts", pictures(see_through)),
    Kind("a path that no picture has", paths("id,path,label\na,pictures/a.png,0\n")),
    Kind("a path that is missing", paths("id,path,label\na,,0\n")),
    Kind(
        "a folder of pictures with a byte of 0 in its name",
        settings(data={"images": {"root": "a\0b"}}),
    ),
    Kind("no column of paths", paths("id,file,label\na,a.png,0\n")),
]


def resized(path) -> None:
    from PIL import Image

    Image.open(path).resize((5, 6)).save(path)


SECTIONS = [
    Section("Zarr groups", "`data.train`, `data.test`", refresh, GROUPS),
    Section("Pictures", "`data.images`", refresh, IMAGES),
]

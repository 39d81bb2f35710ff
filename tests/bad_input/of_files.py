"""Files that are not what their names say."""

import gzip
import io
import os
import shutil
import socket
import zipfile

import numpy as np
import pandas as pd
from bad_input.kinds import Kind, Section, all_of, file, refresh, settings
from tiny_project import Project

ARRAYS = {"id": None, "target": "label"}


def npz(**arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def good(**more) -> bytes:
    x = np.random.default_rng(0).normal(size=(12, 3))
    return npz(**{"x": x, "label": np.arange(12) % 3, **more})


def arrays(content, name: str = "train.npz", **data):
    """A training file of arrays, and test rows that it could belong to."""
    test = {"train": name, "test": "test.npz", **ARRAYS, **data}
    return all_of(file("test.npz", good), file(name, content), settings(data=test))


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 0xFF
    return bytes(changed)


def header(shape: str, descr: str = "'<f8'", body: bytes = b"") -> bytes:
    """An array file that says of itself whatever one likes."""
    said = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    said = said.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said.encode() + body


def with_member(content: bytes, compress: bool = False) -> bytes:
    """An archive with a good label and this for x."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if compress else 0) as archive:
        archive.writestr("x.npy", content)
        label = io.BytesIO()
        np.save(label, np.arange(12) % 3)
        archive.writestr("label.npy", label.getvalue())
    return out.getvalue()


def saved(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def encrypted(content: bytes) -> bytes:
    """The same archive with the flag of a password in all of its headers."""
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = content.split(mark)
        content = mark.join(
            [parts[0], *(p[: at - 4] + bytes([p[at - 4] | 1]) + p[at - 3 :] for p in parts[1:])]
        )
    return content


def zipped_bomb() -> bytes:
    """Says 80 TB, of which nothing is there."""
    return with_member(header("(10000000000000,)"))


def of(make, name: str = "train.csv"):
    """Something else than a file under the name of the training file."""

    def spoil(project: Project) -> None:
        path = project.root / name
        path.unlink(missing_ok=True)
        make(path)
        project.write_settings(data={"train": name})

    return spoil


def a_socket(path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as each:
            each.bind(path.name)
    finally:
        os.chdir(here)


def unreadable(project: Project) -> None:
    """Root reads everything, so a folder in the way of a file says the same here."""
    path = project.root / "train.csv"
    path.unlink()
    path.symlink_to("train.csv")


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        np.random.default_rng(0).normal(size=(6, 3)), columns=["a", "b", "c"]
    ).assign(id=[f"r{k}" for k in range(6)], label=[0, 1, 2] * 2)


def parquet(
    edit=lambda table: table, then=lambda content: content, name: str = "train.parquet", **data
):
    """A training file of columns, from an edited table, its bytes edited again."""

    def content() -> bytes:
        out = io.BytesIO()
        write = edit(frame()).to_feather if name.endswith("feather") else edit(frame()).to_parquet
        write(out)
        return then(out.getvalue())

    return all_of(file(name, content), settings(data={"train": name, **data}))


PLACES = [
    Kind("a name that nothing has", settings(data={"train": "trian.csv"})),
    Kind("a pattern that nothing has", settings(data={"train": "rows-*.csv"})),
    Kind("a folder that nothing has", settings(data={"train": "nowhere/train.csv"})),
    Kind(
        "an ending that nobody knows",
        all_of(file("train.xlsx", b"PK"), settings(data={"train": "train.xlsx"})),
    ),
    Kind("no ending", all_of(file("train", b"id,label"), settings(data={"train": "train"}))),
    Kind(
        "an `.npy`",
        all_of(file("train.npy", saved(np.zeros((3, 3)))), settings(data={"train": "train.npy"})),
    ),
    Kind("a folder called `.csv`", of(lambda path: path.mkdir())),
    Kind(
        "a folder called `.npz`",
        all_of(of(lambda path: path.mkdir(), "train.npz"), settings(data=ARRAYS)),
    ),
    Kind("a folder called `.parquet`", of(lambda path: path.mkdir(), "train.parquet")),
    Kind("a FIFO", of(os.mkfifo)),
    Kind("a FIFO called `.npz`", of(os.mkfifo, "train.npz")),
    Kind("a device without an end", settings(data={"train": "/dev/zero"})),
    Kind("a link to a device without an end", of(lambda path: path.symlink_to("/dev/zero"))),
    Kind("a socket", of(a_socket)),
    Kind("a link to itself", unreadable),
    Kind("a link that leads nowhere", of(lambda path: path.symlink_to("gone.csv"))),
    Kind("a file where a folder is meant", settings(data={"train": "test.csv/train.csv"})),
    Kind("`~` of nobody", settings(data={"train": "~nobody-of-that-name/train.csv"})),
]

NPZ = [
    Kind("an empty `.npz`", arrays(b"")),
    Kind("a truncated `.npz`", arrays(good()[:300])),
    Kind("an `.npz` with a byte flipped", arrays(flipped(good(), 200))),
    Kind("an `.npz` with bytes of its directory gone", arrays(lambda: good()[:-90] + good()[-40:])),
    Kind("an `.npy` called `.npz`", arrays(saved(np.zeros((3, 3))))),
    Kind("a CSV called `.npz`", arrays("id,a,label\nr,1,0\n")),
    Kind("random bytes called `.npz`", arrays(np.random.default_rng(0).bytes(4096))),
    Kind("a text file within the `.npz`", arrays(with_member(b"hello"))),
    Kind("pickled objects", arrays(with_member(saved(np.array([{}, []], object))))),
    Kind("records", arrays(npz(x=np.zeros(12, "f8,f8"), label=np.arange(12) % 3))),
    Kind("an array that says it has 80 TB", arrays(zipped_bomb)),
    Kind(
        "an array of 80 TB of zeros, packed",
        arrays(with_member(header("(10000000000000,)") + bytes(1 << 20), compress=True)),
    ),
    Kind(
        "an array of more bytes than can be counted", arrays(with_member(header(f"({2**62}, 64)")))
    ),
    Kind("an array of a negative length", arrays(with_member(header("(-3, 3)")))),
    Kind("an array whose header is code", arrays(with_member(header("__import__('os').getpid()")))),
    Kind(
        "an array with a header of 60 kB",
        arrays(with_member(b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 65535)),
    ),
    Kind("an array of a type that there is not", arrays(with_member(header("(3,)", "'<q9'")))),
    Kind("an `.npz` with a password", arrays(encrypted(good()))),
    Kind("complex numbers", arrays(good(x=np.ones((12, 3), complex)))),
    Kind("words for inputs", arrays(good(x=np.array([["a"] * 3] * 12)))),
    Kind("times for inputs", arrays(good(x=np.zeros((12, 3), "M8[s]")))),
    Kind("a single number for the inputs", arrays(good(x=np.float64(3)))),
    Kind("fewer labels than rows", arrays(good(label=np.arange(11) % 3))),
    Kind("no rows", arrays(npz(x=np.zeros((0, 3)), label=np.zeros(0, int)))),
    Kind("rows without features", arrays(good(x=np.zeros((12, 0))))),
    Kind("no array for the target", arrays(good(), target="y")),
    Kind("no array beside the target", arrays(npz(label=np.arange(12) % 3))),
    Kind("NaN among the inputs", arrays(good(x=np.where(np.eye(12, 3) > 0, np.nan, 1.0)))),
    Kind(
        "numbers that float64 does not have", arrays(good(x=np.full((12, 3), 2**63 + 1, np.uint64)))
    ),
    Kind("labels from 2⁶³ on", arrays(good(label=np.full(12, 2**63, np.uint64)))),
    Kind("masses of labels above the model's outputs", arrays(good(label=np.full(12, 2**40)))),
]

COLUMNS = [
    Kind("an empty `.parquet`", parquet(then=lambda content: b"")),
    Kind("a truncated `.parquet`", parquet(then=lambda content: content[:100])),
    Kind("a `.parquet` without its beginning", parquet(then=lambda content: content[100:])),
    Kind(
        "a `.parquet` with bytes of its summary flipped",
        parquet(then=lambda content: content[:-900] + bytes(800) + content[-100:]),
    ),
    Kind(
        "a `.parquet` with bytes of its rows flipped",
        parquet(then=lambda content: content[:20] + bytes([255] * 60) + content[80:]),
    ),
    Kind("a CSV called `.parquet`", parquet(then=lambda content: b"id,a,label\nr,1,0\n")),
    Kind(
        "a `.feather` called `.parquet`",
        all_of(
            parquet(name="a.feather"),
            lambda p: shutil.move(p.root / "a.feather", p.root / "train.parquet"),
            settings(data={"train": "train.parquet"}),
        ),
    ),
    Kind("an empty `.feather`", parquet(then=lambda content: b"", name="train.feather")),
    Kind(
        "a truncated `.feather`", parquet(then=lambda content: content[:200], name="train.feather")
    ),
    Kind("lists in a column", parquet(lambda table: table.assign(a=[[1.0, 2.0]] * 6))),
    Kind(
        "dates in a column of features",
        parquet(lambda table: table.assign(a=pd.Timestamp("2024-01-01"))),
    ),
    Kind(
        "ids that are decimals",
        parquet(lambda table: table.assign(id=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
    ),
    Kind(
        "ids with `pd.NA` among them",
        parquet(lambda table: table.assign(id=pd.array(["a", None, "c", "d", "e", "f"], "string"))),
    ),
    Kind(
        "ids of bytes that are no UTF-8",
        parquet(lambda table: table.assign(id=[b"\xff%d" % k for k in range(6)])),
    ),
    Kind(
        "ids that are dates",
        parquet(lambda table: table.assign(id=pd.date_range("2024-01-01", periods=6))),
    ),
    Kind("ids that are truth values", parquet(lambda table: table.assign(id=[True, False] * 3))),
    Kind(
        "the row numbers of a data frame, saved along",
        parquet(lambda table: table.assign(__index_level_0__=range(6))),
    ),
    Kind(
        "columns in another type than the test rows' labels",
        parquet(lambda table: table.assign(label=list("abcabc"))),
    ),
]

PACKED = [
    Kind(
        "a `.csv.gz` that is not packed",
        all_of(file("train.csv.gz", "id,a,label\n"), settings(data={"train": "train.csv.gz"})),
    ),
    Kind(
        "a truncated `.csv.gz`",
        all_of(
            file("train.csv.gz", gzip.compress(b"id,a,label\n" * 500)[:40]),
            settings(data={"train": "train.csv.gz"}),
        ),
    ),
    Kind(
        "a `.csv.zst` that is not packed",
        all_of(file("train.csv.zst", "id,a,label\n"), settings(data={"train": "train.csv.zst"})),
    ),
    Kind(
        "a `.csv.gz` that unpacks to a thousand times its size",
        all_of(file("train.csv.gz", lambda: gz_bomb()), settings(data={"train": "train.csv.gz"})),
    ),
]


def gz_bomb() -> bytes:
    """Members of a packed file one after the other unpack one after the other."""
    return gzip.compress(b"id,a,label\n") + gzip.compress(bytes(10 << 20)) * 100


SECTIONS = [
    Section("Where files are", "`data.train`, `data.test`", refresh, PLACES),
    Section("Arrays in `.npz`", "`data.train`, `data.test`", refresh, NPZ),
    Section("Tables in `.parquet` and `.feather`", "`data.train`, `data.test`", refresh, COLUMNS),
    Section("Packed tables", "`data.train`, `data.test`", refresh, PACKED),
]

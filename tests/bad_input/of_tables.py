"""Rows, ids, labels and numbers in a `.csv`, as people have them."""

from bad_input.kinds import Kind, Section, all_of, refresh, settings, table
from tiny_project import Project

HEAD = "id,height,width,depth,label\n"
ROWS = "a,1,2,3,0\nb,2,3,1,1\nc,3,1,2,2\n"


def edited(split: str, position: int, **values):
    return lambda project: project.edit(split, position, **values)


def dropped(column: str):
    """Both tables without a column."""

    def spoil(project: Project) -> None:
        for split in ("train", "test"):
            path = project.root / f"{split}.csv"
            lines = [line.split(",") for line in path.read_text().split()]
            keep = [at for at, name in enumerate(lines[0]) if name != column]
            path.write_text("\n".join(",".join(line[at] for at in keep) for line in lines))

    return spoil


def test_column(before: str, after: str):
    def spoil(project: Project) -> None:
        path = project.root / "test.csv"
        path.write_text(path.read_text().replace(before, after))

    return spoil


def swallowed(project: Project) -> None:
    """A quote before an id that is closed three rows later."""
    lines = (project.root / "train.csv").read_text().split()
    lines[3], lines[6] = f'"{lines[3]}', f'{lines[6]}"'
    (project.root / "train.csv").write_text("\n".join(lines) + "\n")


FILES = [
    Kind("an empty file", table("")),
    Kind("blank lines only", table("\n\n\n")),
    Kind("a header and no rows", table(HEAD)),
    Kind("no rows of one split", lambda project: project.write("test", [])),
    Kind("bytes of 0", table("\0" * 4096)),
    Kind("a byte of 0 in a cell", table(HEAD + "a,1,\0,3,0\n" + ROWS[10:])),
    Kind("UTF-16", lambda p: (p.root / "train.csv").write_bytes((HEAD + ROWS).encode("utf-16"))),
    Kind(
        "latin-1",
        lambda p: (p.root / "train.csv").write_bytes((HEAD + "é,1,2,3,0\n").encode("latin-1")),
    ),
    Kind(
        "latin-1 in the header",
        lambda p: (p.root / "train.csv").write_bytes(b"id,gr\xf6sse,label\na,1,0\n"),
    ),
    Kind(
        "a picture called `.csv`",
        lambda p: (p.root / "train.csv").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    ),
    Kind("semicolons for commas", table((HEAD + ROWS).replace(",", ";"))),
    Kind("decimal commas", table("id;a;label\nr;1,5;0\ns;2,5;1\n", csv={"separator": ";"})),
    Kind(
        "a cell of 200,000 characters in the header",
        table("id," + "a" * 200_000 + ",label\nr,1,0\n"),
    ),
    Kind("a column named twice", table("id,a,a,label\nr,1,2,0\n")),
    Kind("a column without a name", table("id,,a,label\nr,0,1,0\ns,1,2,1\n")),
    Kind("row numbers saved along", table(",id,a,label\n0,r,1,0\n1,s,2,1\n")),
    Kind("a row that is too long", table(HEAD + ROWS + "d,1,2,3,0,9\n")),
    Kind("a row that is too short", table(HEAD + ROWS + "d,1\n")),
    Kind("a quote that is never closed", table(HEAD + '"a,1,2,3,0\nb,2,3,1,1\nc,3,1,2,2\n')),
    Kind("a quote that swallows rows", swallowed),
    Kind("a table of features alone", table("1,2,3\n4,5,6\n")),
    Kind("no id column", dropped("id")),
    Kind("no target column", dropped("label")),
    Kind("no features", table("id,label\na,0\nb,1\n")),
    Kind("no `data.id` for a `.csv`", settings(data={"id": None})),
    Kind(
        "a feature that the table does not have",
        settings(data={"features": {"columns": ["height", "dept"]}}),
    ),
    Kind("a kept column that the table does not have", settings(data={"keep": ["note"]})),
    Kind("a weight that the table does not have", settings(data={"weight": "w"})),
    Kind(
        "a shape that does not hold the columns",
        settings(data={"features": {"shape": [2, 2], "dims": ["a", "b"]}}),
    ),
    Kind("other columns in the test rows", test_column("depth", "length")),
    Kind("the test rows' columns in another order", test_column("height,width", "width,height")),
]

IDS = [
    Kind("an id that is missing", edited("train", 4, id="")),
    Kind("an id that is a space", edited("train", 4, id=" ")),
    Kind("an id twice", edited("test", 4, id="test-01")),
    Kind("two ids that differ by a space", edited("test", 4, id="test-01 ")),
    Kind(
        "an id twice, in the files of a split",
        all_of(
            lambda p: (p.root / "more.csv").write_text(HEAD + "train-01,1,2,3,0\n"),
            settings(data={"train": ["train.csv", "more.csv"]}),
        ),
    ),
]

NUMBERS = [
    Kind("NaN", edited("train", 2, width="nan")),
    Kind("an empty cell", edited("train", 2, width="")),
    Kind("infinity", edited("test", 9, depth="-inf")),
    Kind("a number that overflows", edited("train", 2, width="1e999")),
    Kind("a word", edited("train", 39, height="tall")),
    Kind("a date", edited("train", 39, height="2024-05-01")),
    Kind("a number with its unit", edited("train", 39, height="3 cm")),
    Kind("commas at thousands", edited("train", 39, height="1,000")),
    Kind("a whole number that float64 rounds", edited("train", 5, width=2**53 + 1)),
    Kind("a whole number from 2⁶³ on", edited("train", 5, width=2**63 + 1)),
    Kind("a whole number of 400 digits", edited("train", 5, width="9" * 400)),
    Kind(
        "a number that float32 does not hold",
        all_of(edited("train", 5, width=1e300), settings(compute={"dtype": "float32"})),
    ),
]

LABELS = [
    Kind("a label that is missing", edited("train", 7, label="")),
    Kind("a label of NaN", edited("train", 7, label="nan")),
    Kind("a label above the model's outputs", edited("train", 12, label=3)),
    Kind("a label below 0", edited("test", 8, label=-1)),
    Kind("half a label", edited("train", 12, label=0.5)),
    Kind("a label from 2⁶³ on", edited("train", 12, label=2**63)),
    Kind("one word among numbers", edited("train", 12, label="two")),
    Kind("words in the test rows alone", edited("test", 3, label="two")),
    Kind(
        "a class that the training rows do not have",
        all_of(
            lambda p: p.write("train", [[*row[:4], "abc"[row[4]]] for row in p.rows["train"]]),
            lambda p: p.write("test", [[*row[:4], "abd"[row[4]]] for row in p.rows["test"]]),
        ),
    ),
    Kind("a label that is not among `data.classes`", settings(data={"classes": [0, 1]})),
    Kind(
        "one class alone", lambda p: p.write("train", [[*row[:4], "a"] for row in p.rows["train"]])
    ),
    Kind(
        "negative weights",
        all_of(
            table(HEAD.replace("label", "label,w") + "a,1,2,3,0,1\nb,2,3,1,1,-1\n"),
            settings(data={"weight": "w"}),
        ),
    ),
    Kind(
        "weights that are all 0",
        all_of(
            table(HEAD.replace("label", "label,w") + "a,1,2,3,0,0\nb,2,3,1,1,0\n"),
            settings(data={"weight": "w"}),
        ),
    ),
    Kind(
        "a weight that is missing",
        all_of(
            table(HEAD.replace("label", "label,w") + "a,1,2,3,0,1\nb,2,3,1,1,\n"),
            settings(data={"weight": "w"}),
        ),
    ),
]

SECTIONS = [
    Section("Tables in `.csv`", "`data.train`, `data.test`", refresh, FILES),
    Section("Ids", "the column `data.id`", refresh, IDS),
    Section("Numbers", "the columns of features", refresh, NUMBERS),
    Section("Labels and weights", "the columns `data.target` and `data.weight`", refresh, LABELS),
]

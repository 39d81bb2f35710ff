"""Modules and data sets of people's own that cannot work."""

import os

from bad_input.kinds import Kind, Section, all_of, file, materialize, model, refresh, settings
from tiny_project import MODEL

SHARDS = """
class Rows(list):
    def __getitem__(self, k):
        raise RuntimeError('no shard')
"""
UNCOUNTED = """
class Rows(list):
    def __len__(self):
        raise TypeError('unknown')
"""


def raises(body: str) -> str:
    return f"{body}\n{MODEL}"


def build(body: str, top: str = "") -> str:
    """`build` with another body."""
    return f"import torch\nfrom torch import nn\n{top}\n\ndef build():\n    {body}\n"


def rows(body: str, **data):
    """Training rows that a callable returns."""
    index = "INDEX = pd.Index(['r', pd.NA], name='id')"
    top = f"import numpy as np\nimport pandas as pd\n{index}\n{MODEL}"
    source = f"{top}\n\ndef rows():\n    {body}\n"
    changes = {"train": "tiny_model:rows", "test": "tiny_model:rows", "id": None, **data}
    return all_of(model(source), settings(data=changes))


MODULES = [
    Kind("no such module", settings(model={"build": "tiny_modle:build"})),
    Kind("no such callable", settings(model={"build": "tiny_model:bild"})),
    Kind("a name that is no callable", model(MODEL + "\nsize = 3\n", build="tiny_model:size")),
    Kind(
        "a class's method that there is not", settings(model={"build": "tiny_model:build.nothing"})
    ),
    Kind("a syntax error", model("def build(:\n")),
    Kind("a byte of 0 in the code", model("x = 1\0\n")),
    Kind("code in latin-1", file("tiny_model.py", b"name = 'caf\xe9'\n" + MODEL.encode())),
    Kind("wrong indentation", model("def build():\nreturn 1\n")),
    Kind("brackets too deep for the parser", model("x = " + "(" * 500 + ")" * 500 + "\n")),
    Kind("an import that is not installed", model("import numpyy\n")),
    Kind("a name that a module does not have", model("from torch.nn import Lineer\n")),
    Kind("an exception when it is imported", model(raises("1 / 0"))),
    Kind(
        "`sys.exit(0)` when it is imported", model(raises("import sys; sys.exit(0)")), materialize
    ),
    Kind("`quit()` when it is called", model(build("raise SystemExit(0)")), materialize),
    Kind(
        "modules that import each other",
        all_of(
            file("tiny_other.py", "from tiny_model import build\nx = 1\n"),
            model("from tiny_other import x\n" + MODEL),
        ),
    ),
    Kind(
        "a folder called `tiny_model.py`",
        lambda p: [(p.root / "tiny_model.py").unlink(), (p.root / "tiny_model.py").mkdir()],
    ),
    Kind(
        "a FIFO called `tiny_model.py`",
        lambda p: [(p.root / "tiny_model.py").unlink(), os.mkfifo(p.root / "tiny_model.py")],
    ),
    Kind(
        "a file that the code is said to open", settings(model={"depends_on": ["vocabulary.json"]})
    ),
    Kind("a device that the code is said to open", settings(model={"depends_on": ["/dev/zero"]})),
    Kind(
        "a file that the code opens and nothing says",
        all_of(
            file("tiny_words.txt", "a b"),
            model(raises("WORDS = open(__file__.replace('model.py', 'words.txt')).read()")),
        ),
    ),
    Kind(
        "a file with the name of a module of Python's own",
        all_of(file("trace.py", ""), model(raises("import trace"))),
    ),
    Kind(
        "logging switched off by the code, and an error",
        model(raises("import logging; logging.disable(logging.CRITICAL); 1 / 0")),
        materialize,
    ),
]

DATASETS = [
    Kind("rows from a callable that raises", rows("raise OSError('no network')")),
    Kind("rows from a callable that leaves the program", rows("raise SystemExit(0)")),
    Kind("rows from a callable that returns nothing", rows("pass")),
    Kind("rows from a generator", rows("yield np.zeros(3), 0")),
    Kind("no rows", rows("return []")),
    Kind("rows of three parts", rows("return [(np.zeros(3), 0, 1)] * 4")),
    Kind("rows of one part", rows("return [np.zeros(3)] * 4")),
    Kind("rows of several shapes", rows("return [(np.zeros(k), 0) for k in (3, 4)]")),
    Kind("rows of words", rows("return [('a b', 0)] * 4")),
    Kind(
        "rows that are drawn anew",
        rows("return [(np.random.default_rng().random(3), k % 3) for k in range(6)]"),
    ),
    Kind(
        "a row that raises",
        rows("return Rows([1, 2])\n" + SHARDS),
    ),
    Kind(
        "a length that is none",
        rows("return Rows()\n" + UNCOUNTED),
    ),
    Kind("a table without rows", rows("return pd.DataFrame({'a': [], 'label': []})")),
    Kind(
        "a table with two columns of one name",
        rows("return pd.DataFrame([[1.0, 2.0, 0]] * 4, columns=['a', 'a', 'label'])"),
    ),
    Kind(
        "a table with levels of columns",
        rows("return pd.DataFrame({('a', 'b'): [1.0], ('label', ''): [0]})"),
    ),
    Kind(
        "ids of the table's index with `pd.NA`",
        rows(
            "return pd.DataFrame({'a': [1.0, 2.0], 'label': [0, 1]}, index=INDEX)",
            id="id",
        ),
    ),
    Kind("an attribute of ids that there is not", rows("return [(np.zeros(3), 0)] * 4", id="id")),
]

SECTIONS = [
    Section("Modules", "`model.build` and what it imports", refresh, MODULES),
    Section("Data sets of one's own", "`data.train: module:callable`", refresh, DATASETS),
]

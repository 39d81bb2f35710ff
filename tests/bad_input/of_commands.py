"""The command line, asked for what there is not."""

import os
from collections.abc import Callable

from bad_input.kinds import Kind, Section, command, nothing
from bad_input.of_stores import NAME, damaged, half
from tiny_project import Project

OTHER = "{root}/assets/other"


def init(folder: str = OTHER, **changed: str) -> Callable[[Project], None]:
    """`init` of a study of the project's tables, with other options."""
    options = {"train": "{root}/train.csv", "test": "{root}/test.csv", "target": "label"} | changed
    return command("init", folder, *(f"--{name}={value}" for name, value in options.items()))


COMMANDS = [
    Kind("a command that there is not", nothing, command("materialise", "{folder}")),
    Kind("no folder", nothing, command("materialize")),
    Kind("a study that there is not", nothing, command("materialize", "{root}/assets/tinny")),
    Kind("a file instead of a folder", nothing, command("materialize", "{root}/train.csv")),
    Kind("a store of no study, for a study", nothing, command("materialize", "{root}")),
    Kind(
        "`status` of a study that there is not", nothing, command("status", "{root}/assets/tinny")
    ),
    Kind(
        "`check` of a study with bad rows",
        lambda p: p.edit("train", 2, width="wide"),
        command("check", "{folder}"),
    ),
    Kind(
        "`check` of a model that leaves the program",
        lambda p: p.write_model("raise SystemExit(0)\n\n\ndef build(): ...\n"),
        command("check", "{folder}"),
    ),
    Kind("`show` of a store that there is not", nothing, command("show", "{root}/data/store/tiny")),
    Kind("`show` of a damaged store", damaged("manifest.json", half), command("show", "{store}")),
    Kind(
        "`versions` of an artifact that there is not",
        nothing,
        command("versions", "{store}", "direct/influence"),
    ),
    Kind("`diff` of a version that is none", nothing, command("diff", "{store}", NAME, "one")),
    Kind(
        "`diff` of a version that is not kept", nothing, command("diff", "{store}", NAME, "1", "9")
    ),
    Kind("`diff` of one version", nothing, command("diff", "{store}", NAME)),
    Kind("`gc` that keeps nothing", nothing, command("gc", "{folder}", "--keep", "0")),
    Kind("`init` in a folder that has a study", nothing, init("{folder}")),
    Kind("`init` with a column that there is not", nothing, init(target="lable")),
    Kind("`init` with a file that there is not", nothing, init(train="{root}/trian.csv")),
    Kind(
        "`init` with a FIFO",
        lambda p: os.mkfifo(p.root / "rows.csv"),
        init(train="{root}/rows.csv"),
    ),
    Kind("`init` of a study called `my-study`", nothing, init("{root}/assets/my-study")),
    Kind("`init` with a folder for a checkpoint", nothing, init(checkpoint="{root}")),
]

SECTIONS = [
    Section("The command line", "`influence-dag COMMAND …`", nothing, COMMANDS, finished=True),
]

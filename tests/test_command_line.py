"""The command line on stored results: what it prints for people and for programs, how it ends."""

import contextlib
import errno
import io
import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.shell_completion import BashComplete
from click.testing import CliRunner
from tiny_project import Project

from influence_dag.__main__ import INTERRUPTED, main
from influence_dag.cli.printing import emit, plain, table
from influence_dag.errors import StoreError, StudyError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "command-line.md").read_text()


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


@pytest.fixture(scope="module")
def store(finished_project) -> Path:
    return finished_project.store


def test_top_names_the_rows_behind_a_test_row(store, finished_project):
    row = finished_project.results["direct"].influences.sel(test="test-03").load()
    said = json.loads(run("top", store, "test-03", "-k", 3, "--json"))
    assert [each["id"] for each in said["helps"]] == row.idag.top_k(3).train.values.tolist()
    assert [each["id"] for each in said["harms"]] == row.idag.bottom_k(3).train.values.tolist()
    first = said["helps"][0]
    assert first["influence"] == float(row.max())
    assert first["change_when_left_out"] == pytest.approx(float(row.max()) / 40)
    assert (said["method"], said["damping"]) == ("direct", 0.05)
    lines = run("top", store, "test-03", "-k", 3).splitlines()
    assert lines[0].startswith("test-03 (0), influences by direct")
    shown = [line.split()[0] for line in lines if line.startswith("train-")]
    assert shown == [each["id"] for each in said["helps"] + said["harms"]]


def test_top_shows_the_rows_themselves(store, finished_project):
    said = json.loads(run("top", store, "test-03", "-k", 1, "--content", "--json"))
    (best,) = said["helps"]
    rows = {row[0]: row[1:4] for row in finished_project.rows["train"]}
    assert best["inputs"]["x"] == rows[best["id"]]
    assert f"height  {rows[best['id']][0]:g}" in run("top", store, "test-03", "--content")


def test_what_is_shown_ends_with_the_commands_that_open_it(store, monkeypatch, tmp_path):
    monkeypatch.chdir(store.parents[1])  # neither a Makefile nor a program of its own
    monkeypatch.setattr(sys, "argv", ["/elsewhere/pytest"])
    last = ["or in the browser:", "  influence-dag explore store/tiny"]
    assert run("show", store).splitlines()[-2:] == last
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    Path("Makefile").write_text("demo:\nui: demo\n")
    monkeypatch.setattr(sys, "argv", [".venv/bin/influence-dag", "show"])
    explore, ui = run("show", store).splitlines()[-2:]
    assert shlex.split(explore) == [".venv/bin/influence-dag", "explore", str(store)]
    assert ui.split()[:2] == ["make", "ui"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["top", "{store}", "tset-03"], "did you mean 'test-03'"),
        (["top", "{store}", "test-03", "--method", "drect"], "did you mean 'direct'"),
        (["versions", "{store}", "direct/influense"], "did you mean 'direct/influences'"),
        (["show", "{store}/../tinny"], "did you mean 'tiny'"),
        (["export", "{store}", "x.zarr", "--artifact", "modle"], "did you mean 'model'"),
        (["export", "{store}", "x.csv"], "end it in .zarr, .nc, .parquet"),
        (["export", "{store}", "x.nc"], "pip install 'influence-dag[netcdf]'"),
        (["export", "{store}", "x.parquet", "--artifact", "model"], "model is no table of pairs"),
        (["export", "{store}", "none/x.zarr"], "is no folder"),
        (["report", "{store}", "-o", "none/x.html"], "is no folder"),
        (["top", "{store}", "test-03", "--damping", "7"], "none of those stored: [0.05]"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_what_is_refused_is_told_in_a_line_with_the_nearest_right_name(
    store, arguments, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if "x.nc" in arguments:
        monkeypatch.setattr("influence_dag.query.exports.find_spec", lambda name: None)
    said = run(*(each.format(store=store) for each in arguments), code=1)
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_wrong_usage_ends_with_its_own_code(store):
    assert "Did you mean 'top'?" in run("tops", store, code=2)
    assert "x>=1" in run("top", store, "test-03", "-k", 0, code=2)
    assert "An id that begins with a dash stands last, behind `--`" in run("top", store, -3, code=2)
    assert "no test row '-3'" in run("top", store, "--", -3, code=1)
    assert "behind" not in run("top", store, "test-03", "--jsn", code=2)
    assert "'nowhere' does not exist" in run("explore", store, "--project", "nowhere", code=2)


def test_what_the_system_refuses_is_told_in_a_line(store, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("click.echo", full)
    assert run("show", store, code=1) == "OSError: [Errno 28] No space left on device\n"


def test_a_working_folder_that_is_gone_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the folder in which this was called is gone" in run("status", "tiny", code=1)


def test_a_study_that_was_interrupted_before_its_influences_is_shown(finished_project, tmp_path):
    begun = finished_project.copy(tmp_path / "p", artifacts=["dataset", "model"])
    assert run("show", begun.store).endswith("No influences yet: materialise the study.\n")
    for arguments in (["top", begun.store, "test-03"], ["export", begun.store, "x.parquet"]):
        assert "has no influences yet" in run(*arguments, code=1)
    with pytest.raises(StoreError, match="has no influences yet"):
        begun.results.plot.convergence()


def test_the_first_shard_drives_however_its_number_is_written(finished_project, monkeypatch):
    """`01/8`, as of `seq -w`, was sent to a function of Python's, which nobody had called."""
    given: list[str] = []

    def noted(folder, *, shard, **_):
        given.append(shard)
        raise StudyError("enough")

    monkeypatch.setattr("influence_dag.running.materialize", noted)
    run("materialize", finished_project.folder, "--shard", "01/08", code=1)
    assert given == ["01/08"]


def test_shards_that_make_no_run_take_no_options_of_one(finished_project):
    for option in ("--again", "--show"):
        said = run("materialize", finished_project.folder, "--shard", "2/2", option, code=2)
        assert f"{option} is for the shard that makes the run" in said


def test_interruptions_end_with_their_own_code(store, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt("tiny: interrupted")

    monkeypatch.setattr("influence_dag.query.results.open_study", interrupted)
    assert run("show", store, code=INTERRUPTED) == "tiny: interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "{store}"],
        ["versions", "{store}", "direct/influences"],
        ["suspects", "{store}", "-k", "2"],
        ["status", "{folder}"],
        ["check", "{folder}"],
        ["gc", "{folder}"],
        ["doctor", "{store}"],
        ["init", "{new}", "--train", "{root}/train.csv", "--test", "{root}/test.csv",
         "--target", "label"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_whatever_prints_prints_json(finished_project, arguments, tmp_path):
    places = {"store": finished_project.store, "folder": finished_project.folder}
    places |= {"root": finished_project.root, "new": tmp_path / "new"}
    given = [each.format(**places) for each in arguments]
    said = json.loads(run(*given, "--json"))
    assert said
    if arguments[0] == "suspects":
        assert [row["train"] for row in said["rows"]] == (
            finished_project.results.suspects(2).train.values.tolist()
        )
    if arguments[0] == "status":
        assert said["is_current"]


def test_every_command_has_json_and_says_how_it_ends():
    for name, command in main.commands.items():
        said = run(name, "--help")
        assert "--json" in said or name == "explore", name  # which prints nothing but its address
        assert "130  interrupted" in said, name
        assert f"`{name}`" in PAGE or f"`{name} " in PAGE, name
        assert command.help, name


def test_piped_tables_are_uncut_and_colourless(capsys):
    names = ["x" * 500, "[red]a[/red]", "\x1b[31mred\x1b[0m", "$_{2}$"]
    table(["row", "influence"], [[name, "+1.5"] for name in names], right=["influence"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        *names[:2], r"\x1b[31mred\x1b[0m", names[3]
    ]  # fmt: skip
    assert lines[0].split() == ["row", "influence"]
    assert all(line.endswith("+1.5") for line in lines[1:])


class Terminal(io.StringIO):
    """What looks like one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_signs_have_the_colours_of_pictures(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    table(["influence"], [["+1.5"], ["-2"], ["-x"]])
    assert "\x1b[34m+1.5" in shown.getvalue()
    assert "\x1b[31m-2" in shown.getvalue()
    assert shown.getvalue().count("\x1b[3") == 2


def test_json_is_printed_into_memory_too():
    """Which has no encoding, and any sign."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        emit({"id": "→"}, "", as_json=True)
    assert said.getvalue() == '{\n  "id": "→"\n}\n'


def test_json_has_no_numbers_that_json_has_not():
    values = {"a": np.float32(np.nan), 1: np.arange(2), "p": Path("x"), "t": (np.inf, True)}
    assert plain(values) == {"a": None, "1": [0, 1], "p": "x", "t": [None, True]}


def test_a_shell_completes_commands_and_names_of_the_store(store, tmp_path):
    shell = BashComplete(main, {}, "influence-dag", "_INFLUENCE_DAG_COMPLETE")

    def completed(arguments: list, begun: str) -> list[str]:
        return [each.value for each in shell.get_completions(list(map(str, arguments)), begun)]

    assert completed([], "ver") == ["versions"]
    assert completed(["versions", store], "direct/inf") == [
        "direct/influence_factors", "direct/influences"
    ]  # fmt: skip
    assert completed(["top", store, "test-03", "--method"], "c") == ["cg"]
    assert completed(["versions", tmp_path / "none"], "d") == []


def test_an_exported_zarr_is_read_by_xarray_alone(store, finished_project, tmp_path):
    target = tmp_path / "out.zarr"
    chosen = ["--artifact", "cg/influences", "--artifact", "dataset"]
    run("export", store, target, *chosen)
    tree = xr.open_datatree(target, engine="zarr", consolidated=True)
    expected = finished_project.results
    assert {node.path[1:] for node in tree.leaves} == {"cg/influences", "dataset"}
    read = tree["cg/influences"].influences
    np.testing.assert_array_equal(read, expected.open("cg/influences").influences)
    assert read.train.values.tolist() == [row[0] for row in finished_project.rows["train"]]
    assert tree["cg/influences"].influences.attrs["units"].startswith("loss")
    assert "exists; name another file" in run("export", store, target, code=1)


def test_an_exported_netcdf_is_read_by_xarray_alone(store, finished_project, tmp_path):
    pytest.importorskip("h5netcdf", reason="the extra `netcdf`")
    target, results = tmp_path / "out.nc", finished_project.results
    names = ["direct/influences", "direct/perturbation_influences", "dataset"]
    run("export", store, target, *(each for name in names for each in ("--artifact", name)))
    tree = xr.open_datatree(target, engine="h5netcdf")
    assert sorted(node.path[1:] for node in tree.leaves) == sorted(names)
    for name in names:
        read, expected = tree[name].to_dataset().load(), results.open(name).load()
        assert set(read.variables) == set(expected.variables), name
        for each in read.variables:
            np.testing.assert_array_equal(read[each], expected[each], err_msg=f"{name}: {each}")
    read = tree["direct/influences"].influences
    assert read.sel(test="test-03", train="train-07").attrs["units"].startswith("loss")
    assert "exists; name another file" in run("export", store, target, code=1)


def test_an_exported_table_has_a_line_for_each_pair(store, finished_project, tmp_path, monkeypatch):
    monkeypatch.setattr("influence_dag.query.exports.PAIRS_AT_ONCE", 150)  # several parts
    run("export", store, tmp_path / "out.parquet", "--artifact", "cg/influences")
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert list(found) == [
        "method", "damping", "test", "train", "test_label", "train_label", "influence"
    ]  # fmt: skip
    expected = finished_project.results["cg"].influences
    pivoted = found.pivot(index="test", columns="train", values="influence")
    np.testing.assert_array_equal(pivoted.loc[expected.test, expected.train], expected)
    assert set(found.damping) == {0.05}
    labels = found.drop_duplicates("train").set_index("train").train_label
    assert labels.loc[expected.train.values].tolist() == expected.train_label.values.tolist()


def test_an_export_that_fails_leaves_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setattr("influence_dag.query.exports._columns", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("export", store, tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be asked for here")
def test_a_netcdf_that_finds_no_room_is_refused_before_it_is_begun(store, tmp_path):
    """HDF5 ends the process where a write fails: there was no sentence, and a rest was left."""
    of_old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, of_old[1]))
    try:
        told = run("export", store, tmp_path / "out.nc", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, of_old)
    assert "out.nc failed: [Errno 27]" in told
    assert "and has room" in told
    assert not list(tmp_path.iterdir())


def test_the_doctor_finds_what_is_damaged(project, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(project.root / "nowhere"))
    (project.store / "direct/influences/current/influences/c.0.0").unlink()
    found = json.loads(_doctor(project, code=1))
    home, damaged = found["troubles"]
    assert "DAGSTER_HOME" in home
    assert damaged.startswith("direct/influences: influences/c.0.0 is damaged or missing")
    assert found["store"]["cg/influences"] == "version 1, sound"
    assert found["versions"]["torch"]
    assert found["machine"]["device"] in ("cpu", found["machine"]["device"])


def test_the_doctor_is_told_whose_checksums():
    """Nothing was read, and all was well."""
    done = CliRunner().invoke(main, ["doctor", "--checksums"])
    assert done.exit_code == 2
    assert "--checksums reads the files of a STORE; name it" in done.output


def _doctor(project: Project, code: int) -> str:
    done = CliRunner().invoke(main, ["doctor", str(project.store), "--json"])
    assert done.exit_code == code
    return done.stdout


READING = """
import json, sys
from click.testing import CliRunner
from influence_dag.__main__ import main
store, out = sys.argv[1:]
commands = {
    "show": [store], "versions": [store, "direct/influences"],
    "diff": [store, "direct/influences", "1", "1"], "top": [store, "test-03", "--content"],
    "export": [store, f"{out}/x.parquet"],
    "report": [store, "-o", f"{out}/x.html", "--json"],
}
ended = {name: CliRunner().invoke(main, [name, *given]) for name, given in commands.items()}
absent = ("torch", "dagster", "distributed", "tiny_model")
heavy = [name for name in absent if name in sys.modules]
print(json.dumps([[name, done.exit_code, done.output] for name, done in ended.items()]))
print(json.dumps(heavy))
"""


def test_commands_that_read_import_neither_torch_nor_dagster_nor_the_project(
    finished_project, tmp_path
):
    done = subprocess.run(
        [sys.executable, "-c", READING, str(finished_project.store), str(tmp_path)],
        cwd=finished_project.root, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    ended, heavy = map(json.loads, done.stdout.splitlines())
    assert [(name, code) for name, code, said in ended if code] == [], ended
    assert heavy == []
    (said,) = (json.loads(said) for name, _, said in ended if name == "report")
    assert said["verdict"]["trust"] == "ranks"
    assert {each["name"] for each in said["found"]} >= {"minimum", "curvature", "same as cg"}


def test_what_a_terminal_has_no_signs_for_is_told_by_number(finished_project, tmp_path):
    """Streams of Windows' and older terminals; and none at all, as some services start programs."""
    project = finished_project.copy(tmp_path)
    project.edit("train", 0, id="row → 😀")
    project.refresh()
    arguments = ["suspects", project.store, "-k", 40]
    said, values = (
        CliRunner(charset="latin-1").invoke(main, list(map(str, each)), catch_exceptions=False)
        for each in (arguments, [*arguments, "--json"])
    )
    assert "row \\u2192 \\U0001f600" in said.stdout
    assert "row → 😀" in [row["train"] for row in json.loads(values.stdout)["rows"]]


def test_streams_that_are_closed_are_none_to_print_to(store, monkeypatch):
    """A service may start a program without: what asks the streams what they are would fail."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as end:
        main(["versions", str(store), "direct/influences"])
    assert not end.value.code
    assert not sys.stderr.isatty()
    sys.stderr.close(), sys.stdout.close()

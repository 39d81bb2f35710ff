"""A block of work is a value: another process computes the same bits from it, or refuses."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
from spawned import Remembering
from tiny_project import MODEL, Project

from influence_dag.errors import (
    IndefiniteError,
    InfluenceDagError,
    ModelError,
    NotConvergedError,
    StoreError,
    StudyError,
)
from influence_dag.stages import tasks
from influence_dag.stages.graph import artifacts
from influence_dag.stages.tasks import Compute, Kernel, run
from influence_dag.stages.workbench import Workbench
from influence_dag.study.loading import load_study

CHUNKED = {
    "gradients",
    *("direct/influence_factors", "direct/influences", "direct/summary"),
    *("cg/influence_factors", "cg/influences", "cg/summary"),
    "direct/perturbation_influences",
}
MEASURED = f"""{MODEL}

def margin(output, target):
    return -output.gather(-1, target[..., None]).squeeze(-1)
"""
PINNED = {"refit": "pinned", "measurement": "tiny_model:margin"}


def refreshed(project: Project, executor) -> None:
    bench = Workbench(load_study(project.folder), executor=executor)
    for node in artifacts(bench.study):
        node.refresh(bench)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with a store, and the tasks that its blocks were made of. Not to be changed."""
    project = Project(tmp_path_factory.mktemp("made"), model=MEASURED)
    project.write_settings(model=PINNED, damping=0.5)
    executor = Remembering()
    refreshed(project, executor)
    return project, executor.done


@pytest.fixture
def elsewhere(made, tmp_path):
    """A copy of the project, its tasks, and a process that has opened nothing yet."""
    project, done = made
    copy = project.copy(tmp_path)
    moved = [
        (replace(task, inputs=replace(task.inputs, root=str(copy.root))), arrays)
        for task, arrays in done
    ]
    tasks._opened.cache_clear()
    yield copy, moved
    tasks._opened.cache_clear()


def of(done, artifact: str) -> list:
    return [each for each in done if each[0].artifact == artifact]


def assert_same_bits(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.dtype == expected[name].dtype
        assert values.shape == expected[name].shape
        assert values.tobytes() == expected[name].tobytes(), name


def test_every_chunked_artifact_that_reads_what_is_published_is_made_of_tasks(made):
    _, done = made
    assert {task.artifact for task, _ in done} == CHUNKED
    merged = {"test_sum", "top_train"}  # of what is not yet published
    assert not any(merged & arrays.keys() for _, arrays in of(done, "direct/summary"))


def test_a_task_is_the_same_after_a_journey(made):
    _, done = made
    for task, _ in done:
        there = pickle.loads(pickle.dumps(task))
        assert there == task
        assert hash(there) == hash(task)
        assert str(there) == str(task)


def test_tasks_are_told_apart_by_artifact_and_tile(made):
    _, done = made
    assert len({(str(task), task.kernel) for task, _ in done}) == len(done)
    assert str(of(done, "direct/influences")[0][0]) == "direct/influences[0:10, 0:40]"


def test_a_task_is_small_whatever_it_computes(made):
    _, done = made
    assert max(len(pickle.dumps(task)) for task, _ in done) < 6000


def test_a_fresh_interpreter_somewhere_else_computes_the_same_bits(made, tmp_path):
    _, done = made
    chosen = [of(done, artifact)[-1] for artifact in ("gradients", "cg/influence_factors")]
    (tmp_path / "tasks").write_bytes(pickle.dumps([task for task, _ in chosen]))
    code = (
        "import pickle\n"
        "from influence_dag.stages.tasks import run\n"
        "tasks = pickle.loads(open('tasks', 'rb').read())\n"
        "open('arrays', 'wb').write(pickle.dumps([run(task) for task in tasks]))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    arrays = pickle.loads((tmp_path / "arrays").read_bytes())
    for found, (_, expected) in zip(arrays, chosen, strict=True):
        assert_same_bits(found, expected)


def test_a_task_does_not_depend_on_the_working_directory(elsewhere, tmp_path, monkeypatch):
    _, done = elsewhere
    monkeypatch.chdir("/")
    for task, expected in done:
        assert_same_bits(run(task), expected)


def test_what_is_published_meanwhile_is_not_read(elsewhere):
    project, done = elsewhere
    old = [each for each in done if each[0].inputs.reads]
    project.edit("train", 3, height=9.0)
    project.edit("test", 2, width=-4.0)
    project.refresh()
    for task, expected in old:
        assert_same_bits(run(task), expected)


def test_a_version_that_is_gone_is_refused_by_its_name(elsewhere):
    project, done = elsewhere
    shutil.rmtree(project.store / "gradients/versions/000001")
    (task, _) = of(done, "cg/influences")[0]
    with pytest.raises(
        StoreError, match=r"gradients: version 1, .* is gone \(kept are none\)"
    ) as e:
        run(task)
    assert e.value.__notes__ == [f"while computing {task}"]


def test_a_version_of_the_same_number_and_other_content_is_refused(elsewhere):
    project, done = elsewhere
    project.remove_store()
    project.edit("train", 3, height=9.0)
    project.refresh()
    with pytest.raises(StoreError, match="dataset: version 1 is another than the one that is to"):
        run(of(done, "direct/influence_factors")[0][0])


@pytest.mark.parametrize("artifact", ["gradients", "cg/influence_factors"])
def test_code_that_was_edited_meanwhile_is_refused(elsewhere, artifact):
    project, done = elsewhere
    project.write_model(MEASURED.replace("return -output", "return -2 * output"))
    with pytest.raises(StudyError, match="the code that the study names is other code in"):
        run(of(done, artifact)[0][0])


def test_code_that_is_not_run_may_be_edited_meanwhile(elsewhere):
    project, done = elsewhere
    project.write_model("this is no Python")
    for task, expected in of(done, "direct/influences"):
        assert_same_bits(run(task), expected)


def test_libraries_of_other_versions_are_refused(made):
    task, _ = made[1][0]
    other = (("influence-dag", "0.0.1"), *task.inputs.made_with[1:])
    with pytest.raises(StudyError, match=r"the one that stores has influence-dag 0\.0\.1, torch"):
        run(replace(task, inputs=replace(task.inputs, made_with=other)))


def test_a_method_that_a_process_does_not_know_is_refused(made):
    task, _ = of(made[1], "cg/influence_factors")[0]
    settings = json.loads(task.inputs.settings)
    settings["methods"]["of_ones_own"] = {"steps": 3}
    other = replace(task, inputs=replace(task.inputs, settings=json.dumps(settings)))
    with pytest.raises(StudyError, match=r"methods\.of_ones_own: .*; what adds a method has to be"):
        run(other)


def test_a_task_reads_nothing_that_it_does_not_name(made):
    task, _ = of(made[1], "cg/influence_factors")[0]
    less = tuple(pin for pin in task.inputs.reads if pin.artifact != "cg/curvature")
    with pytest.raises(LookupError, match="factors reads cg/curvature; its tasks name"):
        run(replace(task, inputs=replace(task.inputs, reads=less)))


def test_the_settings_travel_whole(made):
    _, done = made
    project, _ = made
    for task, _ in done:
        bench = task.inputs.opened()
        assert bench.settings == load_study(project.folder).settings
        assert bench.store.root == project.store
        json.loads(task.inputs.settings)


def test_what_a_process_has_opened_serves_all_tiles_and_is_bounded(elsewhere):
    _, done = elsewhere
    for task, _ in of(done, "gradients") * 2:
        run(task)
    assert tasks._opened.cache_info().misses == 1
    for task, _ in done:
        run(task)
    assert tasks._opened.cache_info().currsize <= tasks.KEPT


def test_the_process_that_stores_computes_with_what_it_has_open(tmp_path):
    tasks._opened.cache_clear()
    Project(tmp_path).refresh()
    assert tasks._opened.cache_info().misses == 0
    assert not tasks._at_hand


class UnknownError(Exception):
    """Of code that somebody else has written: nobody can make it again from its message."""

    def __init__(self, code: int, *, why: str):
        super().__init__(f"{why} ({code})")


@dataclass(frozen=True)
class Raises(Kernel):
    """Ends in an error, when it is opened or when it computes."""

    error: str
    opening: bool = False

    def at(self, bench: Workbench) -> Compute:
        def compute(tile):
            if self.error == "exit":
                sys.exit(3)
            raise UnknownError(7, why="cable") if self.error == "unknown" else OSError("no device")

        if self.opening:
            compute(None)
        return compute


@pytest.mark.parametrize("opening", [True, False])
@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        ("known", OSError, "no device"),
        # As it is where something has taught pickle to make any error again, as distributed does.
        ("unknown", (InfluenceDagError, UnknownError), r"cable \(7\)"),
        ("exit", StudyError, r"ended the program \(SystemExit: 3\)"),
    ],
)
def test_an_error_reaches_another_process_with_artifact_and_tile(made, error, kind, said, opening):
    task = replace(of(made[1], "direct/influences")[0][0], kernel=Raises(error, opening))
    with pytest.raises(kind, match=said) as raised:
        run(task)
    there = pickle.loads(pickle.dumps(raised.value))
    assert type(there) is type(raised.value)
    assert str(there) == str(raised.value)
    assert there.__notes__ == ["while computing direct/influences[0:10, 0:40]"]


@pytest.mark.parametrize(
    "error",
    [
        ModelError("row 3: bad", row=3),
        NotConvergedError("rows {rows} missed it", rows=[1, 2], names=["a", "b"]),
        IndefiniteError("no", smallest_eigenvalue=-1.0, suggested_damping=2.0),
        StoreError("locked"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_the_same_after_a_journey(error):
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)


def test_layers_that_are_not_captured_are_told_across_processes():
    from influence_dag.gradients.recording import NotCaptured
    from influence_dag.unchanged import ChangedError

    there = pickle.loads(pickle.dumps(NotCaptured({"b", "a"})))
    assert there.layers == {"a", "b"}
    assert str(there).startswith("the gradients of 'a', 'b' are not sums")
    assert str(pickle.loads(pickle.dumps(ChangedError("the model")))).startswith(
        "the model changed"
    )

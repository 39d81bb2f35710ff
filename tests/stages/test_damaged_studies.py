"""Files of a study that are not what was written: told when read, mended by the next refresh."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tiny_project import Project

import influence_dag as idag
from influence_dag.errors import StoreError
from influence_dag.store import Version


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def delete(path: Path) -> None:
    path.unlink()


def rot(path: Path) -> None:
    """A bit is another one, the file's size and time are as they were."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()  # its hard links in other versions are other sectors
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


HARM = [truncate, delete, rot]


def chunk(version: Version) -> str:
    """The last chunk of the largest variable."""
    name = max(version.variables, key=lambda name: np.prod(version.variables[name].shape))
    return f"{name}/{'.'.join(('c', *(str(n - 1) for n in version.variables[name].grid)))}"


def metadata(version: Version) -> str:
    return f"{next(iter(version.variables))}/zarr.json"


def group(version: Version) -> str:
    return "zarr.json"


def bookkeeping(version: Version) -> str:
    """Keys and stamps of all chunks, which refreshes need."""
    assert (version.path / "blocks.npz").exists()
    return "blocks.npz"


def labels(version: Version) -> str:
    """A coordinate that tells which row is which, where the artifact has one."""
    return next((f"{n}/c.0" for n in ("test", "train") if n in version.coordinates), "zarr.json")


FILES = [chunk, metadata, group, labels]


def read(project: Project, name: str) -> None:
    """All of an artifact, through the library."""
    version = project.results.store.version(name)
    version.attrs  # noqa: B018
    for variable in version.variables:
        version.array(variable)[...]
    version.open().load()


def damage(project: Project, of, harm) -> dict[str, Path]:
    """Damage one file of every artifact."""
    store = project.results.store
    paths = {name: store.version(name).path / of(store.version(name)) for name in store.names()}
    for path in paths.values():
        harm(path)
    return paths


def contents(project: Project) -> dict[str, dict[str, np.ndarray]]:
    return {
        name: {str(k): v.values for k, v in project.results.open(name).load().variables.items()}
        for name in project.results.artifacts
    }


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, arrays in wanted.items():
        for key, values in arrays.items():
            if key in ("niter", "residual", "residual_history"):  # of a solve that began elsewhere
                continue
            if values.dtype.kind == "f":
                # Solves, and how far they are from others, differ by their tolerance.
                atol = 1e-9 * (1 if name == "report" else np.abs(values).max(initial=0))
                np.testing.assert_allclose(
                    found[name][key], values, rtol=1e-9, atol=atol, err_msg=name
                )
            else:
                np.testing.assert_array_equal(found[name][key], values, err_msg=name)


@pytest.mark.parametrize(
    ("of", "harm"),
    [
        (chunk, rot),
        (group, truncate),
        *(
            pytest.param(of, harm, marks=pytest.mark.campaign)
            for of in (*FILES, bookkeeping)
            for harm in HARM
        ),
    ],
    ids=lambda function: function.__name__,
)
def test_damage_in_every_artifact_is_told_when_read_and_mended_by_a_refresh(project, of, harm):
    before = contents(project)
    paths = damage(project, of, harm)
    if of is not bookkeeping:  # of use to refreshes alone
        for name, path in paths.items():
            with pytest.raises(StoreError, match=f"{path} is .*refresh the artifact") as error:
                read(project, name)
            assert name in str(error.value)
    updates = project.refresh()
    assert {name: update.version for name, update in updates.items()} == dict.fromkeys(paths, 2)
    assert_same(contents(project), before)
    assert all(not project.results.store.version(n).verify(checksums=True) for n in before)
    assert all(update.is_current for update in project.refresh().values())


@pytest.mark.campaign
@pytest.mark.parametrize("harm", HARM, ids=lambda function: function.__name__)
def test_damage_in_one_artifact_is_mended_and_what_is_made_from_it_stays(project, harm):
    before, store = contents(project), project.results.store
    for name in store.names():
        version = store.version(name)
        harm(version.path / chunk(version))
        with pytest.raises(StoreError):
            read(project, name)
        updates = project.refresh()
        computed = {other for other, update in updates.items() if update.blocks_computed}
        assert name in computed
        assert_same(contents(project), before)


def test_a_rotten_checkpoint_is_an_error_where_it_is_loaded_and_fitted_again(project):
    path = project.store / "model/current/model.safetensors"
    before = project.results.open("model").parameters.values
    rot(path.resolve())
    project.edit("test", 0, width=1.25)  # factors need the model, the model not the test rows
    with pytest.raises(StoreError, match=r"model\.safetensors is damaged.*refresh the artifact"):
        project.refresh()
    updates = project.refresh()
    assert updates["model"].version == 2
    np.testing.assert_array_equal(project.results.open("model").parameters, before)


def test_a_current_that_points_nowhere_and_folders_of_strangers_are_no_obstacle(project):
    before = contents(project)
    gone = project.store / "gradients"
    shutil.rmtree(gone / "versions/000001")
    stranger = project.store / "hessian/versions"
    (stranger / ".partial-000009").mkdir()
    (stranger / ".partial-000009/nonsense").write_text("of an older program")
    (stranger / ".partial-000009.journal").write_text('{"format": 0}\n{"wrote": 3}\n')
    with pytest.raises(StoreError, match="no 'gradients' yet"):
        project.results.open("gradients")
    chunk = project.store / "hessian/current/hessian/c.0.0"
    chunk.unlink()  # so that a new version of it is begun
    project.refresh()
    assert_same(contents(project), before)
    assert [path.name for path in sorted(stranger.iterdir())] == ["000001", "000002"]


# Readers that stay open


def test_a_dataset_held_open_stays_as_it_was_opened(project):
    project.write_settings(methods={"cg": None}, perturbation=None)
    name = "direct/influences"
    wanted = project.results.open(name).influences.load()
    path = (project.store / name / "current").resolve()
    plain, ours = xr.open_zarr(path), project.results["direct"]
    plain.influences[0].load()
    project.edit("train", 3, height=2.5)  # another θ: every number is another
    project.refresh()
    np.testing.assert_array_equal(plain.influences, wanted)
    np.testing.assert_array_equal(ours.influences, wanted)
    assert not np.allclose(project.results.open(name).influences, wanted)


def test_a_reader_of_a_version_that_is_removed_gets_an_error_never_nan(project):
    project.write_settings(methods={"cg": None}, perturbation=None, store={"keep_versions": 1})
    held = idag.open_study(project.store)["direct"].influences
    elsewhere = pickle.dumps(held)  # as a cluster of workers gets it
    project.edit("train", 3, height=2.5)
    project.refresh()
    for array in (held, pickle.loads(elsewhere)):
        with pytest.raises(StoreError, match="version 000001 was removed while it was open"):
            array.load()

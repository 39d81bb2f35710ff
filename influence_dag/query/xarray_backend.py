"""What xarray's `engine="influence_dag"` does: a study as a tree, an artifact as a dataset."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from xarray.backends import BackendEntrypoint

if TYPE_CHECKING:
    from influence_dag.query.results import StudyResults
    from influence_dag.store import Version


class StudyBackend(BackendEntrypoint):
    """`xr.open_datatree("data/store/digits")`: all artifacts of a study, by their names.

    What is opened is as `open_study` has it: without holes, labels as numpy's text or numbers,
    attributes as numbers or text. The folder of one artifact, or of one of its versions, is a
    dataset.
    """

    description = "studies of influence_dag, and their artifacts"
    supports_groups = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """A study's folder. Versions are Zarr groups, which Zarr opens where no engine is named."""
        if not isinstance(filename_or_obj, str | os.PathLike) or "://" in str(filename_or_obj):
            return False
        return (Path(filename_or_obj) / "dataset" / "versions").is_dir()

    def open_dataset(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> xr.Dataset:
        """An artifact by its folder, `…/direct/influences`, or one of its versions."""
        results, artifact, version = _place(Path(filename_or_obj))
        return _shown(results.store.version(artifact, version), drop_variables)

    def open_groups_as_dict(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> dict[str, xr.Dataset]:
        from influence_dag.query.results import open_study

        results = open_study(filename_or_obj)
        versions = {f"/{name}": results.store.version(name) for name in results.artifacts}
        shown = {name: _shown(version, drop_variables) for name, version in versions.items()}
        return {"/": xr.Dataset()} | shown

    def open_datatree(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> xr.DataTree:
        groups = self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables)
        return xr.DataTree.from_dict(groups, name=Path(filename_or_obj).resolve().name)


def _shown(version: "Version", dropped: str | Iterable[str] | None) -> xr.Dataset:
    from influence_dag.query.holes import without_holes

    names = [dropped] if isinstance(dropped, str) else list(dropped or ())
    return without_holes(version.open(chunks=None)).drop_vars(names, errors="ignore")


def _place(path: Path) -> "tuple[StudyResults, str, int | None]":
    """The study around a folder, the artifact, and the version if the folder is that of one."""
    from influence_dag.errors import StoreError
    from influence_dag.query.results import StudyResults

    folder, version = path.resolve(), None
    if folder.parent.name == "versions" and folder.name.isdigit():
        folder, version = folder.parent.parent, int(folder.name)
    for root in list(folder.parents)[:3]:
        if (root / "dataset" / "versions").is_dir():
            return StudyResults(root), folder.relative_to(root).as_posix(), version
    raise StoreError(f"{path} is no artifact of a study; give a folder such as …/direct/influences")

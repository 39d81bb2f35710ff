"""Stored results as labelled xarray objects, opened lazily; no torch, no Dagster."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from influence_dag.addresses import folder_of
from influence_dag.datasets.slots import SPLITS, Axis, Split
from influence_dag.errors import StoreError
from influence_dag.query.accessor import InfluenceAccessor
from influence_dag.query.holes import without_holes
from influence_dag.query.older import warn_of_older
from influence_dag.query.questions import Questions
from influence_dag.query.rows import row_info
from influence_dag.stages import naming
from influence_dag.store import Store, Variable, Version, open_store
from influence_dag.store.blocks import in_blocks
from influence_dag.store.differences import Difference
from influence_dag.study.methods import MethodsSettings
from influence_dag.texts import did_you_mean

__all__ = ["InfluenceAccessor", "StudyResults", "open_study"]  # the accessor is there with them


def open_study(path: str | Path, project: str | Path | None = None) -> "StudyResults":
    """The results of a study, for example `open_study("data/store/digits")`.

    `path` is where they are (a folder or `memory://name/study`), or the study's folder (with a
    `defs.yaml`), which says so.

    What is computed when sliced needs the study's code, which is imported from `project` (a
    folder), by default from the project in which the store lies (the nearest folder above it with
    a `pyproject.toml`), and from nowhere else. Raises `StoreError` when the folder holds no
    artifacts, `StudyError` when they are those of another study of the same name.
    """
    folder = folder_of(path)
    if folder and (folder / "defs.yaml").is_file():
        from influence_dag.study.loading import check_alone, load_study

        study = load_study(folder)
        results = StudyResults(study.store_address, Path(project or study.root))
        check_alone(study, results.store)
        return results
    return StudyResults(path, None if project is None else Path(project))


class StudyResults(Questions):
    """A study's stored artifacts: datasets by method, versions, what is behind.

    Arrays are lazy (dask, even blocks of up to 128 MiB: a slice reads only the stored chunks that
    it touches), coordinates are loaded, labels are numpy text, attributes numbers or text; so
    whatever xarray offers works, and what is opened can be saved again. Slots that hold no row are
    left out; `xr.open_zarr(".../current")` shows them as NaN with `train_valid` False.
    """

    def __init__(self, path: str | Path, project: Path | None = None):
        self.store: Store = open_store(path)
        self.project = project and project.absolute()
        if "dataset" not in (stored := self.store.names()):
            raise StoreError(_no_study(self.store, stored))

    def __repr__(self) -> str:
        rows = [f"  {name}  version {number}  {shape}" for name, number, shape in self._contents()]
        head = f"StudyResults({self.store.address!r}, methods={self.methods})"
        return "\n".join([head, *map(str.rstrip, rows)])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.store.address, self.project)

    def _repr_html_(self) -> str:
        """What is stored, artifact by artifact, as a table."""
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in self._contents()
        )
        head = "<tr><th>artifact</th><th>version</th><th>largest array</th></tr>"
        return (
            f"<p>Influences of <b>{escape(self.store.name)}</b>, stored in "
            f"<code>{escape(self.store.address)}</code>; methods: "
            f"{escape(', '.join(self.methods) or 'none')}</p><table>{head}{rows}</table>"
        )

    def _contents(self) -> Iterator[tuple[str, int, str]]:
        for name in self.artifacts:
            version = self.store.version(name)
            array = largest(version)
            shape = "" if array is None else f"{array.name}: {spelled(array)}"
            yield name, version.number, shape

    @property
    def artifacts(self) -> list[str]:
        """Names of everything stored."""
        return self.store.names()

    @property
    def methods(self) -> list[str]:
        """The methods whose influences are stored, exact ones first."""
        stored = set(self.artifacts)
        return [name for name in MethodsSettings.model_fields if naming.influences(name) in stored]

    def __getitem__(self, method: str) -> xr.Dataset:
        """Influences of one method with what is known of its rows.

        Variables: `influences` (test, train; lazy). Coordinates besides ids and labels: the
        solve's `residual` (and `niter`, `converged`) of each test row, `self_influence` of each
        training row where the method's summary has it.
        """
        if method not in self.methods:
            stored = ", ".join(self.methods) or "none"
            raise StoreError(
                f"{self.store.address} has no influences of {method!r}"
                f"{did_you_mean(str(method), self.methods)}; it has {stored}"
            )
        dataset, influences = self.open(name := naming.influences(method)), self.store.version(name)
        return dataset.assign_coords(row_info(self.store, influences))

    def __iter__(self) -> Iterator[str]:
        return iter(self.methods)

    def __contains__(self, method: object) -> bool:
        return method in self.methods

    def _ipython_key_completions_(self) -> list[str]:
        return self.methods

    def open(self, artifact: str, version: int | None = None) -> xr.Dataset:
        """Any artifact as a lazy dataset without holes; by default its current version.

        A `RuntimeWarning` says where that is older than the rows, θ or curvature stored beside it.
        """
        found = self.store.version(artifact, version)
        if version is None:
            warn_of_older(self.store, found)
        dataset = without_holes(found.open(chunks=None))
        # Even blocks, whatever rows were left out: of uneven ones nothing could be saved in Zarr.
        return in_blocks(dataset, dataset.data_vars, "rows", found.address, found.data_version)

    def perturbation(
        self, method: str, version: int | None = None, *, input: str | None = None
    ) -> xr.DataArray:
        """`∂/∂x_train` of the influence, dims `(test, train, *features)`, lazy.

        Where the study keeps less of it: `(test, train)` reduced over features, `(train,
        *features)` over test rows, and of `pairs: top-k` `(test, rank, *features)`, the training
        rows' ids in the coordinate `train (test, rank)`. `input` names one of several inputs.
        """
        from influence_dag.query.perturbations import of_input

        dataset = self.open(naming.perturbation(method), version)
        return of_input(dataset, input, f"perturbation({method!r})")

    def influence_factors(self, method: str, version: int | None = None) -> xr.DataArray:
        """`(H + λI)⁻¹ ∇L(z_test)`, dims `(test, param)`, lazy."""
        return self.open(naming.factors(method), version)["influence_factors"]

    def lazy_perturbation(self, method: str, *, input: str | None = None) -> xr.DataArray:
        """`∂/∂x_train` of the influence, `(test, train, *features)`: computed when sliced.

        Of all pairs and features, whatever the study stores of them; `input` names one of several
        inputs. Needs the study's code: see `open_study`.
        """
        from influence_dag.query.perturbations import variable_of

        arrays = self.lazy_perturbations(method)
        return arrays[variable_of(arrays, input, f"lazy_perturbation({method!r})")]

    def lazy_perturbations(self, method: str) -> dict[str, xr.DataArray]:
        """`lazy_perturbation` of each input of the model, by the name that its array has."""
        from influence_dag.query.lazy import lazy_perturbations

        return lazy_perturbations(self.store, method, self.project)

    def block_influences(self, method: str, blocks: Any = None) -> xr.DataArray:
        """The share of each block of parameters, dims `(block, test, train)`, computed when sliced.

        Shares add up to the influences. `blocks` is `"full"`, `"layer"` (one for each module) or
        lists of parameter names; by default those of the method's settings.
        """
        from influence_dag.query.lazy import block_influences

        return block_influences(self.store, method, blocks, self.project)

    def position_influences(self, method: str) -> xr.DataArray:
        """The share of each position of the training rows, `(test, train, position)`, when sliced.

        For losses at positions, such as those of tokens. Shares add up to the influences; 0 where a
        target is ignored. Needs the study's code: see `open_study`.
        """
        from influence_dag.query.lazy import position_influences

        return position_influences(self.store, method, self.project)

    def parameter_influences(self, method: str) -> xr.DataArray:
        """`(H + λI)⁻¹ ∇L(z_train)`, dims `(train, param)`, computed when sliced.

        Leaving out a training row moves θ by about `+1/weight_sum` of its row (without weights
        that is `n_train`). NaN where a solve missed its tolerance (`on_failure: warn`), in their
        norms too, which are stored: `open("<method>/summary").parameter_influence_norm`.
        """
        from influence_dag.query.lazy import parameter_influences

        return parameter_influences(self.store, method, self.project)

    def relabelled_influences(self, method: str, labels: Mapping[Any, str | float]) -> xr.DataArray:
        """Influences of training rows as they would be with other labels, computed when called.

        `labels` are new labels by training row's id. Relabelling row i changes the loss of test
        row j by about `(influences - relabelled_influences) / weight_sum`. Needs the study's code:
        see `open_study`.
        """
        from influence_dag.query.relabelled import relabelled_influences

        return relabelled_influences(self.store, method, labels, self.project)

    def export(
        self,
        path_or_url: str | Path,
        artifacts: Sequence[str] = (),
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write artifacts (default: all) as one plain consolidated Zarr group, for others.

        To a folder (`out.zarr`) or an object store (`s3://bucket/out.zarr`, with the
        `storage_options` of its fsspec file system), block by block; a group an artifact, with
        labels and attributes: `xr.open_zarr(…, group="direct/influences")`. Also `out.nc` and
        `out.parquet`. What exists is not replaced: `StoreError`.
        """
        from influence_dag.query.exports import export

        return export(self, path_or_url, artifacts, storage_options=storage_options)

    def explore(self, *, port: int = 0, open_browser: bool = False) -> Any:
        """A page on loopback in which all of this is looked at: rows, pairs, marks, edits.

        It is served from a thread of this process until `.stop()`; `.url` says where, and a
        notebook shows it as a link. Needs `influence-dag[explore]`. See docs/explorer.md.
        """
        from influence_dag.explorer.serving import serve

        return serve(self, port=port, open_browser=open_browser)

    def diff(self, artifact: str, before: int, after: int | None = None) -> Difference:
        """What changed between two versions: rows, chunks, and the values that moved most.

        `after` is the current version by default. See `Difference.largest_changes`.
        """
        return self.store.diff(artifact, before, after)

    def versions(self, artifact: str) -> list[Version]:
        """The kept versions of an artifact, oldest first; `StoreError` where there is none."""
        self.store.version(artifact)
        return list(self.store.versions(artifact))

    def version_table(self, artifact: str) -> list[dict[str, Any]]:
        """Number, data version and rows of each kept version; of a damaged one its `damage`."""
        return [_told(version) for version in self.versions(artifact)]


def _no_study(store: Store, stored: list[str]) -> str:
    """Why an address cannot be opened, and what could be meant."""
    said = f"no study at {store.address}: "
    if studies := [name.removesuffix("/dataset") for name in stored if name.endswith("/dataset")]:
        return f"{said}it holds folders with results of studies, open one: {', '.join(studies)}"
    near = did_you_mean(store.name, {*store.beside("dataset")} - {store.name})
    return (
        f"{said}no artifact has been stored there{near}; materialise one with `influence-dag "
        "materialize assets/<study>` or give the folder that holds `<method>/influences`"
    )


def largest(version: Version) -> Variable | None:
    """The variable with the most numbers; None where there is none."""
    return max(version.variables.values(), key=lambda each: np.prod(each.shape), default=None)


def spelled(variable: Variable) -> str:
    """`test 10 × train 40, float64`."""
    pairs = zip(variable.dims, variable.shape, strict=True)
    return f"{' × '.join(f'{dim} {size:,}' for dim, size in pairs)}, {variable.dtype}"


def _told(version: Version) -> dict[str, Any]:
    said = {"version": version.number, "data_version": None}
    try:
        there: list[Split] = [split for split in SPLITS if split in version.coordinates]
        rows = {f"{split}_rows": Axis.read(version, split).count for split in there}
        return said | {"data_version": version.data_version, **rows}
    except StoreError as error:
        return said | {"damage": str(error)}

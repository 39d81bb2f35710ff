"""A study's artifacts in other assets of a Dagster project, as lazy xarray objects."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from influence_dag.addresses import below
from influence_dag.errors import StoreError

if TYPE_CHECKING:
    import xarray as xr

    from influence_dag.query.results import StudyResults

IO_MANAGER = "influence_dag_io_manager"  # of every asset of a study
ARTIFACT, STORE = "artifact", "store"  # metadata of its definition


class StudyResource(dg.ConfigurableResource):
    """Stored studies by name: `studies.open("digits")["direct"].influences`.

    `path` is the folder that they are in, the `store` of their settings.
    """

    path: str

    def open(self, study: str) -> "StudyResults":
        """A study's results, as `influence_dag.open_study` gives them."""
        from influence_dag.query.results import open_study

        return open_study(below(self.path, study))


class StudyIOManager(dg.ConfigurableIOManager):
    """Loads an artifact of a study as a lazy xarray object; stores nothing.

    A study's own assets have it, so that an input that names one needs nothing more. Where the
    study is defined in another code location, `path` is the folder that studies are in, the `store`
    of their settings.
    """

    path: str | None = None

    def load_input(self, context: dg.InputContext) -> Any:
        """The current version of what the input's asset key names.

        As annotated: `xr.Dataset` with all arrays, `xr.DataArray` with the artifact's own. Without
        an annotation the array, or the dataset where no array is the artifact's own.
        """
        address, artifact = self._place(context)
        dataset = _opened(address, artifact)
        wanted, own = context.dagster_type.typing_type, _own_array(dataset, artifact)
        if wanted is Any:
            return dataset if own is None else own
        if isinstance(dataset, wanted):
            return dataset
        if own is None or not isinstance(own, wanted):
            raise StoreError(
                f"{artifact} cannot be had as {wanted.__name__}: it is an xarray.Dataset of "
                f"{', '.join(map(str, dataset.data_vars)) or 'no arrays'}"
                f"{'' if own is None else ', its own array an xarray.DataArray'}; annotate the "
                "input with one of these"
            )
        return own

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Refused: artifacts are written by the stages that know what they were made from."""
        raise StoreError(
            f"{context.asset_key.to_user_string()}: the I/O manager of influence_dag only loads "
            "the artifacts of studies; give this asset another one for what it returns"
        )

    def _place(self, context: dg.InputContext) -> tuple[str, str]:
        """Where a study's results are, and the name of the artifact."""
        upstream, key = context.upstream_output, context.asset_key
        known = upstream.definition_metadata or {} if upstream else {}
        if ARTIFACT in known:
            artifact = str(_text(known[ARTIFACT]))
            return str(_text(known[STORE])).removesuffix(f"/{artifact}"), artifact
        return self._by_key(key)

    def _by_key(self, key: dg.AssetKey) -> tuple[str, str]:
        """The first part of the key that names a study in `path` which has the rest of it."""
        from influence_dag.store import open_store

        place, parts = open_store(self.path or "."), list(key.path)
        for position in range(len(parts) - 1):
            study, artifact = parts[position], "/".join(parts[position + 1 :])
            address = below(place.address, study)
            if artifact in open_store(address).names():
                return address, artifact
        raise StoreError(
            f"{key.to_user_string()} is no stored artifact: {place.address} has no such study; "
            f"give StudyIOManager the `path` that studies are stored in, or materialise it first"
        )


def _text(value: Any) -> Any:
    return getattr(value, "value", value)


def _opened(address: str, artifact: str) -> "xr.Dataset":
    from influence_dag.query.results import open_study

    results = open_study(address)
    method, _, what = artifact.rpartition("/")
    return results[method] if what == "influences" else results.open(artifact)


def _own_array(dataset: "xr.Dataset", artifact: str) -> "xr.DataArray | None":
    """The array that is called like the artifact, or the only one."""
    from influence_dag.query.perturbations import with_rows

    arrays = [str(name) for name in dataset.data_vars]
    name = artifact.rpartition("/")[2]
    name = arrays[0] if len(arrays) == 1 else name
    return with_rows(dataset, name) if name in arrays else None

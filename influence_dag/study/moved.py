"""Modules by the names that they had before they lay in rooms: the same objects, with a warning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

_PACKAGE = __name__.partition(".")[0]
MOVED = {
    "attention": "gradients.attention",
    "batching_checks": "objective.batching",
    "capture": "gradients.capture",
    "checkpoints": "objective.checkpoints",
    "chosen_output": "objective.chosen_output",
    "commented": "study.commented",
    "dagster_settings": "study.dagster",
    "data_settings": "study.data",
    "execution": "stages.blocks",
    "first_look": "starting.first_look",
    "fitting": "objective.fitting",
    "footprint": "objective.footprint",
    "foreseen": "stages.foreseen",
    "gradient_blocks": "gradients.blocks",
    "gradient_checks": "gradients.checks",
    "graph": "stages.graph",
    "history": "study.places",
    "inversion": "functional.inversion",
    "labelled": "datasets.slots",
    "layered_perturbation": "influence.layered",
    "layers": "gradients.layers",
    "lazy": "query.lazy",
    "loaders": "functional.loaders",
    "local_gradients": "gradients.local",
    "method_settings": "study.methods",
    "model_settings": "study.model",
    "models": "objective.modules",
    "module_files": "study.module_files",
    "objective_checks": "objective.checks",
    "outputs": "objective.outputs",
    "perturbation": "influence.perturbation",
    "perturbation_points": "influence.points",
    "places": "study.places",
    "plots": "query.plots",
    "positions": "influence.positions",
    "project_code": "study.code",
    "recording": "gradients.recording",
    "reopened": "query.reopened",
    "result_arrays": "query.result_arrays",
    "rows": "objective.rows",
    "scales": "datasets.standardising",
    "seeding": "objective.seeding",
    "settings": "study.base",
    "settings_reference": "study.reference",
    "showing": "query.text",
    "sources": "datasets.sources",
    "stages.differences": "stages.row_changes",
    "stages.refreshing": "stages.driver",
    "standardising": "datasets.standardising",
    "stationarity": "gradients.stationarity",
    "store.files": "files",
    "store.fingerprints": "fingerprints",
    "store.journal": "store.posix.journal",
    "store.locks": "store.posix.locks",
    "store.partials": "store.posix.journal",
    "store.pointers": "store.posix.pointers",
    "store.versions": "store.posix.versions",
    "study_files": "study.files",
    "study_status": "stages.status",
    "suspect_rows": "query.suspects",
    "twice_differentiable": "objective.twice_differentiable",
    "users_code": "study.users_code",
    "validation_settings": "study.validation",
    "xarray_backend": "query.xarray_backend",
}


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self) if _new_name(name) else None

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, f"{_PACKAGE}.{_new_name(module.__name__)}"
        warnings.warn(f"{old} is {new} now", DeprecationWarning, stacklevel=2)
        sys.modules[old] = import_module(new)


def _new_name(name: str) -> str | None:
    package, _, inner = name.partition(".")
    if package != _PACKAGE:
        return None
    room, _, rest = inner.partition(".")
    return MOVED.get(inner) or (f"{MOVED[room]}.{rest}" if rest and room in MOVED else None)


def install() -> None:
    """Let Python find modules by their earlier names.

    First of all finders: those in a folder that moved would be found in it, and be loaded twice.
    """
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())

"""The settings of one study: what a `defs.yaml` says, checked, without torch or Dagster.

Every setting that changes a number takes part in fingerprints; those that only change where
or how fast (device, block size, store path) do not.
"""

import re
import unicodedata
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, NonNegativeFloat, Tag, model_validator

from influence_dag.addresses import below, folder_of, scheme_of
from influence_dag.errors import StudyError
from influence_dag.study.base import Settings, from_environment, is_callable_name, setting
from influence_dag.study.dagster import DagsterSettings
from influence_dag.study.data import DataSettings
from influence_dag.study.groups import (
    ComputeSettings,
    CurvatureSettings,
    PerturbationSettings,
    RefreshSettings,
    StoreSettings,
    SummarySettings,
    store_settings,
)
from influence_dag.study.methods import MethodsSettings, built_on_methods
from influence_dag.study.model import FitSettings as FitSettings  # named from here in tutorials
from influence_dag.study.model import ModelSettings
from influence_dag.study.places import placed_name
from influence_dag.study.validation import ValidationSettings


def _kind_of_damping(value: Any) -> str:
    """A number may be a text: in YAML `1e-3` is one, and what an environment has."""
    if isinstance(value, str):
        return "number" if _NUMBER.fullmatch(value.strip()) else "name"
    return "list" if isinstance(value, list | tuple) else "number"


_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)


Damping = Annotated[
    Annotated[NonNegativeFloat, Tag("number")]
    | Annotated[tuple[NonNegativeFloat, ...], Tag("list")]
    | Annotated[Literal["auto"], Tag("name")],
    Discriminator(_kind_of_damping),
]


@built_on_methods
class StudySettings(Settings):
    """One study: data, model, damping, methods, and where the results go."""

    data: DataSettings
    model: ModelSettings
    damping: Damping | None = setting(
        None,
        "λ of every solve; default: fit.weight_decay, or auto where θ is given; a list sweeps; "
        "auto: the mean |eigenvalue| of each method's curvature",
    )
    methods: MethodsSettings
    perturbation: PerturbationSettings | None = None
    summary: SummarySettings = SummarySettings()
    validation: ValidationSettings = ValidationSettings()
    curvature: CurvatureSettings = CurvatureSettings()
    compute: ComputeSettings = ComputeSettings()
    refresh: RefreshSettings = RefreshSettings()
    dagster: DagsterSettings = DagsterSettings()
    store: Annotated[
        StoreSettings, BeforeValidator(store_settings, json_schema_input_type=StoreSettings | str)
    ] = StoreSettings()

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: Any) -> Any:
        return from_environment(values)

    @model_validator(mode="after")
    def _consistent(self) -> "StudySettings":
        judged = self.validation.leave_one_out and self.validation.leave_one_out.method
        named = {
            "perturbation.methods": self.perturbation.methods if self.perturbation else (),
            "validation.leave_one_out.method": (judged,) if judged else (),
        }
        for field, methods in named.items():
            if unknown := sorted(set(methods) - set(self.methods.names)):
                raise ValueError(
                    f"{field} names {', '.join(unknown)}, methods has only "
                    f"{', '.join(self.methods.names)}"
                )
        if self.validation.names and not self._has_damping:
            raise ValueError(
                "validation refits with the λ that influences are of, and identity alone has none; "
                "set damping to a number, or add a method that has one"
            )
        subsets = self.validation.datamodels
        if subsets and subsets.initial_weights == "others" and self.model.checkpoint:
            raise ValueError(
                "validation.datamodels.initial_weights: others asks for fits that start elsewhere, "
                f"and the one start that is known is {self.model.checkpoint}; take `same`"
            )
        if self.compute.executor == "dask" and scheme_of(self.store.path) == "memory":
            raise ValueError(
                f"compute.executor is dask, and store {self.store.path} is in the memory of one "
                "process, which workers do not see; write a folder, or executor: local"
            )
        if self.damping == ():
            raise ValueError("damping is an empty list; give at least one value")
        if twice := [each for each in self.dampings if self.dampings.count(each) > 1]:
            raise ValueError(f"damping lists {twice[0]:g} twice; each λ is asked for by its value")
        largest = 3.4e38 if self.compute.dtype == "float32" else 1.7e308
        of_blocks = (self.methods[name].block_damping.values() for name in self.methods.names)
        given = chain(self.dampings, *of_blocks)
        if beyond := [damping for damping in given if damping > largest]:
            raise ValueError(
                f"damping {beyond[0]:g} is more than {self.compute.dtype} can hold; against it "
                "every curvature is 0"
            )
        return self

    @property
    def callables(self) -> dict[str, str]:
        """The `module:callable` names that make or judge a model, by the setting that has them."""
        fields = ("build", "loss", "fit", "measurement")
        named = {f"model.{each}": getattr(self.model, each) for each in fields}
        return {
            field: name
            for field, name in (named | self.methods.drawn_by).items()
            if isinstance(name, str) and is_callable_name(name)
        }

    @property
    def dampings(self) -> tuple[float, ...]:
        """The λ of each solve, one or several; none where the curvature decides (`auto`)."""
        if self.damping is None:
            return (self.model.own_fit.weight_decay,) if self.model.own_fit else ()
        if self.damping == "auto":
            return ()
        return self.damping if isinstance(self.damping, tuple) else (self.damping,)

    @property
    def _has_damping(self) -> bool:
        """Whether there is a λ for refits: asked for, of the fit, or of some method's curvature."""
        damped = any(self.methods[name].is_damped for name in self.methods.names)
        return damped or bool(self.dampings or self.model.own_fit)

    @property
    def is_auto_damped(self) -> bool:
        """Whether the curvature decides λ: where asked, and where no weight decay is known."""
        return not self.dampings

    def matrix_of_damping(self, method: str) -> str | None:
        """The stored matrix that says what λ a method has, with `damping: auto`.

        None where no method of the study stores it: each then estimates λ from products, or reads
        it off its own Kronecker factors.
        """
        asked = self.methods[method]
        if not self.is_auto_damped or asked.of_layers or not asked.is_damped:
            return None
        kind = asked.curvature
        stored = self.methods.direct is not None and self.methods.direct.curvature == kind
        return kind if stored else None


def study_name(folder: Path) -> str:
    """The name of the study in a folder, which is the folder's; `StudyError` for one that is none.

    It is part of the keys of Dagster's assets and of the names of jobs, which have letters from a
    to z, digits and underscores; it stands for the study in the store and in URLs as it is.
    """
    if re.fullmatch(r"[A-Za-z0-9_]+", folder.name):
        return folder.name
    better = usable_name(folder.name)
    raise StudyError(
        f"{folder}: the folder's name is the study's, and {folder.name!r} has characters other "
        f"than the letters a to z and A to Z, digits and _, which Dagster's assets do not take; "
        f"rename the folder, for example to {better}"
    )


def usable_name(name: str) -> str:
    """A name near to this one that Dagster's assets take.

    >>> usable_name("my-study"), usable_name("étude"), usable_name("研究")
    ('my_study', 'etude', 'my_study')
    """
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore")
    return re.sub(r"[^A-Za-z0-9_]+", "_", plain.decode()).strip("_") or "my_study"


def placed(settings: StudySettings, folder: Path, root: Path) -> StudySettings:
    """The settings with every input that lies in the study's folder named from the project's."""
    if folder == root:
        return settings

    def from_root(names: str | tuple[str, ...] | None) -> Any:
        if names is None or isinstance(names, str):
            return names and placed_name(names, folder, root)
        return tuple(placed_name(name, folder, root) for name in names)

    data, model = settings.data, settings.model
    files = {which: from_root(getattr(data, which)) for which in ("train", "test")}
    if data.images is not None:
        pictures = {"root": from_root(data.images.root)}
        files["images"] = data.images.model_copy(update=pictures)
    of_model = {name: from_root(getattr(model, name)) for name in ("checkpoint", "depends_on")}
    return settings.model_copy(
        update={
            "data": data.model_copy(update=files),
            "model": model.model_copy(update=of_model),
        }
    )


class Study:
    """Settings with a name and a place: what the stages work on.

    A relative path of an input is looked up in `folder`, the study's, and then in `root`, the
    project's. In the settings it then is relative to `root`, as is where results go.
    """

    def __init__(self, name: str, settings: StudySettings, root: Path, folder: Path | None = None):
        self.name, self.root = name, Path(root).resolve()
        self.folder = None if folder is None else Path(folder).resolve()
        self.settings = placed(settings, self.folder or self.root, self.root)

    def path(self, relative: str) -> Path:
        return self.root / Path(relative).expanduser()

    @property
    def store_address(self) -> str:
        """Where its results are: the path of a folder, or below `memory://name`, `s3://…`."""
        place = self.settings.store.path
        return below(self.path(place) if folder_of(place) else place, self.name)

    @property
    def store_path(self) -> Path:
        """The folder of its results; `StudyError` where the store is none."""
        if not folder_of(self.settings.store.path):
            raise StudyError(f"{self.name}: its store is {self.store_address}, which is no folder")
        return Path(self.store_address)

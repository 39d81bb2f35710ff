"""The settings of one study: what a `defs.yaml` says, checked, without torch or Dagster.

Every setting that changes a number takes part in fingerprints; those that only change where
or how fast (device, block size, store path) do not.
"""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from influence_dag.addresses import below, folder_of, scheme_of
from influence_dag.errors import StoreError, StudyError
from influence_dag.study.base import (
    Bytes,
    Settings,
    Unit,
    from_environment,
    is_cron,
    parse_bytes,
    path_name,
)
from influence_dag.study.dagster import DagsterSettings
from influence_dag.study.data import DataSettings, Which
from influence_dag.study.methods import MethodsSettings, built_on_methods
from influence_dag.study.model import FitSettings, ModelSettings
from influence_dag.study.places import placed_name
from influence_dag.study.validation import ValidationSettings


class PerturbationSettings(Settings):
    """Which methods also get perturbation influences (`test × train × features`)."""

    methods: tuple[str, ...] = Field(description="names of methods, of those that the study has")
    wrt: str | None = Field(
        default=None,
        description=(
            "a module of the model, such as an embedding: the derivative is in what it puts out; "
            "default: in the model's inputs"
        ),
    )
    max_bytes: Bytes = Field(
        default=parse_bytes("64GiB"), description="refuse to store a tensor above this size"
    )


class SummarySettings(Settings):
    """What `<method>/summary` keeps."""

    top: Annotated[PositiveInt, Unit("rows")] = Field(
        default=10, description="helpers and harmers kept for each test row"
    )
    self_influence: Literal["auto"] | bool = Field(
        default="auto",
        description="auto: all methods but the iterative ones, which need one solve a training row",
    )


class CurvatureSettings(Settings):
    """Whether the curvature follows the rows."""

    refresh: Literal["on_change", "pinned"] = Field(
        default="on_change",
        description="on_change: with the rows and θ | pinned: new rows meet the stored curvature",
    )


class RefreshSettings(Settings):
    """When Dagster refreshes the study by itself; off by default."""

    schedule: str | None = Field(
        default=None,
        description="a cron string such as '0 3 * * *': everything is brought up to date then",
    )
    automation: bool = Field(
        default=False,
        description="look at the files every minute and refresh what depends on a change",
    )

    @field_validator("schedule")
    @classmethod
    def _five_fields(cls, value: str | None) -> str | None:
        if value is not None and not is_cron(value):
            raise ValueError(
                f"{value[:80]!r} is not a cron string; write minute, hour, day, month and weekday, "
                "for example '0 3 * * *'"
            )
        return value


def _scheduler(value: str) -> str:
    if value != "local" and not re.fullmatch(r"(tcp|tls)://[^\s/]+:\d+", value):
        raise ValueError(f"{value!r} is not local, tcp://host:port or tls://host:port")
    return value


class ComputeSettings(Settings):
    """Where, by whom and in what precision; none of it but `dtype` changes a number."""

    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto: a GPU where torch sees one | cpu | cuda | cuda:1",
    )
    dtype: Literal["float32", "float64"] = Field(
        default="float32", description="of gradients, factors and influences; fits are in float64"
    )
    block_bytes: Bytes = Field(
        default=parse_bytes("64MiB"), description="what is computed at once on its way to the store"
    )
    batch_size: Annotated[PositiveInt, Unit("rows")] = Field(
        default=512, description="training rows differentiated at once"
    )
    executor: Literal["local", "dask"] = Field(
        default="local",
        description="local: blocks are computed in the process that stores | dask: by Dask workers",
    )
    address: Annotated[str, AfterValidator(_scheduler)] | None = Field(
        default=None,
        description=(
            "of the Dask scheduler, tcp://host:port or tls://host:port; default: local, workers on "
            "this machine that end with the run"
        ),
    )
    workers: Annotated[PositiveInt, Unit("processes")] | None = Field(
        default=None, description="of local Dask workers, with a thread each; default: one a core"
    )

    @model_validator(mode="after")
    def _of_one_executor(self) -> "ComputeSettings":
        given = {"address": self.address, "workers": self.workers}
        if self.executor == "local" and (named := [name for name in given if given[name]]):
            raise ValueError(
                f"{' and '.join(named)} say where Dask computes, and executor is local; write "
                "executor: dask, or leave them out"
            )
        if self.workers and self.address not in (None, "local"):
            raise ValueError(
                f"workers is {self.workers}, and the cluster at {self.address} has workers of its "
                "own, however many; leave out workers or address"
            )
        return self


def _known_store(value: str) -> str:
    if scheme_of(value):
        from influence_dag.store.opening import check_address

        try:
            check_address(value)
        except StoreError as error:
            raise ValueError(str(error)) from error
    return value


class StoreSettings(Settings):
    """Where the arrays go, how they are cut and how long old versions are kept."""

    path: Annotated[str, AfterValidator(path_name), AfterValidator(_known_store)] = Field(
        default="data/store",
        description=(
            "the folder with a folder for each study, from the project's; or store: path. "
            "memory://name: in the memory of the process, gone when it ends. s3://bucket/prefix: "
            "in Icechunk repositories, credentials from the environment; icechunk+file:///folder: "
            "in such repositories in a folder"
        ),
    )
    chunks: Annotated[Mapping[Which, PositiveInt] | None, Unit("rows")] = Field(
        default=None,
        description="rows a chunk along test and train; an edit costs the chunks that it touches",
    )
    keep_versions: Annotated[PositiveInt, Unit("versions")] = Field(
        default=5, description="kept of each artifact; older ones are removed"
    )
    lock_timeout: Annotated[PositiveFloat, Unit("seconds")] = Field(
        default=3600.0, description="seconds to wait for another process at the same artifact"
    )
    locks: Literal["flock", "files"] = Field(
        default="flock",
        description=(
            "files: lock files, for a file system without locks of the system; alike for all who "
            "write there"
        ),
    )
    max_relative_error: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0,
        description="influences are rounded by at most this before compression; 0: not at all",
    )


def _store_settings(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _kind_of_damping(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    return "list" if isinstance(value, list | tuple) else "number"


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
    damping: Damping | None = Field(
        default=None,
        description=(
            "λ of every solve; default: fit.weight_decay, or auto where θ is given; a list sweeps; "
            "auto: the mean |eigenvalue| of each method's curvature"
        ),
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
        StoreSettings, BeforeValidator(_store_settings, json_schema_input_type=StoreSettings | str)
    ] = StoreSettings()

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: Any) -> Any:
        return from_environment(values)

    @model_validator(mode="after")
    def _consistent(self) -> "StudySettings":
        unknown = set(self.perturbation.methods if self.perturbation else ()) - set(
            self.methods.names
        )
        if unknown:
            raise ValueError(
                f"perturbation.methods names {', '.join(sorted(unknown))}, methods has only "
                f"{', '.join(self.methods.names)}"
            )
        judged = self.validation.leave_one_out and self.validation.leave_one_out.method
        if judged and judged not in self.methods.names:
            raise ValueError(
                f"validation.leave_one_out.method names {judged}, methods has only "
                f"{', '.join(self.methods.names)}"
            )
        if self.compute.executor == "dask" and scheme_of(self.store.path) == "memory":
            raise ValueError(
                f"compute.executor is dask, and store {self.store.path} is in the memory of one "
                "process, which workers do not see; write a folder, or executor: local"
            )
        if self.damping == ():
            raise ValueError("damping is an empty list; give at least one value")
        largest = 3.4e38 if self.compute.dtype == "float32" else 1.7e308
        if beyond := [damping for damping in self.dampings if damping > largest]:
            raise ValueError(
                f"damping {beyond[0]:g} is more than {self.compute.dtype} can hold; against it "
                "every curvature is 0"
            )
        return self

    @property
    def dampings(self) -> tuple[float, ...]:
        """The λ of each solve, one or several; none where the curvature decides (`auto`)."""
        if self.damping is None:
            fit = self.model.fit
            return (fit.weight_decay,) if isinstance(fit, FitSettings) else ()
        if self.damping == "auto":
            return ()
        return self.damping if isinstance(self.damping, tuple) else (self.damping,)

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
    return settings.model_copy(
        update={
            "data": data.model_copy(update=files),
            "model": model.model_copy(update={"checkpoint": from_root(model.checkpoint)}),
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

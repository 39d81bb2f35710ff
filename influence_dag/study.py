"""The settings of one study: what a `defs.yaml` says, checked, without torch or Dagster.

Every setting that changes a number takes part in fingerprints; those that only change where
or how fast (device, block size, store path) do not.
"""

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

from influence_dag.method_settings import MethodsSettings
from influence_dag.settings import (
    Bytes,
    CallableName,
    Settings,
    callable_name,
    is_callable_name,
    parse_bytes,
)


class FeatureSettings(Settings):
    """How the feature columns become the model's input."""

    dims: tuple[str, ...] | None = Field(
        default=None, description="names of the feature dimensions; tabular default: ['feature']"
    )
    shape: tuple[PositiveInt, ...] | None = Field(
        default=None, description="shape of one sample; tabular default: (number of columns,)"
    )
    scale: float = Field(
        default=1.0,
        description="the model sees x * scale; perturbation derivatives are per scaled unit",
    )
    columns: tuple[str, ...] | None = Field(
        default=None, description="feature columns in order; default: all but id and target"
    )

    @model_validator(mode="after")
    def _dims_match_shape(self) -> "FeatureSettings":
        if self.dims is not None and self.shape is not None and len(self.dims) != len(self.shape):
            raise ValueError(
                f"dims {list(self.dims)} names {len(self.dims)} dimensions, shape "
                f"{list(self.shape)} has {len(self.shape)}"
            )
        if self.dims is not None and len(set(self.dims)) != len(self.dims):
            raise ValueError(f"dims {list(self.dims)} repeats a name")
        return self


Which = Literal["test", "train"]  # the two splits


def _only_files(names: tuple[str, ...]) -> tuple[str, ...]:
    callables = [name for name in names if is_callable_name(name)]
    if callables or not names:
        raise ValueError(
            f"a list names one file or more, not the callable {callables[0]!r}"
            if callables
            else "an empty list; name at least one file"
        )
    return names


Files = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[tuple[str, ...], AfterValidator(_only_files), Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "name"),
]


class DataSettings(Settings):
    """Where the rows come from: `.csv`, `.parquet`, `.npz`, `.zarr` or `module:callable`.

    A split may be several files, as a list or a pattern (`data/test-*.csv`, `**` for any folders
    between): their rows together, each under an id of its own.
    """

    train: Files
    test: Files
    id: str | None = Field(
        default=None,
        description="the column of row ids; without it the position is the id (not for .csv)",
    )
    target: str = "y"
    features: FeatureSettings = FeatureSettings()

    def names(self, which: Which) -> tuple[str, ...]:
        """What a split is read from: one name, or those of a list."""
        named = getattr(self, which)
        return (named,) if isinstance(named, str) else named

    def described(self, which: Which) -> str:
        """The same in words."""
        return ", ".join(self.names(which))


class FitSettings(Settings):
    r"""How the pipeline fits the model: it minimises $(1/n) \sum_i L(z_i, θ) + (w/2) ‖θ‖²$."""

    optimizer: Literal["lbfgs", "adam", "sgd"] = "lbfgs"
    max_steps: PositiveInt = 500
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="w, the L2 penalty (w/2)‖θ‖² on every trainable parameter"
    )
    seed: int = 0
    learning_rate: PositiveFloat | None = Field(
        default=None, description="adam, sgd: the step size (lbfgs searches its own)"
    )
    batch_size: PositiveInt | None = Field(
        default=None, description="adam, sgd: rows a step; default all of them"
    )
    tolerance: PositiveFloat = Field(
        default=1e-6, description="lbfgs stops when the norm of the penalised gradient is below"
    )
    warm_start: bool = Field(
        default=False,
        description="a refit starts from the stored θ, so that where it ends depends on history",
    )


def _settings_or_name(value: Any) -> str:
    return "mapping" if isinstance(value, dict | FitSettings) else "callable"


Fit = Annotated[
    Annotated[FitSettings, Tag("mapping")] | Annotated[CallableName, Tag("callable")],
    Discriminator(_settings_or_name),
]


class ModelSettings(Settings):
    """The module, its loss and where its parameters come from."""

    build: CallableName = Field(description="module:callable that returns the torch.nn.Module")
    loss: str = Field(
        default="cross_entropy",
        description=(
            "cross_entropy | mse | bce_with_logits | module:callable (output, target) -> one "
            "loss per sample"
        ),
    )
    measurement: CallableName | None = Field(
        default=None,
        description="module:callable (output, target) -> one value per test row; default: the loss",
    )
    fit: Fit | None = Field(
        default=None,
        description=(
            "fit settings, or module:callable (module, rows) that trains the module in place"
        ),
    )
    checkpoint: str | None = Field(default=None, description="a .safetensors file of the module")
    refit: Literal["on_change", "pinned"] = "on_change"

    @model_validator(mode="after")
    def _one_source_of_parameters(self) -> "ModelSettings":
        if self.fit is not None and self.checkpoint is not None:
            raise ValueError("give either `fit` or `checkpoint`, not both")
        if self.fit is None and self.checkpoint is None:
            raise ValueError(
                "say where the parameters come from: `fit: {...}`, `fit: module:callable` or "
                "`checkpoint: file.safetensors`"
            )
        if self.loss not in LOSSES:
            try:
                callable_name(self.loss)
            except ValueError as error:
                raise ValueError(
                    f"loss {self.loss!r} is neither one of {', '.join(LOSSES)} nor "
                    "'module:callable'"
                ) from error
        return self


LOSSES = ("cross_entropy", "mse", "bce_with_logits")


class PerturbationSettings(Settings):
    """Which methods also get perturbation influences (`test × train × features`)."""

    methods: tuple[str, ...]
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

    top: PositiveInt = Field(default=10, description="helpers and harmers kept for each test row")
    self_influence: Literal["auto"] | bool = Field(
        default="auto",
        description="auto: all methods but the iterative ones, which need one solve a training row",
    )


class LeaveOneOutSettings(Settings):
    """Refits without single training rows, against what the influences predict."""

    rows: PositiveInt = Field(default=50, description="training rows to leave out, drawn")
    seed: int = 0
    method: str | None = Field(default=None, description="default: the study's first method")
    tolerance: PositiveFloat = Field(
        default=1e-8, description="norm of the penalised gradient that every refit has to reach"
    )
    max_steps: PositiveInt = 200


class DatamodelsSettings(Settings):
    """Linear datamodelling score: refits on random subsets."""

    count: PositiveInt = Field(default=50, description="subsets in each of two draws")
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    dampings: tuple[PositiveFloat, ...] = Field(
        default=(), description="of the exact solves beside the methods; default: the study's"
    )
    initial_weights: Literal["same", "others"] = Field(
        default="same",
        description="where the subsets' fits start: as the full fit did, or each from its own seed",
    )
    seed: int = 0


class LabelErrorsSettings(Settings):
    """Flipped labels, to be found by self-influence."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    curvature: Literal["hessian", "gauss_newton"] = "gauss_newton"
    seed: int = 0


class ValidationSettings(Settings):
    """Which validations are artifacts of the study; each costs refits."""

    leave_one_out: LeaveOneOutSettings | None = None
    datamodels: DatamodelsSettings | None = None
    label_errors: LabelErrorsSettings | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The validations that are asked for."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class CurvatureSettings(Settings):
    refresh: Literal["on_change", "pinned"] = "on_change"


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
        if value is not None and not value.startswith("@") and len(value.split()) != 5:
            raise ValueError(
                f"{value!r} is not a cron string; write minute, hour, day, month and weekday, for "
                "example '0 3 * * *'"
            )
        return value


class ComputeSettings(Settings):
    """Where and in what precision; none of it but `dtype` changes a number."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["float32", "float64"] = "float32"
    block_bytes: Bytes = parse_bytes("64MiB")
    batch_size: PositiveInt = Field(default=512, description="training rows differentiated at once")


class StoreSettings(Settings):
    """Where the arrays go, how they are cut and how long old versions are kept."""

    path: str = "data/store"
    chunks: Mapping[Which, PositiveInt] | None = Field(
        default=None,
        description="rows a chunk along test and train; an edit costs the chunks that it touches",
    )
    keep_versions: PositiveInt = 5
    lock_timeout: PositiveFloat = Field(
        default=3600.0, description="seconds to wait for another process at the same artifact"
    )
    max_relative_error: Annotated[float, Field(ge=0, lt=0.5)] = 0.0


def _store_settings(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Damping = Annotated[
    Annotated[NonNegativeFloat, Tag("number")]
    | Annotated[tuple[NonNegativeFloat, ...], Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "number"),
]


class StudySettings(Settings):
    """One study: data, model, damping, methods, and where the results go."""

    data: DataSettings
    model: ModelSettings
    damping: Damping | None = Field(
        default=None, description="λ of every solve; default: fit.weight_decay; a list sweeps"
    )
    methods: MethodsSettings
    perturbation: PerturbationSettings | None = None
    summary: SummarySettings = SummarySettings()
    validation: ValidationSettings = ValidationSettings()
    curvature: CurvatureSettings = CurvatureSettings()
    compute: ComputeSettings = ComputeSettings()
    refresh: RefreshSettings = RefreshSettings()
    store: Annotated[
        StoreSettings, BeforeValidator(_store_settings, json_schema_input_type=StoreSettings | str)
    ] = StoreSettings()

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
        if self.damping == ():
            raise ValueError("damping is an empty list; give at least one value")
        if self.damping is None and not isinstance(self.model.fit, FitSettings):
            raise ValueError(
                "damping has no default when the pipeline does not fit the model itself; write "
                "damping: 0.01 or whatever the model's weight decay was"
            )
        return self

    @property
    def dampings(self) -> tuple[float, ...]:
        """The λ of each solve, one or several."""
        if self.damping is None:
            assert isinstance(self.model.fit, FitSettings)
            return (self.model.fit.weight_decay,)
        return self.damping if isinstance(self.damping, tuple) else (self.damping,)


class Study:
    """Settings with a name and a place: what the stages work on.

    Relative paths in the settings are relative to `root`, the project's folder.
    """

    def __init__(self, name: str, settings: StudySettings, root: Path):
        self.name, self.settings, self.root = name, settings, Path(root).resolve()

    def path(self, relative: str) -> Path:
        return self.root / relative

    @property
    def store_path(self) -> Path:
        return self.path(self.settings.store.path) / self.name

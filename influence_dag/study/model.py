"""Settings of a study's model: the module, its loss, and how it is fitted."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from influence_dag.study.base import (
    CallableName,
    Seed,
    Settings,
    Unit,
    check_named,
    path_name,
    setting,
)


class FitSettings(Settings):
    r"""How the pipeline fits the model: it minimises $(1/n) \sum_i L(z_i, θ) + (w/2) ‖θ‖²$."""

    model_config = ConfigDict(populate_by_name=True)  # `from` is a word of Python's

    optimizer: Literal["lbfgs", "adam", "sgd"] = setting(
        "lbfgs", "lbfgs, which ends at a minimum, or the steps of a training loop"
    )
    max_steps: Annotated[PositiveInt, Unit("steps")] = setting(
        500, "of the optimizer; with a minimum required, missing it is an error"
    )
    weight_decay: NonNegativeFloat = setting(
        0.0, "w, the L2 penalty (w/2)‖θ‖² on every trainable parameter"
    )
    seed: Seed = 0
    learning_rate: PositiveFloat | None = setting(
        None, "adam, sgd: the step size (lbfgs searches its own)"
    )
    batch_size: Annotated[PositiveInt | None, Unit("rows")] = setting(
        None, "adam, sgd: rows a step; default all of them"
    )
    tolerance: PositiveFloat = setting(
        1e-6, "lbfgs stops when the norm of the penalised gradient is below"
    )
    warm_start: bool = setting(
        False, "a refit starts from the stored θ, so that where it ends depends on history"
    )
    start: Literal["build", "checkpoint"] = setting(
        "build",
        "build: at what model.build makes | checkpoint: train on from model.checkpoint",
        alias="from",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> "FitSettings":
        if self.warm_start and self.start == "checkpoint":
            raise ValueError("warm_start and `from: checkpoint` are two starts; leave one out")
        of_steps = {"learning_rate": self.learning_rate, "batch_size": self.batch_size}
        given = [name for name, value in of_steps.items() if value is not None]
        if given and self.optimizer == "lbfgs":
            raise ValueError(
                f"{' and '.join(given)}: lbfgs takes all rows and searches its step; leave it out, "
                "or say optimizer: adam, or sgd"
            )
        return self


def _settings_or_name(value: Any) -> str:
    return "mapping" if isinstance(value, dict | FitSettings) else "callable"


Fit = Annotated[
    Annotated[FitSettings, Tag("mapping")] | Annotated[CallableName, Tag("callable")],
    Discriminator(_settings_or_name),
]


class ModelSettings(Settings):
    """The module, its loss and where its parameters come from."""

    build: CallableName = Field(description="module:callable that returns the torch.nn.Module")
    loss: str = setting(
        "cross_entropy",
        "cross_entropy | mse | bce_with_logits | next_token | module:callable (output, target) "
        "-> one loss per sample",
    )
    measurement: CallableName | None = setting(
        None, "module:callable (output, target) -> one value per test row; default: the loss"
    )
    fit: Fit | None = setting(
        None, "fit settings, or module:callable (module, rows) that trains the module in place"
    )
    depends_on: tuple[Annotated[str, AfterValidator(path_name)], ...] = setting(
        (),
        "files that the code opens by itself: an edit of one is an edit of the code; what else of "
        "the project it opens is refused",
    )
    checkpoint: Annotated[str, AfterValidator(path_name)] | None = setting(
        None, "a file with the module's state: .safetensors, or of torch.save (.pt .pth .bin)"
    )
    output: str | None = setting(
        None,
        "which of a dict's or tuple's outputs is the prediction, by name or position; default: "
        "logits, or the only one, where the loss is a named one",
    )
    minimum: Literal["require", "warn", "ignore"] | None = setting(
        None,
        "whether θ has to be a minimum of the training loss; default: require for "
        "`fit: {...}`, which has a tolerance, warn for a checkpoint and `fit: module:callable`",
    )
    refit: Literal["on_change", "pinned"] = setting(
        "on_change", "on_change: fit again when rows change | pinned: θ stays"
    )

    @model_validator(mode="after")
    def _one_source_of_parameters(self) -> "ModelSettings":
        if self.trains_on and self.checkpoint is None:
            raise ValueError("fit: {from: checkpoint} needs `checkpoint`, the file to start from")
        if self.fit is not None and self.checkpoint is not None and not self.trains_on:
            raise ValueError(
                "give either `fit` or `checkpoint`, not both; fit: {from: checkpoint} trains on "
                "from the checkpoint"
            )
        if self.fit is None and self.checkpoint is None:
            raise ValueError(
                "say where the parameters come from: `fit: {...}`, `fit: module:callable` or "
                "`checkpoint: file.safetensors`"
            )
        check_named(self.loss, LOSSES, "loss")
        return self

    @field_validator("output", mode="before")
    @classmethod
    def _named_or_numbered(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def own_fit(self) -> FitSettings | None:
        """How the pipeline itself fits; None where θ is another's."""
        return self.fit if isinstance(self.fit, FitSettings) else None

    @property
    def trains_on(self) -> bool:
        """Whether the fit starts from the checkpoint."""
        return self.own_fit is not None and self.own_fit.start == "checkpoint"

    @property
    def is_given(self) -> bool:
        """Whether θ is another's: a checkpoint as it is, or what code of the project trained."""
        return self.own_fit is None

    @property
    def wanted_minimum(self) -> Literal["require", "warn", "ignore"]:
        """`minimum`, or what stands for it."""
        return self.minimum or ("warn" if self.is_given else "require")


LOSSES = ("cross_entropy", "mse", "bce_with_logits", "next_token")

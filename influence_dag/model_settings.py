"""Settings of a study's model: the module, its loss, and how it is fitted."""

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from influence_dag.settings import (
    CallableName,
    Seed,
    Settings,
    callable_name,
)


class FitSettings(Settings):
    r"""How the pipeline fits the model: it minimises $(1/n) \sum_i L(z_i, θ) + (w/2) ‖θ‖²$."""

    optimizer: Literal["lbfgs", "adam", "sgd"] = "lbfgs"
    max_steps: PositiveInt = 500
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="w, the L2 penalty (w/2)‖θ‖² on every trainable parameter"
    )
    seed: Seed = 0
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
    depends_on: tuple[str, ...] = Field(
        default=(),
        description="files that the code opens by itself: an edit of one is an edit of the code",
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

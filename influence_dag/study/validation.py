"""Settings of the validations that a study asks for: refits, against what influences say."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from influence_dag.study.base import Seed, Settings, Unit, setting
from influence_dag.study.method_base import CurvatureName


class LeaveOneOutSettings(Settings):
    """Refits without single training rows, against what the influences predict."""

    rows: Annotated[PositiveInt, Unit("rows")] = setting(50, "training rows to leave out, drawn")
    seed: Seed = 0
    method: str | None = setting(None, "default: the study's first method")
    tolerance: PositiveFloat = setting(
        1e-8, "norm of the penalised gradient that every refit has to reach"
    )
    max_steps: Annotated[PositiveInt, Unit("steps")] = setting(
        200, "of a refit; one that needs more is an error"
    )


class DatamodelsSettings(Settings):
    """Linear datamodelling score: refits on random subsets."""

    count: Annotated[PositiveInt, Unit("subsets")] = setting(50, "subsets in each of two draws")
    fraction: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.5, "share of the training rows in a subset"
    )
    dampings: tuple[PositiveFloat, ...] = setting(
        (), "of the exact solves beside the methods; default: the study's"
    )
    initial_weights: Literal["same", "others"] = setting(
        "same", "where the subsets' fits start: as the full fit did, or each from its own seed"
    )
    seed: Seed = 0


class LabelErrorsSettings(Settings):
    """Flipped labels, to be found by self-influence, by loss, by neighbours, and by both views."""

    share: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.1, "share of the training labels that are replaced by others"
    )
    curvature: CurvatureName = setting(
        "gauss_newton", "the matrix in the self-influence of flipped rows"
    )
    neighbours: Annotated[NonNegativeInt, Unit("rows")] = setting(
        10, "nearest rows whose labels are compared with a row's; 0: none"
    )
    space: Literal["auto", "input", "penultimate"] = setting(
        "auto",
        "where neighbours are looked for: the inputs, or what the last linear layer takes; "
        "auto: the inputs where they are one array of real numbers",
    )
    folds: Annotated[NonNegativeInt, Unit("folds")] = setting(
        5, "refits without one fold each, for losses out of fold; 0: none"
    )
    seed: Seed = 0

    @field_validator("folds")
    @classmethod
    def _more_than_one(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold leaves no rows to fit to; take 0 (none) or 2 and more")
        return folds

    @model_validator(mode="after")
    def _neighbours_somewhere(self) -> "LabelErrorsSettings":
        if not self.neighbours and self.space != "auto":
            raise ValueError(
                f"space: {self.space} is where neighbours are looked for, and neighbours: 0 looks "
                "for none; leave one out"
            )
        return self


class ValidationSettings(Settings):
    """Which validations are artifacts of the study; each costs refits."""

    leave_one_out: LeaveOneOutSettings | None = None
    datamodels: DatamodelsSettings | None = None
    label_errors: LabelErrorsSettings | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

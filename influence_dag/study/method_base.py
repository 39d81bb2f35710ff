"""What the settings of every inverse-curvature method have, and what kind of method it is."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    NonNegativeFloat,
    Tag,
    model_validator,
)
from pydantic_core import PydanticKnownError, core_schema

from influence_dag.study.base import Settings, setting
from influence_dag.study.curvatures import CURVATURE_KINDS


class _Known:
    """One of the curvatures that there are when it is asked, as a literal would be."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_plain_validator_function(cls._checked)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> Any:
        return {"enum": list(CURVATURE_KINDS), "type": "string"}

    @staticmethod
    def _checked(value: Any) -> str:
        if isinstance(value, str) and value in CURVATURE_KINDS:
            return value
        *others, last = map(repr, CURVATURE_KINDS)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})


CurvatureName = Annotated[str, _Known]
OnFailure = Annotated[
    Literal["raise", "warn"],
    Field(description="of rows that miss the tolerance: an error | kept and marked"),
]


def _named_or_listed(value: Any) -> str:
    return "name" if isinstance(value, str) else "lists"


Blocks = Annotated[
    Annotated[Literal["full", "layer"], Tag("name")]
    | Annotated[tuple[tuple[str, ...], ...], Tag("lists")],
    Discriminator(_named_or_listed),
]


class MethodSettings(Settings):
    """What every method can be told, and what kind of method it is.

    `is_exact`: solves the whole damped system, to rounding or a tolerance. `is_iterative`: takes
    products at every solve, and can start from earlier factors. `uses_matrix`: starts from the
    stored matrix. `of_layers`: factorises a Fisher of its own, layer by layer. `is_damped`: has a
    λ at all.
    """

    is_exact: ClassVar[bool] = False
    is_iterative: ClassVar[bool] = False
    uses_matrix: ClassVar[bool] = False
    of_layers: ClassVar[bool] = False
    is_damped: ClassVar[bool] = True

    elsewhere: ClassVar[Mapping[str, str]] = {"damping": "beside `methods`"}

    curvature: CurvatureName = setting("hessian", "the matrix whose inverse is meant")
    blocks: Blocks = setting(
        "full", "full | layer | lists of parameter names: what couples blocks is left out"
    )
    block_damping: Mapping[str, NonNegativeFloat] = setting(
        {}, "λ of single blocks, by name; the study's for the others"
    )

    @model_validator(mode="after")
    def _dampings_of_blocks(self) -> "MethodSettings":
        if self.block_damping and isinstance(self.blocks, str) and self.blocks == "full":
            raise ValueError(
                "block_damping is λ of single blocks, and there is only one, of all parameters; "
                "add blocks: layer or lists of parameter names"
            )
        if not isinstance(self.blocks, str):
            known = [str(position) for position in range(len(self.blocks))]
            if unknown := sorted(set(self.block_damping) - set(known)):
                raise ValueError(
                    f"block_damping names {', '.join(unknown)}; lists are known by their position, "
                    f"here {', '.join(known)}"
                )
        return self

    @property
    def solver(self) -> dict[str, Any]:
        """The settings that the solver itself takes."""
        return self.model_dump(exclude=set(ApproximateSettings.model_fields))

    @property
    def factorization(self) -> dict[str, Any]:
        """The settings that what is stored depends on; the others are about single solves."""
        return self.model_dump(exclude=self._of_solves)

    @property
    def _of_solves(self) -> set[str]:
        return {"rtol", "atol", "maxiter", "on_failure", "block_damping"}


class ApproximateSettings(MethodSettings):
    """A method that solves an approximation of what is meant: residuals tell how far it is."""

    residuals: Literal["sample", "all"] = setting(
        "sample",
        "of the solves, each a product with all training rows | sample: where n times p is "
        "above 2^28 of some test rows, fewer by as much | all: of every test row",
    )

    @property
    def _of_solves(self) -> set[str]:
        return {*super()._of_solves, "residuals"}

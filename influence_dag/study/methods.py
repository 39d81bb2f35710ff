"""The settings of each inverse-curvature method, by the names that the solvers have."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from influence_dag.study.base import Seed, Settings, Unit, check_named, setting
from influence_dag.study.method_base import (
    ApproximateSettings,
    CurvatureName,
    MethodSettings,
    OnFailure,
)
from influence_dag.study.method_defaults import (
    ArnoldiDefaults,
    ConjugateGradientDefaults,
    DirectDefaults,
    KroneckerDefaults,
    LissaDefaults,
    NystroemDefaults,
    check_rank_is_read,
    check_seed_is_read,
)

Fisher = Literal["exact", "sampled", "empirical"]
_Model = TypeVar("_Model", bound=Settings)
DISTRIBUTIONS = ("categorical", "bernoulli", "gaussian")


class DirectSettings(MethodSettings):
    """Exact solve: Cholesky of `H + λI`, once; eigendecomposition for a list of dampings."""

    is_exact: ClassVar[bool] = True
    uses_matrix: ClassVar[bool] = True

    on_indefinite: Literal["raise", "lu", "absolute"] = setting(
        DirectDefaults.on_indefinite,
        "of negative eigenvalues: an error | as they are | by size, V(|μ| + λ)⁻¹Vᵀ",
    )


class ConjugateGradientSettings(MethodSettings):
    """Exact to a tolerance, by products alone: block conjugate gradients."""

    is_exact: ClassVar[bool] = True
    is_iterative: ClassVar[bool] = True

    rtol: PositiveFloat = setting(
        ConjugateGradientDefaults.rtol, "a row stops when its residual is below rtol times ‖b‖ …"
    )
    atol: NonNegativeFloat = setting(ConjugateGradientDefaults.atol, "… or below atol")
    maxiter: Annotated[PositiveInt | None, Unit("products")] = setting(
        ConjugateGradientDefaults.maxiter,
        "products a row; default: ten times the parameters, at least 1000",
    )
    preconditioner: Literal["none", "jacobi", "nystroem", "ekfac"] = setting(
        ConjugateGradientDefaults.preconditioner,
        "what the system is multiplied by, so that few steps do",
    )
    rank: PositiveInt = setting(
        ConjugateGradientDefaults.rank, "of the Nyström or Jacobi preconditioner"
    )
    search: Literal["own", "shared"] = Field(
        default=ConjugateGradientDefaults.search,
        description="a row's directions: its own, or those of all rows of a block, which takes "
        "fewer products and depends on the block within the tolerance",
        exclude_if=lambda search: search == "own",  # as studies before it were stored
    )
    seed: Seed = ConjugateGradientDefaults.seed
    on_failure: OnFailure = ConjugateGradientDefaults.on_failure

    @model_validator(mode="after")
    def _rank_of_something(self) -> "ConjugateGradientSettings":
        check_rank_is_read(self.preconditioner, self.rank)
        return self


class LissaSettings(MethodSettings):
    """A Neumann series (Agarwal et al. 2017), with all rows or with seeded mini-batches."""

    is_iterative: ClassVar[bool] = True

    maxiter: Annotated[PositiveInt, Unit("steps")] = setting(
        LissaDefaults.maxiter, "steps of the series"
    )
    dampen: Annotated[float, Field(ge=0, lt=1)] = setting(
        LissaDefaults.dampen, "share of h that a step forgets: adds dampen times scale to λ"
    )
    scale: PositiveFloat | None = setting(
        LissaDefaults.scale,
        "what H is divided by, above its largest eigenvalue; default: estimated",
    )
    rtol: PositiveFloat = setting(
        LissaDefaults.rtol, "a row is converged when a step changes it by at most this share"
    )
    batch_size: Annotated[PositiveInt | None, Unit("rows")] = setting(
        LissaDefaults.batch_size, "rows of a mini-batch, drawn anew for each step; default: all"
    )
    seed: Seed = LissaDefaults.seed
    on_failure: OnFailure = LissaDefaults.on_failure

    @model_validator(mode="after")
    def _seed_of_draws(self) -> "LissaSettings":
        if self.batch_size is None and self.seed != LissaDefaults.seed:
            raise ValueError(
                f"seed {self.seed} is of mini-batches, and without batch_size none is drawn; add "
                "batch_size or leave it out"
            )
        return self


class ArnoldiSettings(ApproximateSettings):
    """The eigenpairs of largest absolute value (Schioppa et al. 2022)."""

    rank: Annotated[PositiveInt, Unit("eigenpairs")] = setting(
        ArnoldiDefaults.rank, "eigenpairs that are kept"
    )
    tol: PositiveFloat = setting(
        ArnoldiDefaults.tol, "residual at which a pair is found, of the largest eigenvalue"
    )
    complement: Literal["drop", "damping"] = setting(
        ArnoldiDefaults.complement, "what becomes of the rest: dropped as published, or kept as λ"
    )
    max_products: Annotated[PositiveInt | None, Unit("products")] = setting(
        ArnoldiDefaults.max_products,
        "a search that takes more has failed; default: 40 an eigenpair",
    )
    on_device: bool = setting(
        ArnoldiDefaults.on_device, "small eigenproblems on compute.device, not on the processor"
    )
    seed: Seed = ArnoldiDefaults.seed
    on_failure: OnFailure = ArnoldiDefaults.on_failure

    @property
    def _of_solves(self) -> set[str]:
        # Pairs that missed the tolerance are kept under "warn" and must not serve "raise".
        return {"on_device", "block_damping", "residuals"}


class NystroemSettings(ApproximateSettings):
    """A randomised low-rank sketch (Frangella, Tropp & Udell 2021)."""

    rank: Annotated[PositiveInt, Unit("eigenpairs")] = setting(
        NystroemDefaults.rank, "directions of the sketch; what they leave out is λ alone"
    )
    seed: Seed = NystroemDefaults.seed
    power_iterations: int = setting(
        NystroemDefaults.power_iterations,
        "products with H before the sketch, for flat spectra",
        ge=0,
    )


class KroneckerSettings(ApproximateSettings):
    """Kronecker-factored Fisher of each layer, with (`ekfac`) or without corrected eigenvalues."""

    of_layers: ClassVar[bool] = True

    curvature: CurvatureName = setting(
        "gauss_newton", "the matrix that residuals are measured with"
    )
    fisher: Fisher = setting(
        KroneckerDefaults.fisher, "exact | sampled labels | empirical (data labels)"
    )
    seed: Seed = KroneckerDefaults.seed
    distribution: str | None = setting(
        None,
        "what sampled labels are drawn from: categorical | bernoulli | gaussian | "
        "module:callable (output, target, generator) -> target; default: that of the loss",
    )

    @model_validator(mode="after")
    def _drawn_from(self) -> "KroneckerSettings":
        check_seed_is_read(self.fisher, self.seed)
        if self.distribution is None:
            return self
        if self.fisher != "sampled":
            raise ValueError(
                f"distribution is what labels are drawn from, and fisher: {self.fisher} draws "
                "none; add fisher: sampled or leave it out"
            )
        check_named(self.distribution, DISTRIBUTIONS, "distribution")
        return self

    @property
    def drawn_by(self) -> str | None:
        """The callable that draws labels, by name; None where none does."""
        return None if self.distribution in (None, *DISTRIBUTIONS) else self.distribution


class IdentitySettings(MethodSettings):
    """Dot products of gradients: the baseline."""

    is_damped: ClassVar[bool] = False

    @model_validator(mode="after")
    def _neither_damping_nor_curvature(self) -> "IdentitySettings":
        if self.curvature != type(self).model_fields["curvature"].default:
            raise ValueError("identity takes the place of a curvature and has none; leave it out")
        if self.block_damping:
            raise ValueError("identity has no damping, of blocks or of all; leave it out")
        return self


class MethodsSettings(Settings):
    """The inverse-curvature methods to run, by name."""

    direct: DirectSettings | None = None
    cg: ConjugateGradientSettings | None = None
    lissa: LissaSettings | None = None
    arnoldi: ArnoldiSettings | None = None
    nystroem: NystroemSettings | None = None
    ekfac: KroneckerSettings | None = None
    kfac: KroneckerSettings | None = None
    identity: IdentitySettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: {} if options is None else options for name, options in value.items()}
        return value

    @model_serializer(mode="wrap")
    def _named_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Written out, a method that is not asked for would read as one with its defaults.
        return {name: options for name, options in handler(self).items() if options is not None}

    @model_validator(mode="after")
    def _at_least_one(self) -> "MethodsSettings":
        if not self.names:
            raise ValueError(f"name at least one method of {', '.join(type(self).model_fields)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def drawn_by(self) -> dict[str, str]:
        """The callables that draw labels, by the field that names them."""
        asked = {name: self[name] for name in self.names}
        return {
            f"methods.{name}.distribution": each.drawn_by
            for name, each in asked.items()
            if isinstance(each, KroneckerSettings) and each.drawn_by
        }

    def __getitem__(self, method: str) -> MethodSettings:
        return getattr(self, method)


def add_method(name: str, settings: type[MethodSettings]) -> None:
    """Let studies name a method: `methods: {name: {…}}` with these settings.

    What factorises and solves is registered under the same name (`influence_dag.solvers`).
    Raises `ValueError` for a name that is taken.
    """
    if name in MethodsSettings.model_fields:
        raise ValueError(f"the method {name!r} exists already")
    # Assigned to the mapping, as pydantic reads fields from there when it builds a model anew.
    MethodsSettings.model_fields[name] = FieldInfo(
        annotation=cast(Any, settings | None), default=None
    )
    rebuilt()


def rebuilt() -> None:
    """Build what has the settings of methods among its fields anew, by the fields of now."""
    for model in (MethodsSettings, *_BUILT_ON_METHODS):
        model.model_rebuild(force=True)


_BUILT_ON_METHODS: list[type[Settings]] = []
"""Settings that have those of methods among them, innermost first."""


def built_on_methods(model: type[_Model]) -> type[_Model]:
    """Class decorator: settings that are built anew when a method is added."""
    _BUILT_ON_METHODS.append(model)
    return model

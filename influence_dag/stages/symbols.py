"""The letters of the formulas that stored arrays show, and what each stands for. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from influence_dag.study.curvatures import CURVATURE_KINDS
from influence_dag.study.methods import (
    ArnoldiSettings,
    IdentitySettings,
    KroneckerSettings,
    LissaSettings,
    MethodSettings,
    NystroemSettings,
)

if TYPE_CHECKING:
    from influence_dag.study.study import StudySettings

_FISHER = {
    "exact": "the exact Fisher G",
    "sampled": "the Fisher of labels drawn from the model",
    "empirical": "the empirical Fisher, of the data's labels",
}


def matrix_formula(kind: str, weights: str = "none") -> str:
    """Of which rows the matrix is the mean, and of what.

    >>> matrix_formula("hessian")
    'H = (1/n_train) Σ_i ∇²L(z_i, θ)'
    """
    known = CURVATURE_KINDS[kind]
    if weights == "none":
        return f"{known.symbol} = (1/n_train) Σ_i {known.term}"
    return f"{known.symbol} = (1/weight_sum) Σ_i w_i {known.term}"


def gradients_formula(weights: str = "none") -> str:
    """Of the stored per-sample gradients, which have the rows' weights as factors."""
    weight = "" if weights == "none" else "w_i "
    return (
        f"{weight}∇θ L(z_i, θ); a linear layer's part is output_gradients ⊗ activations (1 "
        "appended for the bias)"
    )


@dataclass(frozen=True)
class Symbols:
    """The system that one method solves; `weights` names the column of row weights, or `none`."""

    settings: "StudySettings"
    method: str
    weights: str = "none"

    @property
    def asked(self) -> MethodSettings:
        return self.settings.methods[self.method]

    @property
    def is_dot_product(self) -> bool:
        """Whether no curvature takes part."""
        return isinstance(self.asked, IdentitySettings)

    @property
    def tested(self) -> str:
        """What of a test row is differentiated: `L`, its loss, or `m`, the measurement."""
        return "m" if self.settings.model.measurement else "L"

    @property
    def what(self) -> str:
        return "the measurement m of the test row" if self.tested == "m" else "the test loss"

    @property
    def count(self) -> str:
        """What influences are divided by, to be changes."""
        return "n_train" if self.weights == "none" else "weight_sum"

    @property
    def test(self) -> str:
        return f"∇{self.tested}(z_test)"

    def train(self, row: str = "z_train") -> str:
        """The gradient of a training row, times its weight where rows have weights."""
        weight = "" if self.weights == "none" else "w_train "
        return f"{weight}∇L({row})"

    @property
    def matrix(self) -> str:
        """The letter of what is damped and inverted."""
        letter = CURVATURE_KINDS[self.asked.curvature].symbol
        if isinstance(self.asked, ArnoldiSettings | NystroemSettings):
            return f"{letter}_k"
        letter = "F" if isinstance(self.asked, KroneckerSettings) else letter
        letter = f"{letter}_B" if self._in_blocks else letter
        return f"|{letter}|" if getattr(self.asked, "on_indefinite", "") == "absolute" else letter

    @property
    def _in_blocks(self) -> bool:
        return self.asked.blocks != "full"

    @property
    def shift(self) -> str:
        """What is added to the matrix: `λI`, or the λ of each block on its diagonal."""
        damping = "Λ" if self.asked.block_damping else "λI"
        dampen = isinstance(self.asked, LissaSettings) and self.asked.dampen
        return f"{damping} + d s I" if dampen else damping

    @property
    def system(self) -> str:
        """`H + λI`."""
        return f"{self.matrix} + {self.shift}"

    @property
    def inverse(self) -> str:
        """`(H + λI)⁻¹ `, or nothing where no curvature takes part."""
        if self.is_dot_product:
            return ""
        projected = isinstance(self.asked, ArnoldiSettings) and self.asked.complement == "drop"
        return f"{'P ' if projected else ''}({self.system}){self._power} "

    @property
    def _power(self) -> str:
        """−1, or + (of Moore and Penrose) where eigenvalues that are zero are left out."""
        known = (*self.settings.dampings, *self.asked.block_damping.values())
        singular = 0 in known and not isinstance(self.asked, LissaSettings | KroneckerSettings)
        return "⁺" if singular else "⁻¹"

    @cached_property
    def symbols(self) -> str:
        """What the letters of the formulas stand for, one after the other."""
        return "; ".join(self._symbols())

    def _symbols(self) -> Iterator[str]:
        yield f"L = {self.settings.model.loss}"
        if measurement := self.settings.model.measurement:
            yield f"m = {measurement}"
        if self.weights != "none":
            yield f"w = {self.weights}, the rows' weights"
        if self.is_dot_product:
            return
        yield matrix_formula(self.asked.curvature, self.weights)
        yield from self._approximation()
        if self._power == "⁺":
            yield "⁺ = the inverse where eigenvalues are above rounding, 0 where they are not"
        yield (
            "Λ = the λ of each parameter's block (damping)"
            if self.asked.block_damping
            else ("λ = damping")
        )
        if isinstance(self.asked, LissaSettings) and self.asked.dampen:
            scale = self.asked.scale or "just above the largest eigenvalue, estimated"
            yield f"d = {self.asked.dampen:g}, s = {scale}"

    def _approximation(self) -> Iterator[str]:
        asked, letter = self.asked, CURVATURE_KINDS[self.asked.curvature].symbol
        if isinstance(asked, ArnoldiSettings | NystroemSettings):
            yield from self._low_rank(letter)
            return
        if isinstance(asked, KroneckerSettings):
            kept = "eigenvalues corrected" if self.method == "ekfac" else "each layer's G_l ⊗ A_l"
            if asked.fisher == "exact" and letter == "H":
                yield matrix_formula("gauss_newton", self.weights)
            yield f"F = {_FISHER[asked.fisher]} in Kronecker factors of each layer, {kept}"
            letter = "F"
        if self._in_blocks:
            yield f"{letter}_B = {letter} without what couples the blocks of parameters"
        if self.matrix.startswith("|"):
            inside = self.matrix.strip("|")
            yield f"{self.matrix} = {inside} with the absolute values of its eigenvalues"

    def _low_rank(self, letter: str) -> Iterator[str]:
        each = f"of each block of {letter} alone, " if self._in_blocks else ""
        rank = getattr(self.asked, "rank", None)
        if isinstance(self.asked, NystroemSettings):
            yield f"{letter}_k = {each}the Nyström approximation of {letter} of rank {rank}"
            return
        yield f"{letter}_k = {each}the {rank} eigenpairs of {letter} of largest |eigenvalue|"
        if self.asked.complement == "drop":  # pyright: ignore[reportAttributeAccessIssue]
            yield "P = the projection on these eigenvectors"

    @property
    def curvature(self) -> str:
        """Of the attributes: the matrix that is meant."""
        if self.is_dot_product:
            return "none"
        if isinstance(self.asked, KroneckerSettings):
            return f"{self.asked.fisher} Fisher in Kronecker factors"
        return self.asked.curvature

    def damping(self, blocks: tuple[str, ...], dampings: tuple[float, ...]) -> Any:
        """Of the attributes: λ, the λs of a sweep, those of each block by name, or none.

        `dampings` are those of the method's solves, an automatic one settled.
        """
        if self.is_dot_product:
            return "none"
        of_study = dampings[0] if len(dampings) == 1 else list(dampings)
        if not self.asked.block_damping:
            return of_study
        return {block: self.asked.block_damping.get(block, of_study) for block in blocks}

    @property
    def damping_axis(self) -> str:
        """What the coordinate of a sweep says."""
        if self.is_dot_product:
            return "λ of the study's other methods; plays no part here"
        if self.asked.block_damping:
            return "λ of the blocks that have none of their own (attribute `damping`)"
        return f"λ of {self.system}"

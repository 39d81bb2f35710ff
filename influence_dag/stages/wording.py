"""What stored arrays say about themselves, made from the settings they were computed with.

Formulas are of products, powers of −1 and transposes of symbols, so that a reader (and a test) can
evaluate them; `symbols` says what each stands for. No torch: the graph's descriptions come from
here as well.
"""

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
from influence_dag.study.study import StudySettings

if TYPE_CHECKING:
    from influence_dag.stages.workbench import Workbench

NO_MINIMUM = "θ is no minimum"  # how `assumes` begins, in attributes, where it is none

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
class Wording:
    """The words for one method's arrays; `weights` names the column of row weights, or `none`.

    >>> settings = {"data": {"train": "a.csv", "test": "b.csv", "target": "y"},
    ...             "model": {"build": "m:b", "fit": {}}, "methods": {"direct": {}}, "damping": 0.1}
    >>> Wording(StudySettings.model_validate(settings), "direct").influences()["formula"]
    '∇L(z_test)ᵀ (H + λI)⁻¹ ∇L(z_train)'
    """

    settings: StudySettings
    method: str
    weights: str = "none"

    @property
    def asked(self) -> MethodSettings:
        return self.settings.methods[self.method]

    @property
    def is_dot_product(self) -> bool:
        """Whether no curvature takes part."""
        return isinstance(self.asked, IdentitySettings)

    # Symbols

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

    # Arrays

    def influences(self) -> dict[str, str]:
        return {
            "formula": f"{self.test}ᵀ {self.inverse}{self.train()}",
            "sign": self._sign_of_influences,
            "units": f"{self._unit}; not divided by {self.count}",
            "long_name": f"influence of the training row on {self.what}",
        }

    def block_influences(self) -> dict[str, str]:
        about = self.influences()
        return {
            "formula": f"{about['formula']}, the terms of one block of parameters",
            "sign": "as the influences, which are the sum over blocks",
            "units": about["units"],
        }

    def position_influences(self) -> dict[str, str]:
        about = self.influences()
        return {
            "formula": f"{about['formula']}, the terms of one position of the training row",
            "sign": "as the influences, which are the sum over positions",
            "units": about["units"],
            "normalisation": "a term has the share in its row's loss that the loss gives it (1/k "
            "of a mean over k labelled positions); 0 where the target is ignored",
        }

    @property
    def _sign_of_influences(self) -> str:
        if self.is_dot_product:
            return (
                f"positive: {self._helps}; a gradient step of size η on it alone changes "
                f"{self.what} by about −η I"
            )
        return (
            f"positive: {self._helps}; leaving it out changes {self.what} by about +I/{self.count}"
        )

    @property
    def _helps(self) -> str:
        if self.tested == "m":
            return "the training row lowers m of the test row"
        return "the training row helps the test row"

    @property
    def _unit(self) -> str:
        """Of the influences: those of what is tested, or of a product of two gradients."""
        tested = "measurement" if self.tested == "m" else "loss"
        return f"{tested} · loss / parameter²" if self.is_dot_product else tested

    def factors(self) -> dict[str, str]:
        tested = "measurement" if self.tested == "m" else "loss"
        units = f"{tested} / parameter" if self.is_dot_product else "parameter"
        if self.tested == "m" and not self.is_dot_product:
            units = "parameter · measurement / loss"
        formula = f"{self.inverse}∇θ {self.tested}(z_test)"
        return {"formula": formula, "units": units, "long_name": "influence factors"}

    def residual(self) -> str:
        """The system is that of the matrix itself, also where an approximation of it is solved."""
        if self.is_dot_product:
            return "0: s = b is taken as it is, and no system is solved"
        letter = CURVATURE_KINDS[self.asked.curvature].symbol + ("_B" if self._in_blocks else "")
        letter = self.matrix if self.matrix.startswith("|") else letter
        return f"relative residual ‖({letter} + {self.shift}) s − b‖ / ‖b‖"

    def perturbation(self, unit: str, moved: str, point: str = "x") -> dict[str, str]:
        """`point` is what is differentiated in: the input x, or a, the output of a module."""
        at = f"({point}_train, y_train)" if point == "x" else f"z_train; {point}_train"
        return {
            "formula": f"∂/∂{point}_train ( {self.test}ᵀ {self.inverse}{self.train(at)} )",
            "sign": self._sign_of_moves(moved),
            "units": f"{self._unit} per unit of {unit}; not divided by {self.count}",
            "long_name": f"influence of each {moved} of the training row on {self.what}",
        }

    def _sign_of_moves(self, moved: str) -> str:
        helps = "more of it lowers m" if self.tested == "m" else "more of it helps"
        if self.is_dot_product:
            return (
                f"moving {moved} f of the training row by ε changes by about −η ε P what a "
                f"gradient step of size η on the row does to {self.what}: positive, {helps}"
            )
        return (
            f"moving {moved} f of the training row by ε changes {self.what} by about "
            f"−ε P / {self.count}: positive, {helps}"
        )

    def self_influence(self) -> dict[str, str]:
        unit = "loss² / parameter²" if self.is_dot_product else "loss"
        own = self.train("z_i").replace("w_train", "w_i")
        return {
            "formula": f"∇L(z_i)ᵀ {self.inverse}{own}",
            "sign": "large: the model leans on this row alone, as it does on mislabelled ones",
            "units": f"{unit}; not divided by {self.count}",
            "long_name": "influence of the training row on its own loss",
        }

    def parameter_influences(self) -> dict[str, str]:
        unit = "loss / parameter" if self.is_dot_product else "parameter"
        return {
            "formula": f"{self.inverse}{self.train()}",
            "sign": self._sign_of_parameters,
            "units": f"{unit}; not divided by {self.count}",
        }

    @property
    def _sign_of_parameters(self) -> str:
        if self.is_dot_product:
            return "a gradient step of size η on the training row moves the parameters by −η of it"
        return f"leaving out the training row moves the parameters by about +1/{self.count} of it"

    def parameter_influence_norm(self) -> dict[str, str]:
        about = self.parameter_influences()
        formula = about["formula"].replace("_train", "_i")
        return {
            "formula": f"‖{formula}‖",
            "sign": "how far the parameters move: " + self._sign_of_parameters,
            "units": about["units"],
            "long_name": "length of the training row's parameter influence",
        }

    def summary(self) -> dict[str, dict[str, str]]:
        """Of each array of a summary; a training row helps or harms, or lowers or raises m."""
        if self.tested == "m":
            most, least = "that lower m most", "that raise m most"
            on_the_whole = "positive, the training row lowers m on the whole"
        else:
            most, least = "that help most", "that harm most"
            on_the_whole = "positive, the training row helps on the whole"
        named = {
            "train_sum": f"sum over test rows: {on_the_whole}",
            "train_abs_mean": "mean absolute influence over test rows",
            "blocks": (
                "what a block of the influences leaves to be merged, of each test row: sum, sum of "
                "absolute values, its largest influences, its smallest, then the slots of both"
            ),
            "test_sum": "sum over training rows",
            "test_abs_mean": "mean absolute influence over training rows",
            "top_train": f"places on the train axis of the training rows {most}, strongest first",
            "top_influence": "their influences",
            "bottom_train": (
                f"places on the train axis of the training rows {least}, strongest first"
            ),
            "bottom_influence": "their influences",
        }
        about = {name: {"long_name": text} for name, text in named.items()}
        solves = {
            "self_influence": self.self_influence(),
            "parameter_influence_norm": self.parameter_influence_norm(),
        }
        return about | solves


def wording_of(bench: "Workbench", method: str) -> Wording:
    """The words for a method's arrays in a study at work, row weights as its dataset has them."""
    weights = bench.require("dataset").attrs.get("weights", "none")
    return Wording(bench.settings, method, weights)

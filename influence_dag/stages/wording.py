"""What stored arrays say about themselves, made from the settings they were computed with.

Formulas are of products, powers of −1 and transposes of symbols, so that a reader (and a test) can
evaluate them; `symbols` says what each stands for. No torch: the graph's descriptions come from
here as well.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from influence_dag.stages.symbols import Symbols
from influence_dag.study.curvatures import CURVATURE_KINDS

if TYPE_CHECKING:
    from influence_dag.stages.workbench import Workbench

NO_MINIMUM = "θ is no minimum"  # how `assumes` begins, in attributes, where it is none


@dataclass(frozen=True)
class Wording(Symbols):
    """The words for one method's arrays; `weights` names the column of row weights, or `none`.

    >>> from influence_dag.study.study import StudySettings
    >>> settings = {"data": {"train": "a.csv", "test": "b.csv", "target": "y"},
    ...             "model": {"build": "m:b", "fit": {}}, "methods": {"direct": {}}, "damping": 0.1}
    >>> Wording(StudySettings.model_validate(settings), "direct").influences()["formula"]
    '∇L(z_test)ᵀ (H + λI)⁻¹ ∇L(z_train)'
    """

    def influences(self) -> dict[str, str]:
        return {
            "formula": f"{self.test}ᵀ {self.inverse}{self.train()}",
            "sign": self._sign_of_influences,
            "units": f"{self._unit}; not divided by {self.count}",
            "long_name": f"influence of the training row on {self.what}",
        }

    def block_influences(self) -> dict[str, str]:
        return self._terms_of("block of parameters", "blocks")

    def position_influences(self) -> dict[str, str]:
        return self._terms_of("position of the training row", "positions") | {
            "normalisation": "a term has the share in its row's loss that the loss gives it (1/k "
            "of a mean over k labelled positions); 0 where the target is ignored"
        }

    def _terms_of(self, one: str, all_of_them: str) -> dict[str, str]:
        about = self.influences()
        return {
            "formula": f"{about['formula']}, the terms of one {one}",
            "sign": f"as the influences, which are the sum over {all_of_them}",
            "units": about["units"],
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

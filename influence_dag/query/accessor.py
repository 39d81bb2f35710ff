"""Questions to an influence array, as xarray's accessor `.idag`."""

from collections.abc import Iterable

import numpy as np
import xarray as xr

from influence_dag.errors import StoreError
from influence_dag.query.holes import COUNTED, numpy_text
from influence_dag.query.rows import check_k, rows_named


@xr.register_dataarray_accessor("idag")
class InfluenceAccessor:
    """Questions to an influence array: `influences.sel(test="test-0003").idag.top_k(5)`."""

    def __init__(self, array: xr.DataArray):
        self._array = array

    def top_k(self, k: int = 10) -> xr.DataArray:
        """The `k` most helpful training rows (proponents), strongest first.

        One test row: dims `(train,)`, in order of influence. Several: dims `(…, rank)`, with the
        training rows' ids in the coordinate `train (…, rank)`.
        """
        return self._ranked(k, largest=True)

    def bottom_k(self, k: int = 10) -> xr.DataArray:
        """The `k` most harmful training rows (opponents), strongest first; as `top_k`."""
        return self._ranked(k, largest=False)

    def by_label(self) -> xr.DataArray:
        """Mean influence of the training rows of each label, dims `(…, train_label)`."""
        if "train_label" not in self._array.coords:
            raise StoreError(
                "these training rows have no labels: the target is not one number a row"
            )
        labels = self._array.coords["train_label"]
        values = numpy_text(labels.values) if labels.dtype.kind in "TO" else labels.values
        named = self._array.assign_coords(train_label=("train", values, labels.attrs))
        holes = named.coords.get("train_valid")  # of an array that plain xarray opened
        if holes is not None:
            named = named.isel(train=np.flatnonzero(holes.values))
        return named.groupby("train_label").mean(dim="train")

    def influence_of(self, rows: Iterable[object]) -> xr.DataArray:
        """Influence of a group of training rows, named by their ids: the sum of theirs, `(test,)`.

        Leaving out all of them changes the test loss by about `+1/n` of it, which leaves aside
        what the rows do to one another (`idag.to_loo()` divides). NaN where one of theirs is.
        """
        names = rows_named(self._array, "train", rows)
        with xr.set_options(keep_attrs=True):
            group = self._array.sel(train=names).sum("train", skipna=False)
        told = f"influence of {len(names)} training rows together on the test loss"
        return group.assign_attrs(long_name=told)

    def to_loo(self) -> xr.DataArray:
        r"""Change of the test loss on leaving the training row out, to first order.

        $$ \Delta L_j \approx + I_{ji} / n $$

        `n` is the number of training rows, or the sum of their weights. Positive: without the row
        the test loss is larger. With a `measurement`, the change of that.
        """
        divisor = self._divisor("to_loo")
        told = "change of the test loss on leaving the training row out, to first order"
        changes = (self._array / divisor).rename("leave_one_out")
        changes.attrs = self._about() | {"long_name": told, "sign": "positive: it grows without it"}
        changes.attrs["units"] = self._array.attrs["units"].partition(";")[0]
        changes.attrs["formula"] = f"{self._array.attrs['formula']} / {divisor:g}"
        return changes

    def to_koh_liang(self) -> xr.DataArray:
        r"""The same influences with the sign of Koh & Liang (2017), eq. 2: positive harms.

        $$ I_{up,loss}(z_i, z_j) = - \nabla L_j^\top (H + \lambda I)^{-1} \nabla L_i $$
        """
        self._divisor("to_koh_liang")
        influences = (-self._array).rename("koh_liang_influences")
        sign = "positive: up-weighting the training row raises the test loss (Koh & Liang 2017)"
        influences.attrs = self._about() | {"sign": sign, "units": self._array.attrs["units"]}
        influences.attrs["formula"] = f"−{self._array.attrs['formula']}"
        return influences

    def per_unit(self) -> xr.DataArray:
        """Perturbation influences per unit of the file's columns, of a standardised input.

        Stored they are per unit of what the model sees: moving the feature by ε of the column's own
        unit changes the test loss by about `-ε / n` times these.
        """
        if "per" in self._array.attrs:
            raise StoreError(f"per_unit: these are per {self._array.attrs['per']} already")
        if "feature_unit" not in self._array.coords:
            raise StoreError(
                "per_unit is for perturbation influences of a study with features: {standardise: "
                "true}; without it the model sees the columns times `scale`"
            )
        with xr.set_options(keep_attrs=True):
            derivatives = self._array / self._array.coords["feature_unit"]
        converted = derivatives.drop_vars("feature_unit")
        return converted.assign_attrs(per="unit of the file's column")

    @property
    def self_influence(self) -> xr.DataArray:
        """`∇L(z_i)ᵀ (H + λI)⁻¹ ∇L(z_i)` of each training row, where it was computed."""
        if "self_influence" not in self._array.coords:
            raise StoreError(
                "self-influence is not stored for this method; "
                "set `summary: {self_influence: true}` in the study and materialise its summary"
            )
        return self._array.coords["self_influence"]

    def _about(self) -> dict[str, str]:
        """Attributes that stay true: without what influences are divided by, nothing is twice."""
        kept = ("formula", "long_name", "method")
        return {name: self._array.attrs[name] for name in kept if name in self._array.attrs}

    def _divisor(self, asked: str) -> float:
        """What influences are divided by, to be changes of the test loss."""
        about = self._array.attrs
        if any(name not in about for name in (*COUNTED, "units", "formula")):
            seen = self._array.name or "this array"
            raise StoreError(
                f"{asked} is for influences as `open_study` has them, and {seen} does not say how "
                "many rows they are of (attribute weight_sum): converted already, or not influences"
            )
        if "parameter²" in about["units"]:
            raise StoreError(
                f"{asked}: these are products of gradients ({about['formula']}), which say nothing "
                "of leaving rows out; take a method with a curvature"
            )
        return float(about["weight_sum"])

    def _ranked(self, k: int, *, largest: bool) -> xr.DataArray:
        array = self._array
        if "train" not in array.dims:
            raise StoreError(
                f"top_k ranks along 'train', which is not among the dimensions {array.dims}"
            )
        check_k(k)
        values = array.transpose(..., "train").compute()
        scores = np.asarray(values.values, np.float64)  # small integers have no negative of all
        order = np.argsort(-scores if largest else scores, axis=-1, kind="stable")[..., :k]
        if values.ndim == 1:
            return values.isel(train=order)
        rank = xr.Variable((*values.dims[:-1], "rank"), order)
        return values.isel(train=rank)


def strongest(row: xr.DataArray, k: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Of one test row the `k` training rows that help it most, and the `k` that harm it most.

    Fewer where fewer have that sign, unlike `top_k`, which ranks whatever there is.
    """
    helps, harms = row.idag.top_k(k), row.idag.bottom_k(k)
    return helps[helps.values > 0], harms[harms.values < 0]

"""The Hessian, and what each method makes of it: a factorisation kept as plain arrays."""

from collections.abc import Callable

import numpy as np
import torch

from influence_dag.curvature import Curvature, DenseCurvature, Hessian
from influence_dag.solvers import Factorization, Method, build
from influence_dag.stages.base import Result, Update, Whole, Workbench, refresh_whole
from influence_dag.stages.model import load_objective, load_rows, model_key
from influence_dag.store import Version
from influence_dag.store.fingerprints import fingerprint

HESSIAN = "hessian"
FORMULA = 1
LARGEST_SPECTRUM = 6000  # parameters up to which all eigenvalues are computed (p³ work)


def refresh_hessian(bench: Workbench) -> Update:
    """`H = (1/n) Σ ∇²L(z_i, θ)` over the training rows, exact, float64, with its eigenvalues."""
    train = bench.axis("dataset", "train")
    settings_key = fingerprint(HESSIAN, FORMULA, model_key(bench))
    key = fingerprint(settings_key, train.fingerprint)

    def produce() -> Whole:
        hessian = Hessian(
            load_objective(bench),
            load_rows(bench, train),
            batch_size=bench.settings.compute.batch_size,
        )
        matrix = hessian.dense_sum(hessian.rows) / len(hessian.rows)
        matrix = (matrix + matrix.T) / 2
        arrays: dict[str, Result] = {
            "hessian": (
                ("param", "param_t"),
                matrix.cpu().numpy(),
                {"formula": "(1/n) Σ_i ∇²L(z_i, θ)"},
            )
        }
        info = {"parameters": hessian.size, "n_train": train.count}
        if hessian.size <= LARGEST_SPECTRUM:
            eigenvalues = torch.linalg.eigvalsh(matrix)
            arrays["eigenvalues"] = (
                ("rank",),
                eigenvalues.flip(0).cpu().numpy(),
                {"long_name": "eigenvalues, largest first"},
            )
            info |= {
                "largest_eigenvalue": float(eigenvalues[-1]),
                "smallest_eigenvalue": float(eigenvalues[0]),
            }
        return Whole(arrays, _attrs(bench, settings_key, train.count), info)

    return refresh_whole(bench, HESSIAN, key, produce, reusable=_pinned(bench, settings_key))


def _attrs(bench: Workbench, settings_key: str, n_train: int, **extra) -> dict:
    return bench.attributes(
        settings_key=settings_key,
        n_train=n_train,
        model_data_version=bench.require("model").data_version,
        **extra,
    )


def _pinned(bench: Workbench, settings_key: str) -> Callable[[Version], bool]:
    pinned = bench.settings.curvature.refresh == "pinned"
    return lambda version: pinned and version.attrs.get("settings_key") == settings_key


# --- one method's factorisation ---------------------------------------------------------


def artifact(method: str) -> str:
    return f"{method}/curvature"


def uses_hessian(method: str) -> bool:
    """True for methods that start from the stored Hessian rather than from products with it."""
    return method == "direct"


def method_settings(bench: Workbench, method: str) -> dict:
    return getattr(bench.settings.methods, method).model_dump()


def build_method(bench: Workbench, method: str) -> Method:
    settings = method_settings(bench, method)
    dampings = bench.settings.dampings
    if method == "direct" and len(dampings) == 1:
        settings["damping"] = dampings[0]
    return build(method, settings)


def load_curvature(bench: Workbench, method: str) -> Curvature:
    """What a method works on: the stored Hessian, or products over the training rows."""
    if uses_hessian(method):
        matrix = torch.from_numpy(np.asarray(bench.require(HESSIAN).array("hessian")[...]))
        return DenseCurvature(matrix.to(bench.device))
    train = bench.axis("dataset", "train")
    return Hessian(
        load_objective(bench), load_rows(bench, train), batch_size=bench.settings.compute.batch_size
    )


def refresh(bench: Workbench, method: str) -> Update:
    """The expensive half of a method, stored: a factor, an eigenbasis, a preconditioner."""
    train = bench.axis("dataset", "train")
    fitted = factorization_settings(bench, method)
    settings_key = fingerprint(artifact(method), FORMULA, model_key(bench), fitted)
    key = fingerprint(settings_key, _read(bench, method, train.fingerprint))

    def produce() -> Whole:
        factorization = build_method(bench, method).factorize(load_curvature(bench, method))
        arrays = {name: _labelled(name, tensor) for name, tensor in factorization.tensors().items()}
        attrs = _attrs(bench, settings_key, train.count, method=method, method_settings=fitted)
        return Whole(arrays, attrs)

    return refresh_whole(
        bench, artifact(method), key, produce, reusable=_pinned(bench, settings_key)
    )


def _read(bench: Workbench, method: str, train_rows: str) -> str:
    return bench.require(HESSIAN).data_version if uses_hessian(method) else train_rows


def factorization_settings(bench: Workbench, method: str) -> dict:
    """The settings that the factorisation depends on: for cg, those of the preconditioner."""
    settings = method_settings(bench, method)
    for cheap in ("rtol", "atol", "maxiter", "on_failure"):
        settings.pop(cheap, None)
    if method == "direct":
        settings["damping"] = (
            list(bench.settings.dampings) if len(bench.settings.dampings) == 1 else "any"
        )
    return settings


def _labelled(name: str, tensor: torch.Tensor) -> tuple[tuple[str, ...], np.ndarray, dict]:
    """A tensor as an array with named dimensions; a number becomes one of length 1."""
    values = np.atleast_1d(tensor.detach().cpu().numpy())
    return tuple(f"{name}_{k}" for k in range(values.ndim)), values, {"scalar": tensor.ndim == 0}


def _tensor(bench: Workbench, version: Version, name: str) -> torch.Tensor:
    array = version.array(name)
    tensor = torch.from_numpy(np.asarray(array[...])).to(bench.device)
    return tensor[0] if array.attrs["scalar"] else tensor


def load_factorization(bench: Workbench, method: str) -> Factorization:
    """The stored factorisation, ready to solve."""
    version = bench.require(artifact(method))
    tensors = {name: _tensor(bench, version, name) for name in version.variables}
    curvature = None if uses_hessian(method) else load_curvature(bench, method)
    return build_method(bench, method).restore(tensors, curvature)

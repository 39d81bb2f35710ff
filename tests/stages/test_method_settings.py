"""What a study can tell a method: blocks, dampings, tolerances; each setting has an effect."""

import warnings

import numpy as np
import pytest
import reference
import torch
from tiny_answers import DAMPING, assert_close, computed, stored_module
from tiny_project import Project
from torch.nn import functional as F

from influence_dag.errors import NotConvergedError, StudyError
from influence_dag.stages import methods, reading

BLOCKS = {"0": slice(0, 16), "2": slice(16, 31)}
ALONE = {"direct": None, "cg": None}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A project whose model is fitted and whose matrix is stored."""
    project = Project(tmp_path_factory.mktemp("fitted"), methods={"cg": None})
    project.write_settings(perturbation=None)
    project.refresh()
    return project


@pytest.fixture
def study(fitted, tmp_path):
    return fitted.copy(tmp_path)


def with_methods(project, **methods):
    project.write_settings(methods=ALONE | methods)
    return project.refresh()


def block_factors(project, dampings):
    """Factors with what couples the layers left out, by plain autograd."""
    module = stored_module(project)
    H = reference.hessian(module, F.cross_entropy, *project.tensors("train"))
    kept = torch.zeros_like(H)
    for name, place in BLOCKS.items():
        kept[place, place] = H[place, place]
        kept.diagonal()[place] += dampings[name]
    rhs = reference.per_sample_gradients(module, F.cross_entropy, *project.tensors("test"))
    return reference.damped_solve(kept, rhs, 0.0).numpy()


@pytest.mark.parametrize(
    ("method", "settings", "tolerance"),
    [
        ("direct", {}, 1e-9),
        ("cg", {"rtol": 1e-10, "rank": 8}, 1e-8),
        ("lissa", {"rtol": 1e-9, "maxiter": 20_000}, 1e-5),
        ("arnoldi", {"rank": 16}, 1e-6),
    ],
)
def test_methods_on_blocks_solve_what_couples_nothing(study, method, settings, tolerance):
    settings = settings | {"blocks": "layer", "block_damping": {"2": 0.5}}
    with_methods(study, **{method: settings})
    stored = study.results.influence_factors(method)
    assert_close(stored, block_factors(study, {"0": DAMPING, "2": 0.5}), tolerance)
    assert float(study.results[method].residual.max()) <= 1e-4, "of the system that is solved"
    assert computed(study.refresh()) == set()


def test_a_damping_of_a_block_that_comes_later(study):
    with_methods(study, direct={"blocks": "layer"})
    with_methods(study, direct={"blocks": "layer", "block_damping": {"0": 2.0}})
    stored = study.results.influence_factors("direct")
    assert_close(stored, block_factors(study, {"0": 2.0, "2": DAMPING}))
    study.write_settings(methods={"direct": {"block_damping": {"0": 3.0}}})
    assert "direct/curvature" not in computed(study.refresh()), "a late damping fits nothing again"
    stored = study.results.influence_factors("direct")
    assert_close(stored, block_factors(study, {"0": 3.0, "2": DAMPING}))


def test_what_blocks_are_damped_with_is_not_held_against_the_whole_matrix(study):
    """That has a negative eigenvalue beyond the study's λ; no block has one beyond its own."""
    damped = {"blocks": "layer", "block_damping": {"0": 1.0, "2": 1.0}}
    study.write_settings(methods=ALONE | {"direct": damped}, damping=1e-3)
    smallest = study.results.store.version("hessian").attrs["info"]["smallest_eigenvalue"]
    assert smallest < -1e-2
    study.materialize()
    stored = study.results.influence_factors("direct")
    assert_close(stored, block_factors(study, {"0": 1.0, "2": 1.0}))


@pytest.mark.parametrize("damping", [DAMPING, [DAMPING, 0.5]])
def test_shares_of_blocks_add_up_to_the_influences(study, damping):
    study.write_settings(damping=damping)
    with_methods(study, direct={"blocks": "layer"})
    study.write("train", study.rows["train"][1:])  # leaves a hole
    study.refresh()
    results = study.results
    influences, shares = results["direct"].influences, results.block_influences("direct")
    assert shares.dims == ("block", *influences.dims)
    assert shares.block.values.tolist() == ["0", "2"]
    assert_close(shares.sum("block"), influences.values)
    module, where = stored_module(study), BLOCKS["2"]
    gradients = reference.per_sample_gradients(module, F.cross_entropy, *study.tensors("train"))
    factors = results.influence_factors("direct").values[..., where]
    assert_close(shares.sel(block="2"), factors @ gradients.numpy()[:, where].T)
    assert np.array_equal(shares.train, influences.train)


def test_factors_of_the_whole_matrix_can_be_cut_as_well(study):
    results = study.results
    shares = results.block_influences("direct", [["2.bias"], ["0.weight", "0.bias", "2.weight"]])
    assert_close(shares.sum("block"), results["direct"].influences.values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_damping": {"2": 0.5}}, "there is only one, of all parameters; add blocks"),
        (
            {"blocks": [["0.weight", "0.bias"], ["2.weight", "2.bias"]], "block_damping": {"2": 1}},
            "block_damping names 2; lists are known by their position, here 0, 1",
        ),
        ({"blocks": "layer", "block_damping": {"1": 1.0}}, "dampings names 1; the blocks are 0, 2"),
        (
            {"blocks": [["0.weight"]]},
            r"methods\.direct: .*in no block: 0\.bias, 2\.weight, 2\.bias",
        ),
    ],
)
def test_wrong_blocks_are_refused(study, settings, message):
    with pytest.raises(StudyError, match=message):
        with_methods(study, direct=settings)


# Rows that miss the tolerance -------------------------------------------------------------------


def test_rows_that_miss_the_tolerance_are_named_by_their_ids(study):
    study.write("test", study.rows["test"][6:8])
    with pytest.raises(
        NotConvergedError, match=r"cg, test rows: 2 of 2 systems .* \(rows test-06, test-07; worst"
    ):
        with_methods(study, cg={"maxiter": 2, "preconditioner": "none"})


def test_rows_that_are_kept_all_the_same_are_marked_and_reported(study):
    said = []
    study.write_settings(
        methods={**ALONE, "cg": {"maxiter": 2, "preconditioner": "none", "on_failure": "warn"}}
    )
    bench = study.bench()
    bench.report = said.append
    from influence_dag.stages.graph import artifacts

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for node in artifacts(bench.study):
            node.refresh(bench)
    assert study.results["cg"].converged.values.tolist() == [0.0] * 10
    (line,) = [line for line in said if "missed" in line and "test-00" in line]
    assert "are marked in `converged`: test-00, test-01" in line


def test_pairs_that_were_kept_do_not_serve_a_study_that_asks_for_found_ones(study):
    settings = {"rank": 8, "max_products": 2}
    with pytest.warns(RuntimeWarning, match="eigenpairs missed"):
        with_methods(study, arnoldi=settings | {"on_failure": "warn"})
    with pytest.raises(NotConvergedError, match="eigenpairs missed"):
        with_methods(study, arnoldi=settings | {"on_failure": "raise"})


def test_residuals_by_iteration_are_stored(study):
    with_methods(study, cg={"rtol": 1e-10, "preconditioner": "none"}, lissa={"rtol": 1e-3})
    for method in ("cg", "lissa"):
        stored = study.results.open(f"{method}/influence_factors")
        curve, iteration = stored.residual_history.values, stored.iteration.values
        assert curve.shape == (10, len(iteration))
        assert (np.diff(iteration) > 0).all()
        after = iteration[None] > stored.niter.values[:, None]
        last = np.broadcast_to(stored.residual.values[:, None], curve.shape)
        assert (np.isfinite(curve) & (curve >= 0)).all()
        assert np.median(curve[:, 0] / last[:, 0]) >= 10, "it descends"
        assert after.any()
        np.testing.assert_array_less(curve[after], curve[:, :1].max())


def test_parameter_influences_of_an_iterative_method_leave_holes_out(study):
    study.write("train", study.rows["train"][1:])
    with_methods(study, cg={"rtol": 1e-10, "rank": 8})
    found = study.results.parameter_influences("cg")
    assert found.sizes == {"train": 39, "param": 31}
    module, train = stored_module(study), study.tensors("train")
    gradients = reference.per_sample_gradients(module, F.cross_entropy, *train)
    H = reference.hessian(module, F.cross_entropy, *train)
    assert_close(found, reference.damped_solve(H, gradients, DAMPING).numpy(), 1e-8)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_parameter_influences_that_missed_the_tolerance_are_no_numbers(study):
    with_methods(study, cg={"maxiter": 2, "preconditioner": "none", "on_failure": "warn"})
    assert study.results.parameter_influences("cg").isnull().all()


# Each setting has an effect ---------------------------------------------------------------------

ROUGH = {"rtol": 1e-2}
FEW = {"batch_size": 30, "maxiter": 20, "on_failure": "warn"}
EFFECTS = [  # method, settings, a change of them
    ("direct", {}, {"curvature": "gauss_newton"}),
    ("direct", {}, {"blocks": "layer"}),
    ("direct", {"blocks": "layer"}, {"block_damping": {"0": 1.0}}),
    ("cg", {}, {"curvature": "gauss_newton"}),
    ("cg", {"rank": 8}, {"rtol": 1e-2}),
    ("cg", {"rank": 8}, {"atol": 1e-1}),
    ("cg", {}, {"preconditioner": "none"}),
    ("cg", {"rank": 8}, {"preconditioner": "jacobi"}),
    ("cg", {}, {"preconditioner": "ekfac"}),
    ("cg", {"rank": 8}, {"rank": 3}),
    ("cg", {"rank": 8}, {"seed": 1}),
    ("cg", {"preconditioner": "none", "rtol": 1e-2}, {"search": "shared"}),
    ("cg", {"preconditioner": "none"}, {"maxiter": 3, "on_failure": "warn"}),
    ("lissa", ROUGH, {"maxiter": 3, "on_failure": "warn"}),
    ("lissa", ROUGH, {"dampen": 0.1}),
    ("lissa", ROUGH, {"scale": 1.5}),
    ("lissa", ROUGH, {"rtol": 1e-1}),
    ("lissa", ROUGH, FEW),
    ("lissa", FEW, {"seed": 1}),
    ("arnoldi", {"rank": 6}, {"rank": 7}),
    ("arnoldi", {"rank": 6}, {"tol": 0.3}),
    ("arnoldi", {"rank": 6}, {"complement": "damping"}),
    ("arnoldi", {"rank": 6}, {"max_products": 8, "on_failure": "warn"}),
    ("arnoldi", {"rank": 6, "tol": 0.3}, {"seed": 1}),
    ("nystroem", {"rank": 6}, {"rank": 7}),
    ("nystroem", {"rank": 6}, {"seed": 1}),
    ("nystroem", {"rank": 6}, {"power_iterations": 0}),
    ("ekfac", {}, {"fisher": "empirical"}),
    ("ekfac", {}, {"fisher": "sampled"}),
    ("ekfac", {"fisher": "sampled"}, {"seed": 1}),
    ("kfac", {}, {"fisher": "empirical"}),
    ("kfac", {"fisher": "sampled"}, {"seed": 1}),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_each_setting_of_a_method_has_an_effect(study):
    from influence_dag.stages import matrices

    rhs, found = torch.randn(3, 31, dtype=torch.float64).to(study.bench().device), {}

    def solved(method, settings):
        """Once, of the settings that several changes start from."""
        if (which := f"{method} {settings}") not in found:
            found[which] = anew(method, settings)
        return found[which]

    def anew(method, settings):
        settings = {"curvature": "gauss_newton"} | settings if method == "nystroem" else settings
        study.settings["methods"] = {}
        study.write_settings(methods={method: settings})
        bench = study.bench()
        if method == "direct":
            matrices.refresh(bench, bench.settings.methods[method].curvature)
        solver = methods.build_method(bench, method)
        return solver.factorize(methods.load_operator(bench, method)).solve(rhs, damping=DAMPING)

    for method, settings, change in EFFECTS:
        before, after = solved(method, settings).x, solved(method, settings | change).x
        error = ((after - before).norm() / before.norm()).item()
        assert error >= 1e-14, f"{method} {settings}: {change} changes nothing ({error:.1e})"


def test_every_setting_of_every_method_is_among_those_tried():
    from influence_dag.study.methods import MethodSettings, MethodsSettings

    tried = {(method, name) for method, _, change in EFFECTS for name in change}
    common = set(MethodSettings.model_fields)  # tried on direct
    # No effect on these numbers.
    without = {("direct", "on_indefinite"), ("arnoldi", "on_device"), ("ekfac", "distribution")}
    without |= {(method, "residuals") for method in ("arnoldi", "nystroem", "ekfac")}
    for method, field in MethodsSettings.model_fields.items():
        (settings, _) = field.annotation.__args__
        own = {(method, name) for name in settings.model_fields if name not in common}
        aliases = {("kfac", name) for _, name in own if method == "kfac"}
        assert own - aliases <= tried | without, own - tried


def test_self_influences_of_solves_that_missed_their_tolerance_are_not_numbers(study):
    loose = {"preconditioner": "none", "rtol": 0.05, "maxiter": 3, "on_failure": "warn"}
    study.settings["methods"] = {}
    study.write_settings(methods={"cg": loose}, summary={"self_influence": True})
    with warnings.catch_warnings(action="ignore"):
        study.refresh()
        bench = study.bench()
        train = bench.axis("dataset", "train")
        G = reading.load_gradients(bench, slice(0, len(train))).dense()[train.slots]
        solved = methods.load_factorization(bench, "cg").solve(G, damping=DAMPING)
    met = solved.info["converged"].numpy(force=True)
    assert 0 < met.sum() < len(met)
    for name in ("self_influence", "parameter_influence_norm"):
        assert (np.isfinite(bench.require("cg/summary").read(name)[train.slots]) == met).all()

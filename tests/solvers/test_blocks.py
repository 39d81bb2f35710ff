from itertools import combinations

import pytest
import reference
import torch
from solver_systems import Counted, SecondMoment, random_rhs, relative_error, spd_matrix
from torch import nn

from influence_dag.curvature import DenseCurvature, Hessian
from influence_dag.errors import IndefiniteError
from influence_dag.objective.objective import Objective, Rows
from influence_dag.solvers import (
    Arnoldi,
    Blockwise,
    ConjugateGradient,
    Direct,
    LiSSA,
    Nystroem,
    parameter_blocks,
)
from influence_dag.solvers.blocks import Restricted, split_by_block
from influence_dag.solvers.minibatches import minibatch

P = 12
BLOCKS = {"a": torch.tensor([0, 1, 2, 9]), "b": torch.tensor([3, 4, 5, 6, 7, 8, 10, 11])}
SLICES = {
    "0.weight": slice(0, 6),
    "0.bias": slice(6, 8),
    "2.weight": slice(8, 10),
    "scale": slice(10, 11),
}
METHODS = [
    Direct(),
    ConjugateGradient(rtol=1e-10),
    Nystroem(rank=P),
    Arnoldi(rank=P),
    LiSSA(rtol=1e-11, maxiter=5000),
]
every_method = pytest.mark.parametrize("method", METHODS, ids=repr)


def block_diagonal(H):
    kept = torch.zeros_like(H)
    for index in BLOCKS.values():
        kept[index[:, None], index] = H[index[:, None], index]
    return kept


@every_method
def test_blocks_are_solved_as_if_nothing_coupled_them(method):
    H, rhs = spd_matrix(P), random_rhs(5, P)
    blockwise = Blockwise(method=method, blocks=BLOCKS)
    x = blockwise.factorize(DenseCurvature(H)).solve(rhs, damping=0.1).x
    expected = reference.damped_solve(block_diagonal(H), rhs, 0.1)
    assert relative_error(x, expected) <= 1e-8
    assert relative_error(reference.damped_solve(H, rhs, 0.1), expected) >= 1e-2


@every_method
def test_each_block_may_have_its_own_damping(method):
    H, rhs = spd_matrix(P), random_rhs(5, P)
    blockwise = Blockwise(method=method, blocks=BLOCKS, dampings={"b": 0.7})
    x = blockwise.factorize(DenseCurvature(H)).solve(rhs, damping=0.1).x
    kept, index = block_diagonal(H), BLOCKS["b"]
    kept[index, index] += 0.6
    assert relative_error(x, reference.damped_solve(kept, rhs, 0.1)) <= 1e-8


@every_method
def test_stored_blocks_are_restored(method):
    H, rhs = DenseCurvature(spd_matrix(P)), random_rhs(5, P)
    blocks = {"0": BLOCKS["a"], "0.1": BLOCKS["b"]}  # one name begins like the other
    blockwise = Blockwise(method=method, blocks=blocks)
    factorization = blockwise.factorize(H)
    restored = blockwise.restore(factorization.tensors(), H)
    expected = factorization.solve(rhs, damping=0.1).x
    assert torch.equal(restored.solve(rhs, damping=0.1).x, expected)


def test_values_by_block_add_up():
    rhs, gradients = random_rhs(5, P), random_rhs(9, P, seed=5)
    blockwise = Blockwise(method=Direct(), blocks=BLOCKS)
    x = blockwise.factorize(DenseCurvature(spd_matrix(P))).solve(rhs, damping=0.1).x
    parts = split_by_block(x, BLOCKS)
    assert list(parts) == ["a", "b"]
    assert parts["a"][:, BLOCKS["b"]].abs().max() == 0
    torch.testing.assert_close(sum(part @ gradients.T for part in parts.values()), x @ gradients.T)


def test_info_is_told_by_block():
    blockwise = Blockwise(method=ConjugateGradient(), blocks=BLOCKS)
    rhs = random_rhs(5, P)
    info = blockwise.factorize(DenseCurvature(spd_matrix(P))).solve(rhs, damping=0.1).info
    assert info["a.niter"].shape == info["b.residual"].shape == (5,)


@pytest.mark.parametrize(
    "method",
    [ConjugateGradient(rtol=1e-8, preconditioner="none"), LiSSA(rtol=1e-4)],
    ids=["cg", "lissa"],
)
def test_what_is_told_of_whole_rows_is_of_all_blocks_together(method):
    rhs, H = random_rhs(5, P), spd_matrix(P)
    rhs[1, BLOCKS["b"]] *= 1e-3
    factorization = Blockwise(method=method, blocks=BLOCKS).factorize(DenseCurvature(H))
    solution = factorization.solve(rhs, damping=0.1)
    x, info = solution.x, solution.info
    assert torch.equal(info["niter"], torch.stack([info[f"{b}.niter"] for b in BLOCKS]).amax(0))
    assert info["converged"].all()
    defect = rhs - x @ block_diagonal(H) - 0.1 * x
    torch.testing.assert_close(
        info["residual"], defect.norm(dim=1) / rhs.norm(dim=1), rtol=1e-4, atol=1e-12
    )
    known = ~info["residual_history"].isnan()
    assert torch.equal(known.sum(1), info["niter"])
    assert torch.equal(known.cummin(1).values, known)
    parts = [rhs[:, index].norm(dim=1) for index in BLOCKS.values()]
    first = [info[f"{b}.residual_history"][:, 0] * n for b, n in zip(BLOCKS, parts, strict=True)]
    expected = first[0].hypot(first[1]) / rhs.norm(dim=1)
    torch.testing.assert_close(info["residual_history"][:, 0], expected)


def test_a_start_is_cut_into_blocks():
    blockwise = Blockwise(method=ConjugateGradient(), blocks=BLOCKS)
    H, rhs = spd_matrix(P), random_rhs(3, P)
    factorization = blockwise.factorize(DenseCurvature(H))
    answer = reference.damped_solve(block_diagonal(H), rhs, 0.1)
    info = factorization.solve(rhs, damping=0.1, x0=answer).info
    assert info["a.niter"].tolist() == info["b.niter"].tolist() == [0, 0, 0]


def test_a_restricted_curvature_is_a_cut_of_the_whole():
    H, index = spd_matrix(P), BLOCKS["a"]
    part, matrix_free = Restricted(DenseCurvature(H), index), Restricted(Counted(H), index)
    expected = H[index[:, None], index]
    torch.testing.assert_close(matrix_free.dense(), expected)
    torch.testing.assert_close(part.dense(), expected)
    vectors = random_rhs(3, 4)
    torch.testing.assert_close(part.apply(vectors), vectors @ expected)


def test_minibatches_work_on_blocks():
    moment, rhs = SecondMoment(random_rhs(60, P)), random_rhs(2, P)
    method = LiSSA(batch_size=20, rtol=0.1, maxiter=1500)
    x = Blockwise(method=method, blocks=BLOCKS).factorize(moment).solve(rhs, damping=0.1).x
    expected = reference.damped_solve(block_diagonal(moment.dense()), rhs, 0.1)
    assert relative_error(x, expected) <= 0.05


def test_a_mean_over_rows_of_a_model_has_minibatches():
    rows = Rows(random_rhs(40, 4), random_rhs(40, 2))
    hessian = Hessian(Objective(nn.Linear(4, 2).double(), "mse"), rows)
    some = minibatch(Restricted(hessian, torch.arange(8)), torch.arange(5, 15))
    expected = Hessian(hessian.objective, rows[5:15]).dense()[:8, :8]
    torch.testing.assert_close(some.dense(), expected)


def test_minibatches_of_weighted_rows_have_the_mean_of_all():
    x, y, weights = random_rhs(6, 3), random_rhs(6, 1), torch.tensor([0, 0, 5, 1, 2, 4]).double()
    hessian = Hessian(Objective(nn.Linear(3, 1).double(), "mse"), Rows(x, y, weights))
    pairs = [minibatch(hessian, torch.tensor(pair)).dense() for pair in combinations(range(6), 2)]
    torch.testing.assert_close(torch.stack(pairs).mean(0), hessian.dense())


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("full", {"full": list(range(11))}),
        ("layer", {"0": list(range(8)), "2": [8, 9], "": [10]}),
        (
            [["0.bias", "2.weight"], ["scale", "0.weight"]],
            {"0": [6, 7, 8, 9], "1": [10, 0, 1, 2, 3, 4, 5]},
        ),
        (
            [["0.weight", "0.bias"], "2.weight", "scale"],
            {"0": list(range(8)), "1": [8, 9], "2": [10]},
        ),
    ],
    ids=["full", "layer", "lists", "names alone"],
)
def test_blocks_are_named_groups_of_positions(blocks, expected):
    found = parameter_blocks(SLICES, blocks)
    assert {name: index.tolist() for name, index in found.items()} == expected


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("layers", "blocks='layers' is unknown; use full, layer or lists"),
        ([["0.weight", "0.bias"], ["2.weight"]], "in no block: scale"),
        ([["0.weight", "0.bias", "scale"], ["2.weight", "scale"]], "listed twice: scale"),
        ([["0.weight", "0.bias", "2.weight", "scale", "bias"]], "unknown: bias"),
        ([["0.weight", "0.bias", "2.weight", "scale"], []], "without any: block 1"),
        ([["0.weight", "0.bias", "2.weight"], "scales"], "unknown: scales"),
    ],
)
def test_wrong_blocks_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        parameter_blocks(SLICES, blocks)


@pytest.mark.parametrize("index", [[0, 1], [0, 1, 2, 2], [0, 1, 2, 3, 4]])
def test_positions_that_are_not_each_once_are_refused(index):
    blockwise = Blockwise(method=Direct(), blocks={"a": torch.tensor(index)})
    with pytest.raises(ValueError, match="of the curvature's 4 parameters"):
        blockwise.factorize(DenseCurvature(torch.eye(4)))


def test_a_damping_for_no_block_is_refused():
    with pytest.raises(ValueError, match="dampings names c; the blocks are a, b"):
        Blockwise(method=Direct(), blocks=BLOCKS, dampings={"c": 0.1})


def test_an_indefinite_block_is_refused():
    H = spd_matrix(P)
    H[3, 3] -= 5
    with pytest.raises(IndefiniteError):
        Blockwise(method=Direct(), blocks=BLOCKS).factorize(DenseCurvature(H)).solve(
            random_rhs(1, P), damping=0.1
        )


@pytest.mark.parametrize("power", [-120, -70, 70])
@pytest.mark.parametrize("method", [ConjugateGradient(rtol=1e-3, preconditioner="none"), LiSSA()])
def test_residuals_of_a_row_do_not_depend_on_its_length(method, power):
    H, rhs = DenseCurvature(spd_matrix(P).float()), random_rhs(3, P).float()
    factorization = Blockwise(method=method, blocks=BLOCKS).factorize(H)
    expected = factorization.solve(rhs, damping=0.1)
    assert (expected.info["residual"] > 0).all()
    rhs[1] *= 2.0**power
    found = factorization.solve(rhs, damping=0.1)
    for name in ("residual", "residual_history"):
        torch.testing.assert_close(found.info[name], expected.info[name], equal_nan=True)
    told = factorization.residuals(H, found.x, rhs, 0.1)
    torch.testing.assert_close(told, found.info["residual"], rtol=1e-2, atol=1e-6)

import torch
from solver_systems import random_rhs, spd_matrix

from influence_dag.curvature import DenseCurvature
from influence_dag.solvers import Identity


def test_right_hand_sides_come_back_whatever_the_damping():
    rhs = random_rhs(3, 8)
    factorization = Identity().factorize(DenseCurvature(spd_matrix(8)))
    for damping in (0.0, 10.0):
        x = factorization.solve(rhs, damping=damping).x
        assert torch.equal(x, rhs)
        assert x.data_ptr() != rhs.data_ptr()
    assert factorization.tensors() == {}
    assert torch.equal(Identity().restore({}, None).solve(rhs, damping=1.0).x, rhs)

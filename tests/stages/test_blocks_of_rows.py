"""A given model sees stored rows block by block, and makes of them what it makes of all at once."""

import tracemalloc

import numpy as np
import pytest
import torch
from tiny_project import Project
from torch import nn

from influence_dag.curvature import CURVATURES
from influence_dag.errors import ModelError
from influence_dag.objective import batching
from influence_dag.objective.objective import Objective, Rows
from influence_dag.stages import blocks_of_rows, dataset, model
from influence_dag.stages.reading import load_rows

N, SIZE = 23, 5


@pytest.fixture(params=["plain", "weighted", "named"])
def both(request):
    """All rows in memory, the same in blocks, and what was read of the blocks."""
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(N) if request.param == "weighted" else None
    rows = Rows({"a": x, "b": x[:, 0]} if request.param == "named" else x, torch.arange(N), weights)
    read: list[list[int]] = []

    def load(positions):
        read.append(positions.tolist())
        return rows[torch.from_numpy(positions)]

    return rows, blocks_of_rows.BlocksOfRows(load, rows.y, weights, SIZE), read


def assert_same(one: Rows, other: Rows) -> None:
    torch.testing.assert_close((one.x, one.y), (other.x, other.y), rtol=0, atol=0)
    assert (one.weights is None) == (other.weights is None)
    if one.weights is not None:
        torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    "index",
    [slice(None), slice(3), slice(4, 7), slice(20, 99), slice(5, 5), [3, 1], [4, 6, 5], [9, 0, 22]],
)
def test_what_is_indexed_is_what_it_is_in_memory(both, index):
    rows, blocks, _ = both
    index = torch.tensor(index) if isinstance(index, list) else index
    assert_same(blocks[index], rows[index])
    assert_same(blocks.unweighted[index], rows.unweighted[index])
    assert_same(blocks.map(lambda leaf: 2 * leaf), rows.map(lambda leaf: 2 * leaf))
    assert blocks.weight_sum == rows.weight_sum


def test_a_pass_reads_each_block_once_in_order_and_shuffled(both):
    rows, blocks, read = both
    order = blocks.shuffled(torch.Generator().manual_seed(1))
    assert sorted(order.tolist()) == list(range(N))
    assert order.tolist() != list(range(N))
    for wanted in (torch.arange(N), order):
        read.clear()
        for index in wanted.split(4):
            assert_same(blocks[index], rows[index])
        assert [positions[0] for positions in read] == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 4), nn.Softplus())])
def test_products_with_a_curvature_never_hold_all_rows(curvature, layer, monkeypatch):
    x = torch.randn(N, 3, dtype=torch.float64)
    rows = Rows(x, torch.arange(N) % 2)
    blocks = blocks_of_rows.BlocksOfRows(lambda at: rows[torch.from_numpy(at)], rows.y, None, SIZE)
    all_at_once = property(lambda self: pytest.fail("all rows were read"))
    monkeypatch.setattr(blocks_of_rows.BlocksOfRows, "x", all_at_once)
    objective = Objective(layer.double().eval(), "cross_entropy")
    vectors = torch.randn(3, objective.size, dtype=torch.float64)
    found, expected = (
        CURVATURES[curvature](objective, each, batch_size=4).apply(vectors)
        for each in (blocks, rows)
    )
    torch.testing.assert_close(found, expected)


def given(project: Project, module: nn.Module) -> None:
    torch.save(module.state_dict(), project.root / "net.pt")
    project.write_settings(model={"fit": None, "checkpoint": "net.pt"}, damping=0.1)


def in_memory(bench, axis) -> Rows:
    return load_rows(bench, axis, dtype=torch.float64)


def small_blocks(monkeypatch, rows: int) -> None:
    monkeypatch.setattr(blocks_of_rows, "FEWEST", rows)
    monkeypatch.setattr(batching, "_BATCH", rows)


def test_a_given_model_is_described_alike_in_blocks_and_in_memory(tmp_path, monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    found = []
    for name in ("in blocks", "in memory"):
        (tmp_path / name).mkdir()
        project = Project(tmp_path / name, perturbation=None)
        given(project, module)
        project.write_settings(compute={"block_bytes": 100, "batch_size": 6})
        project.write("train", [*project.rows["train"][:11], *project.rows["train"][13:]])
        with monkeypatch.context() as patch:
            small_blocks(patch, 7)
            if name == "in memory":
                patch.setattr(model, "rows_of", in_memory)
            dataset.refresh(project.bench())
            info = model.refresh(project.bench()).info
        found.append({key: info[key] for key in ("mean_loss", "gradient_norm", "measured_on_rows")})
    assert found[0] == pytest.approx(found[1], rel=1e-12)


COUPLED = """
from torch import nn


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x - x[4:].mean(0)) if len(x) > 6 else self.layer(x)


def build():
    return Coupled()
"""


def test_rows_that_depend_on_their_batch_are_seen_in_blocks(tmp_path, monkeypatch):
    project = Project(tmp_path, model=COUPLED, perturbation=None)
    (tmp_path / "sub").mkdir()
    state = {"layer.weight": torch.eye(3), "layer.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "net.pt")
    project.write_settings(
        model={"fit": None, "checkpoint": "net.pt"}, damping=0.1, compute={"block_bytes": 100}
    )
    small_blocks(monkeypatch, 10)
    dataset.refresh(project.bench())
    with pytest.raises(ModelError, match="depends on the other rows of its batch"):
        model.refresh(project.bench())


def peak_of(folder, n: int) -> int:
    """Bytes that the stage `model` holds at its worst over n rows of 8 kB."""
    folder.mkdir()
    project = Project(folder, perturbation=None, methods={"direct": None, "cg": {}})
    source = "from torch import nn\n\n\ndef build():\n    return nn.Linear(1000, 3)\n"
    project.write_model(source)
    for split, count in (("train", n), ("test", 5)):
        x = np.random.default_rng(0).normal(size=(count, 1000))
        np.savez(folder / f"{split}.npz", x=x, y=np.arange(count) % 3)
    torch.manual_seed(0)
    given(project, nn.Linear(1000, 3))
    project.write_settings(
        data={"train": "train.npz", "test": "test.npz", "id": None, "target": "y"},
        compute={"block_bytes": "256KiB", "batch_size": 32},
        store={"chunks": {"train": 32}},
    )
    dataset.refresh(project.bench())
    bench = project.bench()
    tracemalloc.start()
    model.refresh(bench)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_of_a_given_model_does_not_follow_the_number_of_rows(tmp_path, monkeypatch):
    """Eight times the rows, 16.8 MB more: some chunks more that are read side by side."""
    small_blocks(monkeypatch, 32)
    peak_of(tmp_path / "first", 100)  # imports and caches
    small, large = peak_of(tmp_path / "small", 300), peak_of(tmp_path / "large", 2_400)
    assert large - small < 4_000_000

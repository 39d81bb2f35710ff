"""Blocks come from a device in order and none is lost; the processor's are taken as they stand."""

import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from influence_dag.stages import tasks
from influence_dag.stages.graph import artifacts
from influence_dag.stages.landing import IN_FLIGHT, landed
from influence_dag.stages.workbench import Workbench
from influence_dag.store.drafts import StoredDraft
from influence_dag.study.loading import load_study


@dataclass
class Device:
    """Stands for one: its tensors have no numbers, which come when they are waited for."""

    begun: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)
    most: int = 0
    broken: int = -1

    def computed(self, count, *, fails=-1):
        for k in range(count):
            self.most = max(self.most, k + 1 - len(self.waited))
            if k == fails:
                raise ValueError("the kernel's")
            yield k, {"values": torch.empty(k, device="meta")}

    def begin(self, tensors):
        (tensor,) = tensors.values()
        self.begun.append(len(tensor))

        def wait():
            if len(tensor) == self.broken:
                raise RuntimeError("the device's")
            self.waited.append(len(tensor))
            return {"values": np.full(len(tensor), len(tensor))}

        return wait


def test_blocks_of_a_device_come_in_order_with_two_on_their_way():
    device, items = Device(), []
    for k, arrays in landed(device.computed(9), device):
        items.append(k)
        assert arrays["values"].tolist() == [k] * k
        assert device.waited == [*range(k + 1)]  # the one after it is only begun
        assert device.begun == [*range(min(k + IN_FLIGHT, 9))]
    assert items == [*range(9)]
    assert device.most == IN_FLIGHT


def test_what_came_before_an_error_is_given_before_it_is_raised():
    device, seen = Device(), []
    with pytest.raises(ValueError, match="the kernel's"):
        seen.extend(item for item, _ in landed(device.computed(9, fails=5), device))
    assert seen == [0, 1, 2, 3, 4]


def test_an_error_of_the_device_names_the_block_that_it_is_of():
    device = Device(broken=3)
    results = landed(device.computed(9), device)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="the device's") as raised:
        next(results)
    assert raised.value.__notes__ == ["while computing 3"]
    assert device.begun == [0, 1, 2, 3, 4]


def test_nothing_is_waited_for_once_nobody_takes_more():
    device = Device()
    results = landed(device.computed(9), device)
    next(results)
    results.close()
    assert (device.begun, device.waited) == ([0, 1], [0])


def test_a_block_on_both_sides_is_whole_and_those_on_this_one_wait_for_nothing():
    device = Device()
    both = {"here": np.arange(2), "values": torch.empty(2, device="meta"), "cpu": torch.ones(3)}
    blocks = iter([("both", both), ("here", {"cpu": torch.zeros(1)})])
    (first, arrays), (second, _) = landed(blocks, device)
    assert (first, second) == ("both", "here")
    assert {name: each.tolist() for name, each in arrays.items()} == {
        "here": [0, 1],
        "values": [2, 2],
        "cpu": [1, 1, 1],
    }


@pytest.mark.parametrize(
    "artifact", ["gradients", "direct/influences", "direct/perturbation_influences"]
)
def test_the_processor_writes_what_it_has_computed(project, artifact, monkeypatch):
    """No array is copied between a kernel and the draft, and no kernel asks for one itself."""
    project.write_settings(compute={"device": "cpu"})
    computed, written = [], []

    def started(task):
        tasks.started(task)  # opens the model
        with monkeypatch.context() as inside:
            inside.setattr(torch.Tensor, "cpu", lambda tensor: pytest.fail("waits for a device"))
            found = tasks.started(task)
        tensors = map(torch.as_tensor, found.values())  # shares memory
        computed.extend(each.data_ptr() for each in tensors)
        return found

    def write(draft, name, start, values, keys):
        written.append(values.ctypes.data)
        return really(draft, name, start, values, keys)

    really = StoredDraft.write
    monkeypatch.setattr("influence_dag.stages.executors.started", started)
    monkeypatch.setattr(StoredDraft, "write", write)
    shutil.rmtree(project.store / artifact)
    bench = Workbench(load_study(project.folder))
    next(node for node in artifacts(bench.study) if node.name == artifact).refresh(bench)
    assert written
    assert written == computed

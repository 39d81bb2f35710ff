"""A process killed while it writes: readers see the version before, the next run goes on."""

import os
import signal
import subprocess
import sys

import numpy as np
import reference
import torch
from tiny_answers import PINNED, stored_module
from tiny_project import Project
from torch.nn import functional as F

SLOWLY = """
import time
from influence_dag.store.drafts import StoredDraft
from influence_dag.running import materialize

write = StoredDraft.write


def slow(draft, variable, *arguments):
    write(draft, variable, *arguments)
    if variable == "perturbation_influences":
        print("written", flush=True)
        time.sleep(0.2)


StoredDraft.write = slow
materialize({folder!r}, progress=False)
"""


def kill_while_writing(project: Project, *, blocks: int) -> None:
    """Materialise in a process of its own and kill it when that many blocks are written."""
    code = SLOWLY.format(folder=str(project.folder))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(blocks):
            assert process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_a_kill_while_perturbations_are_written_costs_no_more_than_a_block(project):
    name = "direct/perturbation_influences"
    project.write_settings(compute={"block_bytes": 800}, **PINNED)
    for position in range(0, 40, 8):  # a row of every chunk
        project.edit("train", position, height=0.5 + position / 40)
    version, before = project.data_versions()[name], project.results.perturbation("direct").load()
    kill_while_writing(project, blocks=5)
    assert project.data_versions()[name] == version
    np.testing.assert_array_equal(project.results.perturbation("direct"), before)

    update = project.refresh()[name]
    assert update.version == 2
    assert update.blocks_computed + update.blocks_reused == 15
    assert 5 <= update.blocks_reused <= 6, "what was written is not computed again"
    x, y = project.tensors("train")
    factors = torch.tensor(project.results.influence_factors("direct").values)
    expected = reference.mixed_products(stored_module(project), F.cross_entropy, factors, x, y)
    np.testing.assert_allclose(project.results.perturbation("direct"), expected, rtol=1e-9)
    assert {path.name for path in (project.store / name / "versions").iterdir()} == {
        "000001",
        "000002",
    }

"""A process killed while it writes: readers see the version before, the next run goes on."""

import signal
from pathlib import Path

import numpy as np
import reference
import study_faults
import torch
from study_faults import Launcher, Moment
from tiny_answers import PINNED, stored_module
from tiny_project import Project
from torch.nn import functional as F

NAME = "direct/perturbation_influences"
CHUNKS = 15


def kill_while_writing(project: Project, launcher: Launcher, said: Path, *, blocks: int) -> None:
    """Refresh in a process of its own, which is killed when it has written that many blocks.

    What is seen of the array: a link for each chunk of the clone, then two changes for each block.
    """
    after = Moment(NAME, CHUNKS + 2 * blocks + 1, below="/perturbation_influences/c.")
    code = launcher.run(study_faults.killed_refresh, said, str(project.folder), after)
    assert code == -signal.SIGKILL, said.read_text()


def test_a_kill_while_perturbations_are_written_costs_no_more_than_a_block(
    project, launcher, tmp_path
):
    project.write_settings(compute={"block_bytes": 800}, **PINNED)
    for position in range(0, 40, 8):  # a row of every chunk
        project.edit("train", position, height=0.5 + position / 40)
    version, before = project.data_versions()[NAME], project.results.perturbation("direct").load()
    kill_while_writing(project, launcher, tmp_path / "said", blocks=5)
    assert project.data_versions()[NAME] == version
    np.testing.assert_array_equal(project.results.perturbation("direct"), before)

    update = project.refresh()[NAME]
    assert update.version == 2
    assert update.blocks_computed + update.blocks_reused == CHUNKS
    assert 5 <= update.blocks_reused <= 6, "what was written is not computed again"
    x, y = project.tensors("train")
    factors = torch.tensor(project.results.influence_factors("direct").values)
    expected = reference.mixed_products(stored_module(project), F.cross_entropy, factors, x, y)
    np.testing.assert_allclose(project.results.perturbation("direct"), expected, rtol=1e-9)
    assert {path.name for path in (project.store / NAME / "versions").iterdir()} == {
        "000001",
        "000002",
    }

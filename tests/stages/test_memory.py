"""No array of pairs exists in memory: what a run holds does not follow the number of pairs."""

import json
import subprocess
import sys

import pytest
from tiny_project import Project, make_rows

MEASURE = """
import json, resource, sys
from influence_dag.stages.graph import artifacts
from influence_dag.study.loading import load_study
from influence_dag.stages.workbench import Workbench

sys.path.insert(0, {root!r})
bench = Workbench(load_study({folder!r}))
peaks = {{}}
for node in artifacts(bench.study):
    node.refresh(bench)
    peaks[node.name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(peaks))
"""


def peaks(project: Project) -> dict[str, int]:
    """The most memory that the process ever had after each artifact."""
    code = MEASURE.format(root=str(project.root), folder=str(project.folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.campaign
def test_influences_larger_than_what_a_run_may_take_are_summed_and_ranked(tmp_path):
    """1,000 × 100,000 pairs, 400 MB: all that is done with them fits in half as much."""
    project = Project(
        tmp_path,
        methods={"cg": None},
        perturbation=None,
        compute={"dtype": "float32", "block_bytes": "16MiB"},
        store={"chunks": None},
        damping=0.5,
    )
    project.write("train", make_rows("train", 100_000))
    project.write("test", make_rows("test", 1_000))
    found = peaks(project)
    print({name: f"{peak / 1e6:.0f} MB" for name, peak in found.items()})
    pairs = found["report"] - found["direct/influence_factors"]
    assert pairs <= 0.5 * 1_000 * 100_000 * 4

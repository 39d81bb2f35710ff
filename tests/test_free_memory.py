"""How much memory a process may take: the least of what the machine and its groups have left."""

from pathlib import Path

import pytest

from influence_dag.objective.free_memory import free_memory

GIB = 2**30
MACHINE = {"proc/meminfo": f"MemTotal: {9 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n"}


def group(name: str, limit: str, taken: int, *, of_files: int = 0, version: int = 2) -> dict:
    """The files of a control group."""
    first = ("memory.max", "memory.current", "inactive_file")
    second = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    most, now, kept = first if version == 2 else second
    place = f"sys/fs/cgroup{'' if version == 2 else '/memory'}{name}".rstrip("/")
    stat = f"anon 5\n{kept} {of_files}\n"
    return {f"{place}/{most}": limit, f"{place}/{now}": taken, f"{place}/memory.stat": stat}


INSIDE = {"proc/self/cgroup": "0::/\n"}
DEEP = {"proc/self/cgroup": "0::/batch/job\n"}
FIRST = {"proc/self/cgroup": "9:cpu,cpuacct:/x\n4:memory:/host/job\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MACHINE, 8 * GIB),
        (MACHINE | INSIDE | group("/", "max\n", GIB), 8 * GIB),
        (MACHINE | INSIDE | group("/", f"{4 * GIB}", 3 * GIB, of_files=GIB), 2 * GIB),
        (MACHINE | DEEP | group("/batch/job", "max", GIB) | group("/batch", str(GIB), 0), GIB),
        (MACHINE | DEEP | group("/", str(3 * GIB), GIB), 2 * GIB),
        (MACHINE | FIRST | group("/host/job", str(3 * GIB), GIB, version=1), 2 * GIB),
        (MACHINE | FIRST | group("/", str(2 * GIB), GIB, version=1), GIB),
        (MACHINE | INSIDE | group("/", str(GIB), 2 * GIB), 0),
    ],
    ids=["unknown", "machine", "no limit", "container", "around", "unseen", "v1", "v1 in", "over"],
)
def test_memory_is_what_the_narrowest_group_has_left(tmp_path: Path, files, free):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(str(content))
    assert free_memory(tmp_path) == free

"""A process that computes blocks keeps the memory of one for the next."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from influence_dag.stages.allocation import keep_freed_memory

size = 2**24 + len(sys.argv)  # not known when this is compiled
done = "keep" in sys.argv and keep_freed_memory()
b"x" * size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * size
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 2**24 // 4096


def faults(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return said[0] == "True", int(said[1])


OURS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is asked for it")
def test_pages_of_a_freed_array_serve_the_next_unless_someone_else_has_decided():
    kept, few = faults("keep")
    assert kept
    assert few < PAGES / 50
    left, many = faults("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert not left
    assert many > PAGES / 2

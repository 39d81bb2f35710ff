"""The tests that want a CUDA device, on one that is made of the processor, in a process of its own.

What they show there: nothing mixes devices, nothing asked of the device is computed elsewhere,
and the numbers are the processor's. What runs at the same time, and digits of other kernels, they
show on a real one only.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from simulated_cuda import device

TESTS = Path(__file__).parents[1]
PINNED = f"torch=={torch.__version__.partition('+')[0]}"
WANTING = (
    "simulated_cuda/of_the_device.py",
    "stages/test_cuda.py",
    "test_cuda_in_memory.py",
    "test_waiting_for_a_device.py",
)


@pytest.fixture(scope="module")
def library():
    if reason := device.why_not():
        pytest.skip(reason)
    try:
        return device.built()
    except RuntimeError as error:
        if PINNED in (TESTS.parent / "constraints.txt").read_text().splitlines():
            raise
        pytest.skip(f"{PINNED} is not what is pinned, and {error}")


def test_on_a_device_made_of_the_processor(library):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    command = (sys.executable, "-m", "pytest", "-q", "-p", "simulated_cuda.plugin")
    done = subprocess.run(
        [
            *command,
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
            *(str(TESTS / each) for each in WANTING),
        ],
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout

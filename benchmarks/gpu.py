"""What has to be seen on a machine with a CUDA device: `make gpu`, at most ten minutes.

Tests that are skipped elsewhere and what a block asks of a device; how much of the copies of blocks
lies beside products; then every stage in wall seconds, as a share of a large product's rate. Ends
with 2 where torch sees no device, with 1 where a test fails. `--short` takes smaller studies.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from influence_dag.stages.landing import landed

HERE = Path(__file__).parent
TESTS = tuple(
    f"tests/{name}.py"
    for name in ("stages/test_cuda", "test_cuda_in_memory", "test_waiting_for_a_device")
)
MINUTES = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=__doc__)
    parser.add_argument("--short", action="store_true", help="smaller studies")
    short = ["--short"] * parser.parse_args().short
    if not torch.cuda.is_available():
        print("torch sees no CUDA device here", file=sys.stderr)
        return 2
    ends = time.monotonic() + 60 * MINUTES
    failed = ran(["-m", "pytest", "-q", *TESTS], ends)
    print(overlap(), flush=True)
    return failed | ran([str(HERE / "table.py"), "--gpu", *short], ends)


def ran(command: list[str], ends: float) -> int:
    """1 where it fails, or takes longer than there is time."""
    try:
        left = ends - time.monotonic()
        done = subprocess.run([sys.executable, *command], cwd=HERE.parent, timeout=left)
    except subprocess.TimeoutExpired:
        print(f"not done after {MINUTES} minutes: {' '.join(command)}", file=sys.stderr)
        return 1
    return int(done.returncode != 0)


def overlap(blocks: int = 24, size: int = 4096) -> str:
    """What blocks of 64 MiB take that are only computed, and brought to the host in two ways."""
    a, b = torch.randn(2, size, size, device="cuda")

    def products() -> Iterator[tuple[int, dict[str, Tensor]]]:
        for k in range(blocks):
            product = a
            for _ in range(4):
                product = product @ b
            yield k, {"values": product}

    def bare() -> None:
        for _ in products():
            pass
        torch.cuda.synchronize()

    def copied_one_by_one() -> None:
        for _, block in products():
            block["values"].cpu()

    def beside() -> None:
        for _ in landed(products()):
            pass

    taken = {make.__name__: fastest(make) for make in (bare, copied_one_by_one, beside)}
    each = (f"{name} {1e3 * seconds / blocks:.1f} ms" for name, seconds in taken.items())
    return f"A block of 64 MiB: {', '.join(each)}"


def fastest(make) -> float:
    make()
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        make()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())

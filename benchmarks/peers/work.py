"""One job by one library in a process of its own: what it takes, and its answer.

`python work.py LIBRARY JOB ANSWER.npy REPEATS` prints one line of JSON: processor seconds from the
process's first instruction to the first answer (`cold`), of the fastest of the repeats after it
(`warm`), and by how many MB the peak of resident memory exceeds what torch and the data take.
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from problem import Problem


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    return sum(os.times()[:4])


LIMIT = 12 * 2**30  # bytes of address space: more than a laptop has is told, not tried


def main(library: str, job: str, answer: str, repeats: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    problem = Problem.read()
    before = _peak()
    work = importlib.import_module(f"with_{library}").JOBS[job]
    found = work(problem)
    cold, peak = cpu_seconds(), _peak()
    np.save(answer, found.detach().numpy())
    taken = []
    for _ in range(repeats):
        problem = Problem.read()
        begin = time.process_time()
        work(problem)
        taken.append(time.process_time() - begin)
    print(json.dumps({"cold": cold, "warm": min(taken), "megabytes": peak - before}))


def _peak() -> float:
    """MB; of this program alone, where `ru_maxrss` begins with what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

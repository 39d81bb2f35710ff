"""The same influences by influence_dag and by other libraries: what they take, how right they are.

`make bench-peers` (or `python benchmarks/peers`) builds an environment for each library below
`.peers`, runs every job by every library that has it in processes of their own, one after the
other and in turns, and writes the table into docs/benchmarks.md. Everything is on one thread, with
denormals flushed, and in processor seconds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
from environments import REQUIREMENTS, ROOT, interpreter
from problem import TEST_PAIRS, TRAIN_PAIRS, Problem
from scipy.stats import spearmanr
from work import LIMIT as MEMORY

OURS = "influence_dag"
JOBS = {
    "direct": "Inverse by a factorisation",
    "cg": "Conjugate gradients to 1e-4",
    "arnoldi": "Arnoldi, 50 eigenpairs",
    "nystroem": "Nyström, rank 100, a plain sketch",
    "lissa": "LiSSA, 200 steps of 500 rows",
    "ekfac": "EK-FAC, labels of the model",
    "ekfac_empirical": "EK-FAC, labels of the data",
    "perturbation": "Perturbation influences, 297 × 1,500 × 64",
}
LIMIT = 30  # seconds that one answer may take, on average of a process
MORE_MEMORY = f"needs more than {MEMORY / 2**30:.0f} GiB of addresses"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


@dataclass
class Runs:
    """Of one job by one library: what its processes took, and its last answer."""

    taken: list[dict[str, float]] = field(default_factory=list)
    answer: np.ndarray | None = None
    ended: str = ""

    def best(self, what: str) -> float:
        return min(run[what] for run in self.taken)


def main() -> None:
    options = parsed()
    problem, found = Problem.read(), {}
    for job in options.jobs:
        sides = [OURS, *(name for name in options.libraries if job in jobs_of(name))]
        found[job] = {name: Runs() for name in sides}
        for _ in range(options.rounds):
            for name in sides:
                run(name, job, found[job][name], options.repeats)
        for name in sides:
            told = [job, name, found[job][name].taken, found[job][name].ended]
            print(json.dumps(told), file=sys.stderr)
    text = page(found, problem)
    print(text)
    if options.write:
        write(text)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/peers", description=__doc__)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--libraries", nargs="*", choices=REQUIREMENTS, default=list(REQUIREMENTS))
    parser.add_argument("--rounds", type=int, default=2, help="processes of each job and library")
    parser.add_argument("--repeats", type=int, default=2, help="warm answers in each process")
    parser.add_argument("--write", action="store_true", help="the table into docs/benchmarks.md")
    return parser.parse_args()


def jobs_of(library: str) -> set[str]:
    """Names of what a library's file has, told without its environment."""
    source = (Path(__file__).parent / f"with_{library}.py").read_text()
    return {job for job in JOBS if f"\ndef {job}(" in source}


def run(library: str, job: str, runs: Runs, repeats: int) -> None:
    if runs.ended:
        return
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.npy"
        work = Path(__file__).with_name("work.py")
        try:
            said = subprocess.run(
                [interpreter(library), "-W", "ignore", work, library, job, answer, str(repeats)],
                capture_output=True,
                text=True,
                timeout=LIMIT * (1 + repeats),
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths(library)},
                cwd=folder,
            )
        except subprocess.TimeoutExpired:
            runs.ended = f"not done after {LIMIT * (1 + repeats)} s"
            return
        if said.returncode:
            last = (said.stderr.strip().splitlines() or ["killed"])[-1]
            runs.ended = MORE_MEMORY if "Allocator" in last else last[:80]
            return
        runs.taken.append(json.loads(said.stdout.strip().splitlines()[-1]))
        runs.answer = np.load(answer)


def paths(library: str) -> str:
    return str(ROOT) if library == OURS else ""


def page(found: dict[str, dict[str, Runs]], problem: Problem) -> str:
    rows = [line for job, sides in found.items() for line in lines(job, sides, problem)]
    head = [
        "| work | library | warm | × ours | cold | × ours | memory, MB | error | Spearman |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join([f"Measured on {date.today()}: {machine()}.", "", *head, *rows])


def lines(job: str, sides: dict[str, Runs], problem: Problem) -> list[str]:
    ours = sides[OURS]
    return [line(JOBS[job], name, runs, ours, job, problem) for name, runs in sides.items()]


def line(title: str, name: str, runs: Runs, ours: Runs, job: str, problem: Problem) -> str:
    if not runs.taken or runs.answer is None:
        return f"| {title} | {name} | {runs.ended} | | | | | | |"
    warm, cold = runs.best("warm"), runs.best("cold")
    times = [f"{warm / ours.best('warm'):.2g}", f"{cold / ours.best('cold'):.2g}"]
    error, rank = distance(job, runs.answer, problem)
    cells = [f"{warm:.2f}", times[0], f"{cold:.1f}", times[1], f"{runs.best('megabytes'):,.0f}"]
    return " | ".join([f"| {title}", name, *cells, error, f"{rank} |"])


def distance(job: str, answer: np.ndarray, problem: Problem) -> tuple[str, str]:
    """Relative error (Frobenius) and the median test row's Spearman, against float64."""
    if not np.isfinite(answer).all():
        return "not finite", ""
    if job == "perturbation":
        exact = problem.exact.perturbation.numpy()
        answer = answer[:TEST_PAIRS, :TRAIN_PAIRS].reshape(exact.shape)
    else:
        exact = problem.exact.influences.numpy()
    error = np.linalg.norm(answer - exact) / np.linalg.norm(exact)
    some = zip(answer.reshape(len(exact), -1), exact.reshape(len(exact), -1), strict=True)
    return f"{error:.1e}", f"{statistics.median(spearmanr(*pair).statistic for pair in some):.3f}"


def machine() -> str:
    processor = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        named = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    versions = " ".join(REQUIREMENTS[name][0] for name in REQUIREMENTS)
    import torch

    return (
        f"{os.cpu_count()} cores of {named[0] if named else processor}, one thread; Python "
        f"{platform.python_version()}, torch {torch.__version__}; {versions}"
    )


def write(text: str) -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())

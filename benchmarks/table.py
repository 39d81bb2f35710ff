"""The table of `make bench`: every stage beside what it could not do without, and how it grows.

`python benchmarks/table.py --write` makes synthetic studies in processes of their own, on one
thread, and writes docs/benchmarks.md between its markers; `--short` makes smaller ones. What is
timed are the stages that users run, and beside them the products that iterative methods make.
Seconds are the processor's, ratios are within one run, and nothing is held to a bound.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from synthetic import Found, Size, larger, made, operations

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
METHODS = "direct: {curvature: gauss_newton}, ekfac: {}"
WHOLE = Size(train=4_000, test=128, width=16, features=128, methods=METHODS)
SHARES = Size(train=20_000, test=256, width=32, methods=METHODS)
PERTURBED = "{methods: [direct]}"
REDUCED = "{methods: [direct], reduce: {over: feature, by: l2}}"
ON_A_GPU = Size(train=60_000, test=500, width=128, methods=METHODS, perturbed=REDUCED)
AXES = {"train": "n_train", "test": "n_test", "width": "p", "features": "features"}
# Exponents that the operations have, by axis: a stage may grow more slowly, since what it has to
# do anyway is in its seconds, and not faster.
THEORY: dict[str, tuple[float, float, float, float]] = {
    "dataset": (1, 1, 0, 1),
    "model": (1, 0, 1, 1),
    "gradients": (1, 0, 1, 1),
    "gauss_newton": (1, 0, 2, 1),
    "direct/curvature": (0, 0, 3, 0),
    "direct/influence_factors": (0, 1, 2, 1),
    "direct/influences": (1, 1, 1, 0),
    "direct/perturbation_influences": (1, 1, 1, 1),
    "direct/summary": (1, 1, 2, 1),
    "ekfac/curvature": (1, 0, 1.5, 1),
    "ekfac/influence_factors": (1, 1, 1.5, 1),
    "ekfac/influences": (1, 1, 1.5, 1),
    "ekfac/summary": (1, 1, 1.5, 1),
    "report": (1, 1, 0, 0),
}
FASTEST, NOISE = 0.05, 0.25  # seconds that say nothing of growth; what an exponent may be off by


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    if options.gpu:
        print(gpu(options))
        return
    text = "\n".join([machine(), sizes(options), "", *table(options), "", gpu(options)])
    print(text)
    if options.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/table.py", description=__doc__)
    parser.add_argument("--short", action="store_true", help="smaller studies, two of a curve")
    parser.add_argument("--write", action="store_true", help="the table into docs/benchmarks.md")
    parser.add_argument("--gpu", action="store_true", help="what a GPU takes, and nothing else")
    parser.add_argument("--scratch", type=Path, help="a folder on a disk, for the studies")
    return parser.parse_args()


def machine() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    named = [line for line in lines if line.startswith("model name")]
    processor = named[0].split(":")[1].strip() if named else platform.machine()
    used = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "zarr"))
    return (
        f"Measured on {date.today()}: {os.cpu_count()} cores of {processor}, one thread; Python "
        f"{platform.python_version()}, {used}. One large product: {gemm() / 1e9:.0f} GFLOP/s, one "
        f"copy of memory: {copying() / 1e9:.1f} GB/s."
    )


def sizes(options: argparse.Namespace) -> str:
    shares, times = shared(options), " and ".join(f"{k} ×" for k in multiples(options))
    return (
        f"Seconds and shares of {shares.train:,} × {shares.test} rows, p = {shares.parameters:,}; "
        f"exponents over {times} {WHOLE.train:,} training rows, {WHOLE.test} test rows, "
        f"p = {WHOLE.parameters:,}, {WHOLE.features} features."
    )


def shared(options: argparse.Namespace) -> Size:
    """The study whose seconds and shares are told."""
    size = replace(SHARES, perturbed=REDUCED)
    return replace(size, train=4_000) if options.short else size


def multiples(options: argparse.Namespace) -> tuple[int, ...]:
    return (1, 2) if options.short else (1, 2, 4)


def table(options: argparse.Namespace) -> list[str]:
    curves = grown(options)
    head = [
        "| | CPU s | of GEMM | of copying | "
        + " | ".join(AXES.values())
        + " | peak, MB | at most n, MB |",
        "| --- |" + " ---: |" * (5 + len(AXES)),
    ]
    shares = shared(options)
    taken, flops = made(shares, options.scratch), made(shares, options.scratch, count=True)
    rows = [stage(name, taken[name], flops[name], curves.get(name, [""] * 6)) for name in taken]
    return [*head, *rows, *kernels()]


def stage(name: str, taken: dict[str, float], counted: dict[str, float], curve: list[str]) -> str:
    seconds = taken["cpu_s"]
    bare = counted["flops"] / gemm()
    of_gemm = f"{bare / seconds:.0%}" if bare > 0.01 * seconds else ""
    copied = f"{taken['disk_MB'] * 1e6 / copying() / seconds:.1%}"
    return " | ".join([f"| `{name}`", f"{seconds:.2f}", of_gemm, copied, *curve]) + " |"


def grown(options: argparse.Namespace) -> dict[str, list[str]]:
    """Of each stage, exponents beside their theory, then memory at the smallest and most rows."""
    whole, times = replace(WHOLE, perturbed=PERTURBED), multiples(options)
    first = made(whole, options.scratch)
    curves: dict[str, list[Found]] = {
        axis: [first, *(made(larger(whole, axis, k), options.scratch) for k in times[1:])]
        for axis in AXES
    }
    found = {}
    for name in first:
        cells = [
            exponent(np.array(times), [run[name]["cpu_s"] for run in curves[axis]], theory)
            for axis, theory in zip(AXES, THEORY[name], strict=True)
        ]
        ends = (first, curves["train"][-1])
        found[name] = [*cells, *(f"{run[name]['peak_MB']:.0f}" for run in ends)]
    return found


def exponent(times: np.ndarray, seconds: list[float], theory: float) -> str:
    """The slope in logarithms, and the theory's where it is exceeded by more than noise."""
    if max(seconds) < FASTEST:
        return f"– ({theory:g})"
    slope = np.polyfit(np.log(times), np.log(np.maximum(seconds, 1e-3)), 1)[0]
    said = f"{max(slope, 0):.2f} ({theory:g})"
    return f"**{said}**" if slope > theory + NOISE else said


def kernels() -> list[str]:
    """What iterative methods and other curvatures ask for, on the digits network."""
    from bench_derivatives import digits_problem

    from influence_dag.curvature import Hessian
    from influence_dag.influence.perturbation import perturbation_influences

    objective, train, _ = digits_problem()
    vectors, H = torch.randn(256, objective.size), Hessian(objective, train)
    named = {
        "256 products with a Hessian": lambda: H.apply(vectors),
        "the Hessian, formed": H.dense,
        "perturbation of a layered network": lambda: perturbation_influences(
            objective, vectors, train, route="layered"
        ),
    }
    rows = []
    for name, make in named.items():
        seconds, share = fastest(make), operations(make) / gemm()
        rows.append(f"| {name} | {seconds:.2f} | {share / seconds:.0%} |" + " |" * 7)
    return rows


def gpu(options: argparse.Namespace) -> str:
    if not torch.cuda.is_available():
        return "GPU: torch sees no CUDA device here, so nothing was measured on one."
    size = replace(ON_A_GPU, device="cuda")
    size = replace(size, train=4_000, test=128) if options.short else size
    counted, taken = made(size, options.scratch, count=True), made(size, options.scratch)
    a = torch.randn(8192, 8192, device="cuda")
    rate = 2 * 8192**3 / fastest(lambda: (a @ a, torch.cuda.synchronize()), time.perf_counter)
    shares = (
        f"{name} {each['wall_s']:.2f} s ({counted[name]['flops'] / rate / each['wall_s']:.0%})"
        for name, each in taken.items()
    )
    return (
        f"GPU: {torch.cuda.get_device_name()}, {rate / 1e12:.1f} TFLOP/s in float32; wall seconds "
        f"of {size.train:,} × {size.test} rows, p = {size.parameters:,}, and their share of that "
        f"rate: {', '.join(shares)}."
    )


def fastest(make: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    make()
    taken = []
    for _ in range(3):
        started = clock()
        make()
        taken.append(clock() - started)
    return min(taken)


def gemm() -> float:
    """Operations a second of a large product, now: a machine's clock goes up and down."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / fastest(lambda: a @ a)


def copying() -> float:
    """Bytes a second that memory is copied with."""
    values = np.ones(8 * 2**20)
    return values.nbytes / fastest(values.copy)


if __name__ == "__main__":
    main()

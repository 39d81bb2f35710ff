"""`PYTHONPATH=tests python -m adversary 1234 [2000]`: the case of that number, or a range."""

import sys
import time

from adversary.outcomes import Summary, outcome


def main(first: int, after: int) -> None:
    summary = Summary([])
    for seed in range(first, after):
        start, one = time.perf_counter(), outcome(seed)
        summary.add(one)
        if one.failures or after == first + 1:
            print(f"{one.kind} {time.perf_counter() - start:.1f} s: {one}", flush=True)
    print(summary if after > first + 1 else one.errors | one.refusals)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(numbers[0], numbers[1] if len(numbers) > 1 else numbers[0] + 1)

"""The tiny project whose training rows have weights."""

from tiny_project import COLUMNS, Project

WEIGHTS = [float(k % 4) / 2 for k in range(40)]  # 0, 0.5, 1, 1.5


class Weighted(Project):
    """The same rows with a column `importance`."""

    def write(self, split, rows=None, weights=None):
        self.weights = getattr(self, "weights", {"train": WEIGHTS, "test": [7.0] * 10})
        self.weights[split] = weights or self.weights[split]
        self.rows[split] = self.rows[split] if rows is None else rows
        header = ",".join([*COLUMNS, "importance"])
        lines = [
            ",".join(map(str, [*row, weight]))
            for row, weight in zip(self.rows[split], self.weights[split], strict=True)
        ]
        (self.root / f"{split}.csv").write_text("\n".join([header, *lines]) + "\n")

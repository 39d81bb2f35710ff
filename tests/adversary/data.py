"""Random choices that follow from one integer, and the rows of a case."""

import random

import torch


class Draw:
    """Whatever a case chooses, from one seed; the same on every machine.

    `rows` training rows come first, then `tests` test rows. The first `plain` training rows do
    not show the structure of the others: they are short, small, of one class, of one token; the
    others are `scale` times as large. Numbers are drawn in float32, so that a case has the same
    θ and the same rows in both precisions.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._torch = torch.Generator().manual_seed(seed)
        self.rows, self.tests = self.whole(6, 10), self.whole(2, 3)
        self.plain = self.one_of(0, 0, 3, 4, 5)
        self.scale = self.one_of(1.0, 1.0, 1.0, 10.0, 60.0, 1e3)
        self.dtype = self.one_of(torch.float64, torch.float64, torch.float32)

    @property
    def total(self) -> int:
        return self.rows + self.tests

    def one_of(self, *values):
        return self._random.choice(values)

    def whole(self, least, most):
        return self._random.randint(least, most)

    def chance(self, share):
        return self._random.random() < share

    def some_of(self, values, count):
        return self._random.sample(list(values), count)

    def permutation(self, n):
        return torch.randperm(n, generator=self._torch)

    def cuts(self, n):
        """Sizes of batches that add up to n, ragged."""
        sizes = []
        while sum(sizes) < n:
            sizes.append(min(self.whole(1, n), n - sum(sizes)))
        return sizes

    def normal(self, *shape):
        return torch.randn(*shape, generator=self._torch)

    def uniform(self, *shape):
        return torch.rand(*shape, generator=self._torch)

    def features(self, *shape):
        """A vector, image or sequence a row; the later rows scaled."""
        values = self.normal(self.total, *shape)
        values[self.plain : self.rows] *= self.scale
        return values

    def lengths(self, longest):
        """1 in the first rows, 1 to `longest` in the others, and somewhere the longest."""
        return self._structured(1, longest + 1, first=1, at_the_end=longest)

    def labels(self, classes):
        """One class in the first rows, all kinds in the others."""
        return self._structured(0, classes, first=0, at_the_end=classes - 1)

    def tokens(self, kinds, *shape):
        values = torch.randint(0, kinds, (self.total, *shape), generator=self._torch)
        values[: self.plain] = 1
        return values

    def _structured(self, least, above, *, first, at_the_end):
        values = torch.randint(least, above, (self.total,), generator=self._torch)
        values[: self.plain] = first
        values[self.rows - 1] = at_the_end
        return values

    def weights(self):
        """Weights of the training rows, or none: whole ones, fractions, zeros among them."""
        kind = self.one_of("none", "none", "none", "whole", "fractions")
        if kind == "none":
            return None
        if kind == "fractions":
            return 0.25 + self.uniform(self.rows)
        weights = torch.randint(0, 4, (self.rows,), generator=self._torch).float()
        weights[-1] = 2.0
        return weights


def each(function, x):
    """The function of every tensor of a tensor, a tuple or a dict."""
    if isinstance(x, dict):
        return {name: each(function, value) for name, value in x.items()}
    return tuple(each(function, value) for value in x) if isinstance(x, tuple) else function(x)


def in_precision(x, dtype):
    return each(lambda t: t.to(dtype) if t.is_floating_point() else t, x)

"""What a stored array's `formula` comes to in numbers: a small reader of the words, in float64.

Gradients are matrices whose columns are rows of data, so that the formulas read as they stand. What
a letter stands for is looked up in the `symbols` beside the formula, never assumed; how that is
computed is written out here for a network Linear, Tanh, Linear under cross entropy.
"""

import functools
import json
import re

import numpy as np
import reference
import torch
from torch.nn import functional as F

TOKEN = re.compile(
    r"(?:w_\w+ )?∇(?:θ )?[Lm]\(z_\w+\)|"
    r"\|[HG](?:_B)?\||[HGF](?:_k)?(?:_B)?(?![a-z])|d s I|λI|Λ|P|ᵀ|⁻¹|⁺|[()+‖]"
)


def dampings(about):
    """λ as the attributes have it: a number, those of a sweep, or (as JSON) those of blocks."""
    said = about["damping"]
    return json.loads(said) if isinstance(said, str) and said.startswith("{") else said


def once(function):
    """What a fitted module and rows come to, computed once however many arrays and formulas ask.

    Of equal parameters, rows and further arguments it is the same.
    """
    known = {}

    @functools.wraps(function)
    def found(self, *arguments):
        weights = None if self.weights is None else tuple(self.weights)
        tensors = (*self.module.parameters(), *self.train, *self.test)
        seen = tuple(tensor.detach().numpy().tobytes() for tensor in tensors)
        key = (arguments, weights, seen)
        if key not in known:
            known[key] = function(self, *arguments)
        return known[key]

    return found


class Meaning:
    """The numbers behind the letters, for one array's attributes, a fitted module and its rows."""

    def __init__(self, about, module, train, test, functions, sizes, weights=None):
        self.about, self.module, self.train, self.test = about, module, train, test
        self.functions, self.sizes = functions, sizes  # of m and others by name; of parameters
        pairs = (entry.split(" = ", 1) for entry in about["symbols"].split("; "))
        self.symbols = dict(pairs)
        self.damping, self.weights = dampings(about), weights

    def at(self, damping):
        self.damping = damping
        return self

    def gradient(self, letter, rows, weighted=False):
        found = self._gradient(self.symbols[letter], rows)
        return found * self.weights if weighted else found

    @once
    def _gradient(self, name, rows):
        loss = self.functions[name]
        of_batch = loss if name in ("cross_entropy",) else lambda o, y: loss(o, y).mean()
        split = {"z_test": self.test, "z_train": self.train, "z_i": self.train}[rows]
        return reference.per_sample_gradients(self.module, of_batch, *split).numpy().T

    def matrix(self, letter):
        """A letter's matrix from its definition."""
        said = self.symbols[letter]
        count = self.about["n_train"]
        if said == "(1/weight_sum) Σ_i w_i ∇²L(z_i, θ)":
            return self._weighted_hessian() / self.about["weight_sum"]
        if said == "(1/n_train) Σ_i ∇²L(z_i, θ)":
            return self._hessian() * len(self.train[1]) / count
        if said == "(1/n_train) Σ_i J_iᵀ (∂²L/∂output²) J_i":
            return sum(J.T @ S @ J for J, S in zip(*self._jacobians(), strict=True)) / count
        if match := re.fullmatch(r"(\w+) with the absolute values of its eigenvalues", said):
            values, vectors = np.linalg.eigh(self.matrix(match[1]))
            return (vectors * np.abs(values)) @ vectors.T
        if match := re.fullmatch(r"(\w) without what couples the blocks of parameters", said):
            return np.where(self._same_block(), self.matrix(match[1]), 0.0)
        if match := re.fullmatch(r"the (\d+) eigenpairs of (\w) of largest \|eigenvalue\|", said):
            values, vectors = self._leading(match[2], int(match[1]))
            return (vectors * values) @ vectors.T
        if match := re.fullmatch(r"the Nyström approximation of (\w) of rank (\d+)", said):
            assert int(match[2]) == sum(self.sizes.values()), "exact at full rank alone"
            return self.matrix(match[1])
        fisher = "the exact Fisher G in Kronecker factors of each layer, "
        assert said.startswith(fisher), said
        return self._kronecker(said.removeprefix(fisher) == "eigenvalues corrected")

    @once
    def _hessian(self):
        return reference.hessian(self.module, F.cross_entropy, *self.train).numpy()

    @once
    def _weighted_hessian(self):
        x, y = self.train
        each = (
            w * reference.hessian(self.module, F.cross_entropy, x[k : k + 1], y[k : k + 1]).numpy()
            for k, w in enumerate(self.weights)
        )
        return sum(each)

    def projection(self):
        assert self.symbols["P"] == "the projection on these eigenvectors"
        said = next(text for text in self.symbols.values() if "eigenpairs" in text)
        match = re.search(r"the (\d+) eigenpairs of (\w)", said)
        _, vectors = self._leading(match[2], int(match[1]))
        return vectors @ vectors.T

    def _leading(self, letter, rank):
        values, vectors = np.linalg.eigh(self.matrix(letter))
        first = np.argsort(-np.abs(values))[:rank]
        return values[first], vectors[:, first]

    def shift(self, token):
        size = sum(self.sizes.values())
        if token == "λI":
            assert self.symbols["λ"] == "damping"
            return self.damping * np.eye(size)
        if token == "Λ":
            assert self.symbols["Λ"] == "the λ of each parameter's block (damping)"
            each = [self.damping[name.rpartition(".")[0]] for name in self.sizes]
            return np.diag(np.repeat(each, list(self.sizes.values())))
        d, s = re.fullmatch(r"([\d.]+), s = ([\d.]+)", self.symbols["d"]).groups()
        return float(d) * float(s) * np.eye(size)

    def _same_block(self):
        layers = [name.rpartition(".")[0] for name in self.sizes]
        block = np.repeat(layers, list(self.sizes.values()))
        return block[:, None] == block[None, :]

    @once
    def _jacobians(self):
        x, _ = self.train
        theta = [p.detach() for p in self.module.parameters()]
        names = [name for name, _ in self.module.named_parameters()]

        def outputs(row, *values):
            named = dict(zip(names, values, strict=True))
            return torch.func.functional_call(self.module, named, (row[None],))[0]

        found = []
        for row in x:
            parts = torch.func.jacrev(outputs, tuple(range(1, len(theta) + 1)))(row, *theta)
            found.append(torch.cat([part.flatten(1) for part in parts], dim=1).numpy())
        p = self.module(x).softmax(1).detach().numpy()
        return found, [np.diag(q) - np.outer(q, q) for q in p]

    def _kronecker(self, corrected):
        x = self.train[0].numpy()
        first, _, second = self.module
        a = np.tanh(x @ first.weight.detach().numpy().T + first.bias.detach().numpy())
        _, S = self._jacobians()
        roots = []
        for each in S:
            values, vectors = np.linalg.eigh(each)
            roots.append(vectors * np.sqrt(np.clip(values, 0, None)))
        W = second.weight.detach().numpy()
        g_second = np.stack(roots).transpose(0, 2, 1)  # (n, c, outputs)
        g_first = (g_second @ W) * (1 - a**2)[:, None]
        blocks = [
            _kronecker_block(inputs, g, corrected) for inputs, g in ((x, g_first), (a, g_second))
        ]
        total = np.zeros((len(blocks[0]) + len(blocks[1]),) * 2)
        total[: len(blocks[0]), : len(blocks[0])] = blocks[0]
        total[len(blocks[0]) :, len(blocks[0]) :] = blocks[1]
        return total


def _kronecker_block(inputs, g, corrected):
    """(Q_G ⊗ Q_A) Λ (Q_G ⊗ Q_A)ᵀ with parameters in the order weight, bias."""
    n, d_in, d_out = len(inputs), inputs.shape[1] + 1, g.shape[2]
    a = np.column_stack([inputs, np.ones(n)])
    A, G = a.T @ a / n, np.einsum("nco,ncp->op", g, g) / n
    if corrected:
        (_, Q_A), (_, Q_G) = np.linalg.eigh(A), np.linalg.eigh(G)
        values = np.einsum("nco,ni->oi", (g @ Q_G) ** 2, (a @ Q_A) ** 2) / n
        Q = np.kron(Q_G, Q_A)
        full = (Q * values.ravel()) @ Q.T
    else:
        full = np.kron(G, A)
    index = np.arange(d_out * d_in).reshape(d_out, d_in)
    order = np.concatenate([index[:, :-1].ravel(), index[:, -1]])
    return full[np.ix_(order, order)]


def evaluated(formula, meaning):
    """The matrix that a formula comes to; `‖…‖` is the length of each column."""
    tokens = TOKEN.findall(formula)
    assert "".join(tokens).replace(" ", "") == formula.replace(" ", ""), (formula, tokens)
    value, rest = _sum(tokens, meaning)
    assert not rest, (formula, rest)
    return value


def _sum(tokens, meaning):
    value, tokens = _product(tokens, meaning)
    while tokens and tokens[0] == "+":
        term, tokens = _product(tokens[1:], meaning)
        value = value + term
    return value, tokens


def _product(tokens, meaning):
    value = None
    while tokens and tokens[0] not in ("+", ")") and not (tokens[0] == "‖" and value is not None):
        factor, tokens = _factor(tokens, meaning)
        value = factor if value is None else value @ factor
    return value, tokens


def _factor(tokens, meaning):
    head, tokens = tokens[0], tokens[1:]
    if head in ("(", "‖"):
        value, tokens = _sum(tokens, meaning)
        assert tokens[0] == {"(": ")", "‖": "‖"}[head]
        tokens = tokens[1:]
        value = np.linalg.norm(value, axis=0) if head == "‖" else value
    elif match := re.fullmatch(r"(w_\w+ )?∇(?:θ )?([Lm])\((z_\w+)\)", head):
        weight, *rest = match.groups()
        assert not weight or meaning.symbols["w"].endswith(", the rows' weights")
        value = meaning.gradient(*rest, weighted=bool(weight))
    elif head == "P":
        value = meaning.projection()
    elif head in ("λI", "Λ", "d s I"):
        value = meaning.shift(head)
    else:
        value = meaning.matrix(head)
    powers = {"ᵀ": np.transpose, "⁻¹": np.linalg.inv, "⁺": _pseudo_inverse}
    while tokens and tokens[0] in powers:
        value, tokens = powers[tokens[0]](value), tokens[1:]
    return value, tokens


def _pseudo_inverse(matrix):
    return np.linalg.pinv(matrix, rcond=1e-10, hermitian=True)


def residual(words, meaning, solution, test_letter):
    """`relative residual ‖(H + λI) s − b‖ / ‖b‖` of stored factors, b the test rows' gradients."""
    (system,) = re.fullmatch(r"relative residual ‖\((.*)\) s − b‖ / ‖b‖", words).groups()
    b = meaning.gradient(test_letter, "z_test")
    left = evaluated(f"({system})", meaning) @ solution.T - b
    return np.linalg.norm(left, axis=0) / np.linalg.norm(b, axis=0)

"""Blocks of a Kronecker-factored curvature: into the eigenbasis and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from influence_dag.curvature.kronecker_layout import (
    DenseGroup,
    KroneckerLayer,
    KroneckerLayout,
    Place,
)
from influence_dag.gradients.blocks import LinearGradients
from influence_dag.gradients.layouts import joined


@dataclass(frozen=True, eq=False)
class KroneckerBlock:
    r"""A layer's curvature $(Q_G \otimes Q_A) \Lambda (Q_G \otimes Q_A)^\top$.

    Its gradients are matrices `(d_out, d_in)`, the bias being the last column.
    """

    layer: KroneckerLayer
    activation_eigenvectors: Float[Tensor, "d_in d_in"]
    gradient_eigenvectors: Float[Tensor, "d_out d_out"]
    eigenvalues: Float[Tensor, "d_out d_in"]

    def tensors(self) -> dict[str, Tensor]:
        return {
            joined(self.layer.name, "activation_eigenvectors"): self.activation_eigenvectors,
            joined(self.layer.name, "gradient_eigenvectors"): self.gradient_eigenvectors,
            joined(self.layer.name, "eigenvalues"): self.eigenvalues,
        }

    @property
    def places(self) -> tuple[Place, ...]:
        """Where its parameters are in θ."""
        return self.layer.places

    def rotate(self, parts: Sequence[Float[Tensor, "k _"]]) -> Float[Tensor, "k d_out d_in"]:
        r"""$Q_G^\top V Q_A$ of each row's matrix V, given what it has at each of the `places`."""
        weight, *bias = parts
        d_out = len(self.eigenvalues)
        V = (
            weight.unflatten(1, (-1, d_out)).mT
            if self.layer.transposed
            else weight.unflatten(1, (d_out, -1))
        )
        V = torch.cat([V, *(part.unsqueeze(2) for part in bias)], dim=2)
        V = V.to(self.activation_eigenvectors.dtype)
        return self.gradient_eigenvectors.T @ (V @ self.activation_eigenvectors)

    def rotate_pairs(
        self, pairs: LinearGradients
    ) -> tuple[Float[Tensor, "n *t d_in"], Float[Tensor, "n *t d_out"]]:
        r"""$Q_A^\top \tilde a$ and $Q_G^\top g$: the rotated gradient, never formed."""
        a = pairs.activations
        if self.layer.bias:
            a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)
        Q_A, Q_G = self.activation_eigenvectors, self.gradient_eigenvectors
        return a.to(Q_A.dtype) @ Q_A, pairs.output_gradients.to(Q_G.dtype) @ Q_G

    def put_back(self, rotated: Float[Tensor, "k d_out d_in"], out: Float[Tensor, "k p"]) -> None:
        """Write the rows that `rotate` would take to these into their places of `out`."""
        V = self.gradient_eigenvectors @ (rotated @ self.activation_eigenvectors.T)
        if self.layer.bias:
            out[:, slice(*self.layer.bias)] = V[:, :, -1]
            V = V[:, :, :-1]
        V = V.mT if self.layer.transposed else V
        out[:, slice(*self.layer.weight)].unflatten(1, V.shape[1:]).copy_(V)


@dataclass(frozen=True, eq=False)
class DenseBlock:
    r"""The curvature $Q \mathrm{diag}(\Lambda) Q^\top$ of parameters outside captured layers."""

    group: DenseGroup
    eigenvectors: Float[Tensor, "q q"]
    eigenvalues: Float[Tensor, " q"]

    @classmethod
    def of(
        cls, group: DenseGroup, fisher: Float[Tensor, "q q"], dtype: torch.dtype
    ) -> "DenseBlock":
        values, vectors = torch.linalg.eigh(fisher)
        return cls(group, vectors.to(dtype), values.clamp(min=0))

    def tensors(self) -> dict[str, Tensor]:
        return {
            joined(self.group.name, "dense_eigenvectors"): self.eigenvectors,
            joined(self.group.name, "dense_eigenvalues"): self.eigenvalues,
        }

    @property
    def places(self) -> tuple[Place, ...]:
        """Where its parameters are in θ."""
        return self.group.places

    def rotate(self, parts: Sequence[Float[Tensor, "k _"]]) -> Float[Tensor, "k q"]:
        r"""$Q^\top v$ of each row, given what it has at each of the `places`."""
        return torch.cat(list(parts), dim=1).to(self.eigenvectors.dtype) @ self.eigenvectors

    def put_back(self, rotated: Float[Tensor, "k q"], out: Float[Tensor, "k p"]) -> None:
        """Write the rows that `rotate` would take to these into their places of `out`."""
        values = rotated @ self.eigenvectors.T
        for start, stop in self.group.places:
            out[:, start:stop] = values[:, : stop - start]
            values = values[:, stop - start :]


def restored_blocks(
    tensors: Mapping[str, Tensor], layout: KroneckerLayout
) -> tuple[KroneckerBlock | DenseBlock, ...]:
    """The blocks whose tensors these are, in the order of the layout."""
    layers = [
        KroneckerBlock(
            layer,
            tensors[joined(layer.name, "activation_eigenvectors")],
            tensors[joined(layer.name, "gradient_eigenvectors")],
            tensors[joined(layer.name, "eigenvalues")],
        )
        for layer in layout.layers
    ]
    dense = [
        DenseBlock(
            group,
            tensors[joined(group.name, "dense_eigenvectors")],
            tensors[joined(group.name, "dense_eigenvalues")],
        )
        for group in layout.dense
    ]
    return (*layers, *dense)

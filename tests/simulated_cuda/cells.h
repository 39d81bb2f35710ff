// Cells of recurrent layers, which CUDA has fused kernels for and the processor has none: written
// out, with what their backward passes read.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <tuple>

namespace simulated {

using at::Tensor;
using Maybe = std::optional<Tensor>;

inline Tensor biased(const Tensor& gates, const Maybe& bias) {
  return bias && bias->defined() ? gates + *bias : gates;
}

inline Tensor or_zeros(const Maybe& gradient, const Tensor& like) {
  return gradient && gradient->defined() ? *gradient : at::zeros_like(like);
}

inline std::tuple<Tensor, Tensor, Tensor> lstm(const Tensor& x, const Tensor& h, const Tensor& cx,
                                               const Maybe& bias_x, const Maybe& bias_h) {
  auto gates = (biased(x, bias_x) + biased(h, bias_h)).chunk(4, 1);
  Tensor i = gates[0].sigmoid(), f = gates[1].sigmoid(), g = gates[2].tanh(),
         o = gates[3].sigmoid();
  Tensor cy = f * cx + i * g;
  return {o * cy.tanh(), cy, at::cat({i, f, g, o}, 1)};
}

inline std::tuple<Tensor, Tensor, Tensor> lstm_backward(const Maybe& grad_hy, const Maybe& grad_cy,
                                                        const Tensor& cx, const Tensor& cy,
                                                        const Tensor& kept, bool has_bias) {
  auto parts = kept.chunk(4, 1);
  const Tensor &i = parts[0], &f = parts[1], &g = parts[2], &o = parts[3];
  Tensor squashed = cy.tanh(), dh = or_zeros(grad_hy, cy);
  Tensor dc = or_zeros(grad_cy, cy) + dh * o * (1 - squashed * squashed);
  Tensor gates = at::cat({dc * g * i * (1 - i), dc * cx * f * (1 - f), dc * i * (1 - g * g),
                          dh * squashed * o * (1 - o)},
                         1);
  return {gates, dc * f, has_bias ? gates.sum(0) : Tensor()};
}

inline std::tuple<Tensor, Tensor> gru(const Tensor& x, const Tensor& h, const Tensor& hx,
                                      const Maybe& bias_x, const Maybe& bias_h) {
  auto in = biased(x, bias_x).chunk(3, 1), hidden = biased(h, bias_h).chunk(3, 1);
  Tensor r = (in[0] + hidden[0]).sigmoid(), z = (in[1] + hidden[1]).sigmoid();
  Tensor n = (in[2] + r * hidden[2]).tanh();
  return {(hx - n) * z + n, at::cat({r, z, n, hx, hidden[2]}, 1)};
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_backward(const Tensor& grad,
                                                                       const Tensor& kept,
                                                                       bool has_bias) {
  auto parts = kept.chunk(5, 1);
  const Tensor &r = parts[0], &z = parts[1], &n = parts[2], &hx = parts[3], &hn = parts[4];
  Tensor dz = grad * (hx - n) * z * (1 - z), dn = grad * (1 - z) * (1 - n * n);
  Tensor dr = dn * hn * r * (1 - r);
  Tensor x = at::cat({dr, dz, dn}, 1), h = at::cat({dr, dz, dn * r}, 1);
  return {x, h, grad * z, has_bias ? x.sum(0) : Tensor(), has_bias ? h.sum(0) : Tensor()};
}

}  // namespace simulated

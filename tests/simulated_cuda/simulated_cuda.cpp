// A CUDA device for a torch without CUDA: tensors that are called cuda:0, in the host's memory.

#include <torch/library.h>

#include "calls.h"
#include "cells.h"

namespace {

using namespace simulated;

const bool taken_place = (take_place(), true);

void nothing(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  torch::jit::drop(*stack, op.schema().arguments().size());
}

int64_t plain_products(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                       double, bool, std::optional<double>, bool) {
  return 0;
}

c10::Dict<std::string, int64_t> counts() {
  std::lock_guard<std::mutex> guard(Counts::lock);
  c10::Dict<std::string, int64_t> all;
  for (const auto& [what, times] : Counts::of) all.insert(what, times);
  return all;
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&call>()); }

// What would look for a kernel of the device in another way than by the dispatcher.
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  for (const char* name : {"copy_", "convolution", "convolution_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&call>());
  m.impl("record_stream", torch::CppFunction::makeFromBoxedFunction<&nothing>());
  m.impl("_fused_sdp_choice", plain_products);
  m.impl("_thnn_fused_lstm_cell", lstm);
  m.impl("_thnn_fused_lstm_cell_backward_impl", lstm_backward);
  m.impl("_thnn_fused_gru_cell", gru);
  m.impl("_thnn_fused_gru_cell_backward", gru_backward);
}

TORCH_LIBRARY(simulated_cuda, m) {
  m.def("counts() -> Dict(str, int)", counts);
  m.def("default_generator() -> Generator?", [] { return default_generator(); });
}

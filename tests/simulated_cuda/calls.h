// A call of any operation on tensors of the device: refused as CUDA refuses it, or done by the
// processor's kernel on the same memory.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "device.h"

namespace simulated {

using at::Tensor;
using c10::IValue;

inline bool on_device(const Tensor& t) { return t.defined() && t.is_cuda(); }
inline bool on_host(const Tensor& t) { return t.defined() && t.is_cpu(); }

// ---- what was asked ----------------------------------------------------------------------------

struct Counts {
  static inline std::mutex lock;
  static inline std::map<std::string, int64_t> of;

  static void add(const std::string& what) {
    std::lock_guard<std::mutex> guard(lock);
    ++of[what];
  }
};

inline void count(const c10::FunctionSchema& schema, at::ArrayRef<IValue> arguments) {
  Counts::add(schema.name());
  if (schema.name() != "aten::copy_") return;
  if (on_host(arguments[0].toTensor())) Counts::add("device to host");
  if (on_host(arguments[1].toTensor())) Counts::add("host to device");
}

// ---- what is refused ---------------------------------------------------------------------------

const std::set<std::string> kTakesBoth = {"aten::copy_", "aten::set_"};
const std::set<std::string> kIndexed = {"aten::index", "aten::_unsafe_index", "aten::index_put_",
                                        "aten::_index_put_impl_", "aten::_unsafe_index_put"};
// Those that refuse a single number on the host as well; all others take it.
const std::set<std::string> kNoHostNumber = {
    "aten::gather",       "aten::index_select", "aten::index_add", "aten::index_add_",
    "aten::index_copy",   "aten::index_copy_",  "aten::scatter",   "aten::scatter_",
    "aten::scatter_add",  "aten::scatter_add_", "aten::take",      "aten::embedding_dense_backward",
    "aten::nll_loss_forward"};

// Those that CUDA has for decimals alone.
const std::set<std::string> kOfDecimals = {
    "aten::mm",    "aten::bmm",   "aten::mv",  "aten::dot",         "aten::addmm",
    "aten::addmv", "aten::addbmm", "aten::baddbmm", "aten::convolution"};

template <class Visit>
void each_tensor(const IValue& value, Visit visit) {
  if (value.isTensor()) visit(value.toTensor());
  if (value.isTensorList())
    for (const Tensor& t : value.toTensorVector()) visit(t);
  if (value.isOptionalTensorList())
    for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
      if (t) visit(*t);
}

inline void check_indexed(const std::string& name, at::ArrayRef<IValue> arguments) {
  const Tensor& indexed = arguments[0].toTensor();
  each_tensor(arguments[1], [&](const Tensor& index) {
    TORCH_CHECK(!(on_host(indexed) && on_device(index)),
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
    if (on_host(index)) Counts::add("host to device");
  });
  if (arguments.size() < 3) return;
  each_tensor(arguments[2], [&](const Tensor& values) {
    TORCH_CHECK(values.device() == indexed.device() || values.dim() == 0,
                "Expected all tensors to be on the same device, but found at least two devices, "
                "cuda:0 and cpu! (when calling ", name, ")");
  });
}

inline void check_kind(const std::string& name, const Tensor& operand) {
  const auto kind = operand.scalar_type();
  TORCH_CHECK(!at::isIntegralType(kind, /*includeBool=*/true), "\"", name,
              "_cuda\" not implemented for '", kind, "'");
}

inline void check_devices(const std::string& name, at::ArrayRef<IValue> arguments) {
  if (kOfDecimals.count(name)) check_kind(name, arguments[0].toTensor());
  if (kTakesBoth.count(name)) return;
  if (kIndexed.count(name)) return check_indexed(name, arguments);
  const bool takes_number = !kNoHostNumber.count(name);
  for (const IValue& argument : arguments)
    each_tensor(argument, [&](const Tensor& t) {
      TORCH_CHECK(!on_host(t) || (t.dim() == 0 && takes_number),
                  "Expected all tensors to be on the same device, but found at least two devices, "
                  "cuda:0 and cpu! (when calling ", name, ")");
    });
}

// ---- what is done ------------------------------------------------------------------------------

// Tensors of the device as the processor's kernels see them, for the length of one call.
class Lent {
 public:
  IValue lend(const IValue& value) {
    if (value.isTensor()) return lend(value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> all;
      for (const Tensor& t : value.toTensorVector()) all.push_back(lend(t));
      return all;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> all;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        all.push_back(t ? std::optional<Tensor>(lend(*t)) : std::nullopt);
      return all;
    }
    if (value.isDevice() && value.toDevice().type() == kDevice.type()) return kHost;
    if (value.isStorage() && value.toStorage().device() == kDevice) return lend(value.toStorage());
    if (value.isGenerator()) return host_generator(value.toGenerator());
    return value;
  }

  // Memory and sizes that the call has given to tensors of the device (resize_, set_, out=).
  void settle() {
    for (auto& [theirs, pair] : storages_) {
      auto& [mine, lent] = pair;
      if (lent.data() != mine.data()) mine.set_data_ptr_noswap(renamed(lent, kDevice));
      mine.unsafeGetStorageImpl()->set_nbytes(lent.nbytes());
    }
    for (auto& [mine, lent] : tensors_) {
      auto* impl = mine.unsafeGetTensorImpl();
      const c10::Storage now = of_device(lent.storage());
      if (!now.is_alias_of(impl->storage())) impl->set_storage_keep_dtype(now);
      if (mine.sizes() != lent.sizes() || mine.strides() != lent.strides() ||
          mine.storage_offset() != lent.storage_offset())
        impl->set_sizes_and_strides(lent.sizes(), lent.strides(), lent.storage_offset());
    }
  }

  IValue back(const IValue& value) const {
    if (value.isTensor()) return back(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> all;
    for (const Tensor& t : value.toTensorVector()) all.push_back(back(t));
    return all;
  }

 private:
  static Tensor remade(const Tensor& t, c10::Storage storage, c10::BackendComponent from,
                       c10::BackendComponent to) {
    auto keys = t.key_set().remove_backend(from) | c10::DispatchKeySet(to);
    Tensor made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, t.dtype());
    auto* impl = made.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
    return made;
  }

  c10::Storage lend(const c10::Storage& mine) {
    for (auto& [theirs, pair] : storages_)
      if (pair.first.is_alias_of(mine)) return pair.second;
    c10::Storage lent = renamed_storage(mine, kHost);
    storages_.emplace(lent.unsafeGetStorageImpl(), std::make_pair(mine, lent));
    return lent;
  }

  Tensor lend(const Tensor& mine) {
    if (!on_device(mine)) {
      hosts_.insert(mine.unsafeGetTensorImpl());
      return mine;
    }
    for (auto& [known, lent] : tensors_)
      if (known.is_same(mine)) return lent;
    Tensor lent = remade(mine, lend(mine.storage()), c10::BackendComponent::CUDABit,
                         c10::BackendComponent::CPUBit);
    tensors_.emplace_back(mine, lent);
    return lent;
  }

  c10::Storage of_device(const c10::Storage& theirs) const {
    auto found = storages_.find(theirs.unsafeGetStorageImpl());
    return found == storages_.end() ? renamed_storage(theirs, kDevice) : found->second.first;
  }

  // The tensor itself where it was lent, a view of what was lent, or a new tensor.
  Tensor back(const Tensor& theirs) const {
    if (!theirs.defined() || hosts_.count(theirs.unsafeGetTensorImpl())) return theirs;
    for (auto& [mine, lent] : tensors_)
      if (lent.is_same(theirs)) return mine;
    return remade(theirs, of_device(theirs.storage()), c10::BackendComponent::CPUBit,
                  c10::BackendComponent::CUDABit);
  }

  std::map<c10::StorageImpl*, std::pair<c10::Storage, c10::Storage>> storages_;
  std::vector<std::pair<Tensor, Tensor>> tensors_;
  std::set<c10::TensorImpl*> hosts_;
};

inline void call(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t taken = schema.arguments().size(), returned = schema.returns().size();
  const size_t start = stack->size() - taken;
  check_devices(schema.name(), torch::jit::last(*stack, taken));
  count(schema, torch::jit::last(*stack, taken));
  Lent lent;
  for (size_t i = 0; i < taken; ++i) {
    IValue& value = (*stack)[start + i];
    const bool draws = value.isNone() && schema.arguments()[i].name() == "generator";
    value = draws ? IValue(host_generator(default_generator())) : lent.lend(value);
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  lent.settle();
  for (size_t i = 0; i < returned; ++i) {
    IValue& value = (*stack)[start + i];
    value = lent.back(value);
  }
}

}  // namespace simulated

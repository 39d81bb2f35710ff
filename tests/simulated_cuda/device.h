// What torch asks of a device: memory, random numbers, streams, hooks. All of it is the host's.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <mutex>
#include <new>
#include <set>

namespace simulated {

const c10::Device kHost(c10::DeviceType::CPU);
const c10::Device kDevice(c10::DeviceType::CUDA, 0);

// ---- memory ------------------------------------------------------------------------------------

// The bytes of `owner` under the name of another device; `owner` is kept for as long.
inline c10::DataPtr renamed(c10::Storage owner, c10::Device device) {
  void* data = owner.mutable_data();
  auto release = [](void* kept) { delete static_cast<c10::Storage*>(kept); };
  return {data, new c10::Storage(std::move(owner)), release, device};
}

inline c10::Storage renamed_storage(const c10::Storage& of, c10::Device device) {
  return c10::Storage(c10::Storage::use_byte_size_t(), of.nbytes(), renamed(of, device),
                      c10::GetAllocator(device.type()), /*resizable=*/true);
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* host = c10::GetCPUAllocator();
    return renamed(c10::Storage(c10::Storage::use_byte_size_t(), bytes, host, false), kDevice);
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

inline Memory memory;

// The host's memory; where it begins is noted, since `is_pinned` is asked by address.
struct PinnedMemory final : c10::Allocator {
  static inline std::mutex lock;
  static inline std::set<const void*> given;

  c10::DataPtr allocate(size_t bytes) override {
    auto* kept = new c10::DataPtr(c10::GetCPUAllocator()->allocate(bytes));
    std::lock_guard<std::mutex> guard(lock);
    given.insert(kept->get());
    return {kept->get(), kept, &PinnedMemory::release, kHost};
  }
  static void release(void* context) {
    auto* kept = static_cast<c10::DataPtr*>(context);
    std::lock_guard<std::mutex> guard(lock);
    given.erase(kept->get());
    delete kept;
  }
  static bool has(const void* data) {
    std::lock_guard<std::mutex> guard(lock);
    return given.count(data) > 0;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

inline PinnedMemory pinned_memory;

// ---- random numbers ----------------------------------------------------------------------------

// From a seed other numbers than the processor's, as a GPU draws: what depends on where it was
// drawn shows.
struct Random final : c10::GeneratorImpl {
  static constexpr uint64_t kOther = 0x9E3779B97F4A7C15ULL;

  explicit Random(uint64_t seed)
      : Random(seed, at::detail::createCPUGenerator(seed ^ kOther)) {}
  Random(uint64_t seed, at::Generator same)
      : c10::GeneratorImpl(kDevice, c10::DispatchKeySet(c10::DispatchKey::CUDA)),
        seed_(seed),
        host(std::move(same)) {}

  void set_current_seed(uint64_t seed) override {
    seed_ = seed;
    host.set_current_seed(seed ^ kOther);
  }
  uint64_t current_seed() const override { return seed_; }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom());
    return seed_;
  }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "not simulated: set_offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "not simulated: get_offset"); }
  void set_state(const c10::TensorImpl& state) override {
    host.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  Random* clone_impl() const override { return new Random(seed_, host.clone()); }

  uint64_t seed_;
  at::Generator host;
};

inline at::Generator new_generator() {
  return at::make_generator<Random>(c10::default_rng_seed_val);
}

inline const at::Generator& default_generator() {
  static const at::Generator only = new_generator();
  return only;
}

// What draws in place of a generator of the device.
inline at::Generator host_generator(const at::Generator& given) {
  TORCH_CHECK(given.device().type() == kDevice.type(),
              "Expected a 'cuda' device type for generator but found '", given.device().type(), "'");
  return static_cast<Random*>(given.unsafeGetGeneratorImpl())->host;
}

// ---- streams, events and hooks: one stream, on which all is done when it was asked for ----------

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kDevice); }

  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return default_generator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
  bool isPinnedPtr(const void* data) const override { return PinnedMemory::has(data); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  at::Allocator* getCUDADeviceAllocator() const override { return &memory; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

// Importing torch asks for its hooks, once and for all: the ones that it was given become these.
inline void take_place() {
  static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
  c10::SetAllocator(c10::DeviceType::CUDA, &memory);
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks();
}

}  // namespace simulated

// Memory fresh from the system costs more in page faults than in writing. Allocations of 32 MB and more always are:
// for them, a hint that they may come in huge pages.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace monai_ext {

inline void expect_writes(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096, kWorthIt = uintptr_t(32) << 20;
  if (bytes < kWorthIt) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a refusal changes nothing but the time
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace monai_ext

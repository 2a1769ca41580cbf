// Launching a kernel without the <<< >>> of CUDA's own compilers, so that another compiler can read the sources too.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

// The block's shared memory, as much as the launch asked for.
#define MONAI_EXT_SHARED(name) extern __shared__ char name[]

namespace monai_ext {

// The code of the launch's own error, 0 for none.
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared, void* stream, A... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;  // nothing to do is no error
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace monai_ext
#endif

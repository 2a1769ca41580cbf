// Runs CUDA kernels on the CPU, so that a machine without a GPU can check what they compute. One block at a time, each
// of its threads a coroutine; __syncthreads and __syncwarp hand over to the next one. Included before the .cu by
// -include.
#pragma once
#include <math.h>
#include <ucontext.h>

#include <cstdint>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int cudaErrorInvalidValue = 1;

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define MONAI_EXT_SHARED(name) char* const name = cuda_on_cpu::shared

namespace cuda_on_cpu {

static char shared[1 << 16];
static ucontext_t scheduler;
static ucontext_t* running;
static void (*body)(void*);
static void* arguments;

static void enter() { body(arguments); }

template <class Call>
void run_block(int threads, Call& call) {
  constexpr size_t kStack = 1 << 17;
  static std::vector<char> stacks;
  stacks.resize(threads * kStack);
  std::vector<ucontext_t> contexts(threads), done(threads);
  std::vector<char> alive(threads, 1);
  static std::vector<char>* alive_now;
  static int current;
  alive_now = &alive;
  body = [](void* pointer) {
    (*static_cast<Call*>(pointer))();
    (*alive_now)[current] = 0;
  };
  arguments = &call;
  for (int i = 0; i < threads; ++i) {
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = stacks.data() + i * kStack;
    contexts[i].uc_stack.ss_size = kStack;
    contexts[i].uc_link = &scheduler;
    makecontext(&contexts[i], enter, 0);
  }
  for (int left = threads; left > 0;) {
    left = 0;
    for (int i = 0; i < threads; ++i) {
      if (!alive[i]) continue;
      current = i;
      threadIdx.x = i;
      running = &contexts[i];
      swapcontext(&scheduler, running);
      left += alive[i];
    }
  }
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { swapcontext(cuda_on_cpu::running, &cuda_on_cpu::scheduler); }
inline void __syncwarp() { __syncthreads(); }

namespace monai_ext {

template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, int threads, size_t memory, void*, A... given) {
  // What a device refuses. The 16 kB are for what a kernel declares beside it.
  if (grid.y > 65535 || grid.z > 65535 || threads > 1024 || memory > (48 - 16) * 1024) return 1;
  auto call = [&] { kernel(given...); };
  gridDim = grid;
  blockDim = dim3(threads);
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) cuda_on_cpu::run_block(threads, call);
  return 0;
}

}  // namespace monai_ext

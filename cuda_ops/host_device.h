// Marks what both a CPU and a CUDA kernel call.
#pragma once

#if defined(__CUDACC__)
#define MONAI_EXT_BOTH __host__ __device__ inline
#else
#define MONAI_EXT_BOTH inline
#endif

#!/bin/sh
# Compile every CUDA source for the data-centre architectures in use; where there is no nvcc, say so and pass.
set -eu
nvcc=
for home in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do # as monai_ext/ops/building.py looks
    [ -z "$nvcc" ] && [ -x "$home/bin/nvcc" ] && nvcc=$home/bin/nvcc
done
nvcc=${nvcc:-$(command -v nvcc || true)}
if [ -z "$nvcc" ]; then
    echo "CUDA: nvcc is not found, the .cu sources are not compiled"
    exit 0
fi
object=$(mktemp)
trap 'rm -f "$object"' EXIT
for source in cuda_ops/*/*.cu; do
    for arch in 80 90; do
        "$nvcc" -std=c++17 -O3 -Werror all-warnings -gencode "arch=compute_$arch,code=sm_$arch" -c "$source" -o "$object"
    done
    echo "CUDA: $source compiles for sm_80 and sm_90"
done

// What the CPU and the CUDA kernel of selective_scan share: the shape, and where things lie.
//
//   decay = exp(delta A),  state = decay * state + delta B u,  y = <C, state> + D u
//
// delta (batch, groups * channels, length); A (groups * channels, states); B, C (batch, groups, states, length);
// u (batch, ways * channels, length). The first groups go through the ways of u; those after them through the same
// ways again, from their ends. Everything lies in the order of u, and y is as u: a way's scans are added up.
// saved (batch, chunks, states, groups * channels) is the state before each chunk: the backward pass restarts there.
#pragma once
#include <cstdint>

#include "../host_device.h"

struct ScanShape {
  int64_t batch, groups, ways, channels, states, length, chunk, softplus;

  MONAI_EXT_BOTH int64_t chunks() const { return (length + chunk - 1) / chunk; }
  MONAI_EXT_BOTH int64_t width() const { return groups * channels; }
  MONAI_EXT_BOTH int64_t row(int64_t b, int64_t channel) const { return (b * width() + channel) * length; }
  MONAI_EXT_BOTH int64_t line(int64_t b, int64_t channel) const {  // of u: where the row of that way begins
    return (b * ways * channels + channel % (ways * channels)) * length;
  }
  MONAI_EXT_BOTH bool from_the_end(int64_t g) const { return g >= ways; }
  MONAI_EXT_BOTH int64_t mix(int64_t b, int64_t g, int64_t n) const { return ((b * groups + g) * states + n) * length; }
  MONAI_EXT_BOTH int64_t save(int64_t b, int64_t chunk_index, int64_t n) const {
    return ((b * chunks() + chunk_index) * states + n) * width();
  }
};

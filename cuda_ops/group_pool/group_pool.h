// The shape that Python hands to group_pool's kernel.
//
// x (batch, channels, height, width), scale (batch, channels) or null, weight (channels, channels / groups, 3, 3),
// bias, gain, shift (channels) -> pooled (batch, channels)
#pragma once
#include <cstdint>

struct PoolShape {
  int64_t batch, channels, groups, height, width;

  int64_t members() const { return channels / groups; }
  int64_t pixels() const { return height * width; }
};

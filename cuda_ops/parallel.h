// Threads for the CPU kernels: plain std::thread, so that the library needs no OpenMP runtime and survives a fork.
#pragma once
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace monai_ext {

// Run body(unit) for every unit. What a unit is never depends on the number of threads, so results do not either.
// False if a body threw (memory ran out): the outputs are then not to be used.
template <class Body>
bool parallel_for(int64_t threads, int64_t units, const Body& body) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> sound{true};
  auto work = [&] {
    try {
      for (int64_t unit; (unit = next++) < units;) body(unit);
    } catch (...) {
      sound = false;
    }
  };
  std::vector<std::thread> crew;
  try {
    crew.reserve(threads);
    while (static_cast<int64_t>(crew.size()) + 1 < threads && static_cast<int64_t>(crew.size()) + 1 < units)
      crew.emplace_back(work);
  } catch (const std::exception&) {
    // The system grants no more threads: those that started, and this one, do the work.
  }
  work();
  for (auto& thread : crew) thread.join();
  return sound;
}

}  // namespace monai_ext

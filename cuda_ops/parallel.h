// Threads for the CPU kernels: torch's own OpenMP crew where there is one, std::thread elsewhere.
#pragma once
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace monai_ext {

// torch's idle OpenMP threads spin for a while after each of its operators: other threads would share their cores.
template <class Work>
void run_crew(int64_t threads, const Work& work) {
  if (threads <= 1) return work();
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(threads))
  work();
#else
  std::vector<std::thread> crew;
  try {
    crew.reserve(threads);
    for (int64_t i = 1; i < threads; ++i) crew.emplace_back(work);
  } catch (const std::exception&) {
    // The system grants no more threads: those that started, and this one, do the work.
  }
  work();
  for (auto& thread : crew) thread.join();
#endif
}

// Run body(unit) for every unit. What a unit is never depends on the number of threads, so results do not either.
// False if a body threw (memory ran out): the outputs are then not to be used.
template <class Body>
bool parallel_for(int64_t threads, int64_t units, const Body& body) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> sound{true};
  run_crew(threads < units ? threads : units, [&] {
    try {
      for (int64_t unit; (unit = next++) < units;) body(unit);
    } catch (...) {
      sound = false;
    }
  });
  return sound;
}

}  // namespace monai_ext

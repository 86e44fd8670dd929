#pragma once

#include <cstdint>
#include <functional>

namespace qtool {

// Calls its argument with 0 to tasks - 1, in any order and on several threads, and waits.
using ParallelFor = std::function<void(int64_t tasks, const std::function<void(int64_t)>& task)>;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace qtool

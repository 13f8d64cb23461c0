// Log lines while a checkpoint is loaded: bytes, share and rate.
#ifndef TROUPE_COMMON_LOAD_PROGRESS_H_
#define TROUPE_COMMON_LOAD_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <string>

#include "common/clock.h"
#include "common/logging.h"

namespace troupe {

// Call as a function with bytes done and in all; logs at most once a second,
// and once at the end. Not thread-safe.
class LoadProgress {
 public:
  explicit LoadProgress(std::string what) : what_(std::move(what)) {}

  void operator()(uint64_t done, uint64_t total) {
    const SteadyTime now = std::chrono::steady_clock::now();
    if (done < total && now - last_ < std::chrono::seconds(1)) return;
    last_ = now;
    const double seconds =
        std::chrono::duration<double>(now - start_).count() + 1e-9;
    spdlog::info("loading {}: {:.1f} of {:.1f} MB ({}%), {:.0f} MB/s", what_,
                 static_cast<double>(done) / 1e6,
                 static_cast<double>(total) / 1e6,
                 total == 0 ? 100 : 100 * done / total,
                 static_cast<double>(done) / 1e6 / seconds);
  }

 private:
  const std::string what_;
  const SteadyTime start_ = std::chrono::steady_clock::now();
  SteadyTime last_ = start_;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_LOAD_PROGRESS_H_

#include "gateway/admission.h"

#include <algorithm>

#include "common/check.h"

namespace troupe {

Admission::Ticket Admission::TryEnter() {
  absl::MutexLock lock(&mu_);
  if (active_ >= max_requests_) return Ticket();
  ++active_;
  return Ticket(this);
}

void Admission::Leave() {
  absl::MutexLock lock(&mu_);
  CHECK_GT(active_, 0u);
  --active_;
}

void Admission::RecordDuration(double duration_ms) {
  constexpr double kWeight = 0.2;  // of the newest in the moving mean
  absl::MutexLock lock(&mu_);
  mean_duration_ms_ += kWeight * (duration_ms - mean_duration_ms_);
}

int Admission::RetryDelayMs() const {
  absl::MutexLock lock(&mu_);
  const double delay_ms = mean_duration_ms_ / std::max(active_, 1u);
  return static_cast<int>(std::clamp(delay_ms, 100.0, 10000.0));
}

uint32_t Admission::active() const {
  absl::MutexLock lock(&mu_);
  return active_;
}

}  // namespace troupe

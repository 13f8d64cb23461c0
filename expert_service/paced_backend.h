// A slower processor than the one that is here.
#ifndef TROUPE_EXPERT_SERVICE_PACED_BACKEND_H_
#define TROUPE_EXPERT_SERVICE_PACED_BACKEND_H_

#include <chrono>
#include <memory>
#include <thread>

#include "expert_service/expert_backend.h"

namespace troupe {

// Computes with another backend and sleeps until a batch has taken a given time
// per copy: several processes of one machine then behave like processes of
// machines of their own, as far as their service rate goes. For experiments
// (tools/bench/elasticity.py). Does not own the other one.
class PacedBackend final : public ExpertBackend {
 public:
  PacedBackend(ExpertBackend& inner, double us_per_copy)
      : inner_(inner), us_per_copy_(us_per_copy) {}

  FrameLimits limits() const override { return inner_.limits(); }
  std::shared_ptr<const ExpertSet> experts() const override {
    return inner_.experts();
  }
  void Compute(size_t layer, ConstFloatMatrix hidden_states,
               std::span<const uint32_t> row_of_copy,
               std::span<const uint32_t> expert_offsets,
               std::span<const LoadedExpert* const> experts,
               FloatMatrix output) override {
    const auto done =
        std::chrono::steady_clock::now() +
        std::chrono::duration_cast<std::chrono::nanoseconds>(
            std::chrono::duration<double, std::micro>(
                us_per_copy_ * static_cast<double>(row_of_copy.size())));
    inner_.Compute(layer, hidden_states, row_of_copy, expert_offsets, experts,
                   output);
    std::this_thread::sleep_until(done);
  }

 private:
  ExpertBackend& inner_;
  const double us_per_copy_;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_PACED_BACKEND_H_

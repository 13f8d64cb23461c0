#include "gateway/router_health.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace troupe {
namespace {

// A router that was ready for so long has its failures forgotten.
constexpr milliseconds kCalm{10000};
constexpr double kSilenceFactor = 4;

double Ms(SteadyTime::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

std::string WithDetail(const char* state,
                       const v1::RouterDescription& description) {
  return description.detail().empty()
             ? state
             : absl::StrCat(state, ": ", description.detail());
}

}  // namespace

const char* Name(RouterState state) {
  switch (state) {
    case RouterState::kConnecting:
      return "connecting";
    case RouterState::kLoading:
      return "loading";
    case RouterState::kReady:
      return "ready";
    case RouterState::kDraining:
      return "draining";
    case RouterState::kSilent:
      return "silent";
    case RouterState::kStuck:
      return "stuck";
    case RouterState::kAway:
      return "away";
    case RouterState::kRefused:
      return "refused";
  }
  return "unknown";
}

void RouterHealth::Set(SteadyTime now, RouterState state,
                       const std::string& reason) {
  if (state == RouterState::kReady && state_ != state) {
    was_ready_ = true;
    ready_since_ = now;
  }
  if (state != state_) since_ = now;
  state_ = state;
  reason_ = reason;
}

void RouterHealth::Fail(SteadyTime now, RouterState state,
                        const std::string& reason) {
  if (ready()) {
    ++failures_;
    if (now - ready_since_ >= kCalm) failures_in_row_ = 0;
    // The first time it is back as soon as it answers.
    if (failures_in_row_++ > 0) {
      const uint64_t doublings =
          std::min<uint64_t>(failures_in_row_ - 2, uint64_t{16});
      readmit_at_ = now + std::min(options_.min_backoff * (1 << doublings),
                                   options_.max_backoff);
    }
  }
  Set(now, state, reason);
}

void RouterHealth::OnProbeSent(SteadyTime now) {
  probing_ = true;
  probe_sent_ = now;
}

void RouterHealth::OnAnswer(SteadyTime now,
                            const v1::RouterDescription& description,
                            const std::string& refusal) {
  const bool stale = probe_sent_ <= lost_at_;
  const double took_ms = Ms(now - probe_sent_);
  probing_ = false;
  heard_ = now;
  probe_ms_[num_probes_++ % kNumProbes] = took_ms;
  probe_ms_sum_ += took_ms;
  if (stale) return;
  if (description.progress() != progress_ || description.sequences() == 0 ||
      description_.sequences() == 0) {
    progress_ = description.progress();
    progressed_ = now;
  }
  description_ = description;
  if (!refusal.empty()) {
    Set(now, RouterState::kRefused, refusal);
    return;
  }
  switch (description.state()) {
    case v1::SERVING_STATE_READY:
      if (state_ == RouterState::kStuck && progressed_ != now) return;
      if (now < readmit_at_) {
        Set(now, state_ == RouterState::kReady ? RouterState::kAway : state_,
            absl::StrFormat("lost %d times in a row; tried again soon",
                            failures_in_row_));
        return;
      }
      Set(now, RouterState::kReady, "");
      return;
    case v1::SERVING_STATE_DRAINING:
      leave_at_ = now + milliseconds(description.leave_in_ms());
      Set(now, RouterState::kDraining, WithDetail("draining", description));
      return;
    case v1::SERVING_STATE_LOADING:
      Set(now, RouterState::kLoading, WithDetail("loading", description));
      return;
    default:
      Set(now, RouterState::kLoading, "in an unknown state");
  }
}

void RouterHealth::OnNoAnswer(SteadyTime now, bool timed_out,
                              const std::string& why) {
  probing_ = false;
  if (timed_out) {
    if (state_ == RouterState::kSilent) return;
    Fail(now, RouterState::kSilent, why);
  } else if (state_ != RouterState::kDraining || description_.sequences() > 0) {
    Fail(now, RouterState::kAway, why);
  } else {
    Set(now, RouterState::kAway, why);  // it had said so
  }
}

void RouterHealth::OnHeard(SteadyTime now) {
  heard_ = now;
  if (state_ == RouterState::kSilent && now >= readmit_at_ &&
      description_.state() == v1::SERVING_STATE_READY) {
    Set(now, RouterState::kReady, "");
  }
}

void RouterHealth::OnLost(SteadyTime now, const std::string& why) {
  lost_at_ = now;
  if (state_ == RouterState::kDraining) return;
  Fail(now, RouterState::kAway, absl::StrCat("lost a stream: ", why));
}

void RouterHealth::OnRefused(SteadyTime now) {
  lost_at_ = now;
  leave_at_ = kNoDeadline;  // until it says when
  Set(now, RouterState::kDraining, "draining");
}

void RouterHealth::OnTick(SteadyTime now, bool has_streams) {
  const bool answers =
      state_ == RouterState::kReady || state_ == RouterState::kLoading ||
      state_ == RouterState::kDraining || state_ == RouterState::kStuck;
  if (!answers) return;
  const SteadyTime heard = std::max(heard_, probe_sent_);
  if (probing_ && now - heard > SilenceLimit()) {
    Fail(now, RouterState::kSilent,
         absl::StrFormat("silent for %.0f ms", Ms(now - heard)));
    return;
  }
  if (ready() && has_streams && description_.sequences() > 0 &&
      now - progressed_ > options_.stall_after) {
    Fail(now, RouterState::kStuck,
         absl::StrFormat("its %d sequences have stood still for %.0f s",
                         description_.sequences(),
                         Ms(now - progressed_) / 1000));
  }
}

void RouterHealth::Forgive(SteadyTime::duration slept) {
  probe_sent_ += slept;
  heard_ += slept;
  progressed_ += slept;
}

bool RouterHealth::IsToLeave(SteadyTime now) const {
  switch (state_) {
    case RouterState::kConnecting:
    case RouterState::kReady:
      return false;
    case RouterState::kLoading:
      return now - since_ >= options_.loading_grace;
    case RouterState::kDraining:
      return now >= leave_at_;
    default:
      return true;
  }
}

bool RouterHealth::IsDoubtful() const {
  return state_ == RouterState::kSilent || state_ == RouterState::kStuck ||
         state_ == RouterState::kAway;
}

bool RouterHealth::IsHeir(SteadyTime now) const {
  return ready() && (description_.sequences() == 0 ||
                     now - progressed_ <= options_.stall_after / 2);
}

milliseconds RouterHealth::SilenceLimit() const {
  const milliseconds learnt(
      static_cast<int64_t>(kSilenceFactor * probe_ms_max()));
  return std::clamp(learnt, options_.min_silence, options_.max_silence);
}

double RouterHealth::probe_ms_mean() const {
  return num_probes_ == 0 ? 0
                          : probe_ms_sum_ / static_cast<double>(num_probes_);
}

double RouterHealth::probe_ms_max() const {
  return *std::max_element(probe_ms_.begin(), probe_ms_.end());
}

}  // namespace troupe

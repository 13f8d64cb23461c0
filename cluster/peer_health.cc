#include "cluster/peer_health.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace troupe {

void PeerHealth::OnAnswer() { num_troubles_ = 0; }

void PeerHealth::OnLate(SteadyTime now) {
  if (num_overdue_++ == 0) overdue_since_ = now;
}

void PeerHealth::OnLateAnswer(SteadyTime now) {
  OnLateLost();
  // It lives: the patience with what else is late begins anew.
  if (num_overdue_ > 0) overdue_since_ = now;
}

void PeerHealth::OnLateLost() {
  if (num_overdue_ > 0) --num_overdue_;
  if (num_overdue_ == 0) overdue_since_ = kNoDeadline;
}

void PeerHealth::OnTrouble(absl::string_view what) {
  ++num_troubles_;
  last_trouble_ = std::string(what);
}

std::string PeerHealth::WhyEject(SteadyTime now) const {
  if (ejected_) return "";
  if (num_troubles_ >= options_.max_troubles) {
    return absl::StrCat(num_troubles_,
                        " troubles in a row, the last: ", last_trouble_);
  }
  if (overdue_at() <= now) {
    return absl::StrCat("silent for ", options_.max_overdue.count(),
                        " ms after it was late");
  }
  return "";
}

SteadyTime PeerHealth::overdue_at() const {
  if (num_overdue_ == 0 || overdue_since_ == kNoDeadline) return kNoDeadline;
  return overdue_since_ + options_.max_overdue;
}

void PeerHealth::Forgive(SteadyTime now) {
  num_troubles_ = 0;
  if (num_overdue_ > 0) overdue_since_ = now;
}

void PeerHealth::Eject(absl::string_view why, SteadyTime now) {
  const bool is_relapse = readmitted_at_ != SteadyTime::min() &&
                          now - readmitted_at_ < options_.relapse;
  backoff_ = is_relapse ? std::min(2 * backoff_, options_.max_backoff)
                        : options_.min_backoff;
  ejected_ = true;
  why_ = std::string(why);
  ++num_ejections_;
  num_troubles_ = 0;
  probes_in_a_row_ = 0;
  probe_sent_ = kNoDeadline;
  probe_at_ = now + backoff_;
}

void PeerHealth::OnProbeSent(SteadyTime now) {
  // One that is in flight still was given up.
  if (probe_sent_ != kNoDeadline) FailProbe(now);
  ++num_probes_;
  probe_sent_ = now;
  // Without an answer by then it has failed.
  probe_at_ = now + std::max(backoff_, options_.probe_limit);
}

void PeerHealth::FailProbe(SteadyTime now) {
  ++num_failed_probes_;
  probes_in_a_row_ = 0;
  backoff_ = std::min(2 * backoff_, options_.max_backoff);
  probe_sent_ = kNoDeadline;
  probe_at_ = now + backoff_;
}

bool PeerHealth::OnProbeAnswer(bool ok, SteadyTime now) {
  if (!ejected_ || probe_sent_ == kNoDeadline) return false;
  if (!ok || now - probe_sent_ > options_.probe_limit) {
    FailProbe(now);
    return false;
  }
  probe_sent_ = kNoDeadline;
  probe_at_ = now;
  if (++probes_in_a_row_ < options_.probes_to_return) return false;
  ejected_ = false;
  why_.clear();
  readmitted_at_ = now;
  probe_at_ = kNoDeadline;
  num_troubles_ = 0;
  // What it never answered it has forgotten.
  num_overdue_ = 0;
  overdue_since_ = kNoDeadline;
  return true;
}

void PeerHealth::OnReconnected(SteadyTime now) {
  num_overdue_ = 0;
  overdue_since_ = kNoDeadline;
  if (!ejected_) return;
  probe_sent_ = kNoDeadline;
  probes_in_a_row_ = 0;
  probe_at_ = now;
}

}  // namespace troupe

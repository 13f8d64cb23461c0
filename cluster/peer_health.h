// When an expert process is sick, and when it is well again.
#ifndef TROUPE_CLUSTER_PEER_HEALTH_H_
#define TROUPE_CLUSTER_PEER_HEALTH_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "common/clock.h"

namespace troupe {

struct PeerHealthOptions {
  // Troubles in a row, without an answer in time between them.
  size_t max_troubles = 5;
  // A message that has been late for so long, without an answer to any.
  milliseconds max_overdue{100};
  // An ejected peer is probed after so long; doubles with each probe that fails
  // and with each ejection soon after the last.
  milliseconds min_backoff{200};
  milliseconds max_backoff{10000};
  // A probe must be answered within this.
  milliseconds probe_limit{50};
  // Probes in a row that bring the peer back.
  size_t probes_to_return = 2;
  // An ejection so soon after the last readmission is a relapse.
  milliseconds relapse{30000};
};

// The state of one peer, driven by what its owner tells and asks; knows no
// clock. WELL -> (ShouldEject, Eject) -> EJECTED -> probes -> WELL. Not
// thread-safe.
class PeerHealth {
 public:
  explicit PeerHealth(PeerHealthOptions options) : options_(options) {}

  // An answer that was not late.
  void OnAnswer();
  // A message is late, and has been sent elsewhere, too, if that could be.
  void OnLate(SteadyTime now);
  // The answer to a late message is there after all.
  void OnLateAnswer(SteadyTime now);
  // It will not be: the connection broke.
  void OnLateLost();
  // The answer came elsewhere first; none came in time; the answer was wrong.
  void OnTrouble(absl::string_view what);

  // It has not answered what is late: it is not asked while others are there.
  bool is_suspect() const { return num_overdue_ > 0; }
  // Why it is to be ejected; empty: it is not.
  std::string WhyEject(SteadyTime now) const;
  // When WhyEject may change by the passing of time alone; kNoDeadline: never.
  SteadyTime overdue_at() const;

  // It is not ejected in spite of WhyEject.
  void Forgive(SteadyTime now);
  void Eject(absl::string_view why, SteadyTime now);
  bool is_ejected() const { return ejected_; }
  const std::string& why() const { return why_; }
  // When the next probe is due; one that is in flight has been given up then.
  SteadyTime probe_at() const { return probe_at_; }
  void OnProbeSent(SteadyTime now);
  // True: it is well again.
  bool OnProbeAnswer(bool ok, SteadyTime now);
  // A new process, perhaps: probed at once.
  void OnReconnected(SteadyTime now);

  uint64_t num_ejections() const { return num_ejections_; }
  uint64_t num_probes() const { return num_probes_; }
  uint64_t num_failed_probes() const { return num_failed_probes_; }

 private:
  void FailProbe(SteadyTime now);

  PeerHealthOptions options_;
  size_t num_troubles_ = 0;  // in a row
  std::string last_trouble_;
  size_t num_overdue_ = 0;  // late messages without an answer
  SteadyTime overdue_since_ = kNoDeadline;

  bool ejected_ = false;
  std::string why_;
  milliseconds backoff_{0};
  SteadyTime readmitted_at_ = SteadyTime::min();
  SteadyTime probe_at_ = kNoDeadline;
  SteadyTime probe_sent_ = kNoDeadline;  // none in flight
  size_t probes_in_a_row_ = 0;
  uint64_t num_ejections_ = 0;
  uint64_t num_probes_ = 0;
  uint64_t num_failed_probes_ = 0;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_PEER_HEALTH_H_

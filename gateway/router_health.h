// What a gateway thinks of one router, from what it sees and hears of it.
#ifndef TROUPE_GATEWAY_ROUTER_HEALTH_H_
#define TROUPE_GATEWAY_ROUTER_HEALTH_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "common/clock.h"
#include "protos/router.pb.h"

namespace troupe {

struct RouterHealthOptions {
  // A router that says nothing while a probe waits is silent after four times
  // its slowest answer of late, within these bounds.
  milliseconds min_silence{400};
  milliseconds max_silence{2000};
  // One that answers, but does not get on with its sequences, is stuck after
  // that long. More than routers wait for an expert process.
  milliseconds stall_after{15000};
  // One that lost experts may get them back; its streams wait that long before
  // they go to another.
  milliseconds loading_grace{500};
  // The wait of one that was lost again soon after it had come back: doubles
  // from the first to the second.
  milliseconds min_backoff{100};
  milliseconds max_backoff{5000};
};

enum class RouterState {
  kConnecting,  // no answer yet
  kLoading,
  kReady,
  kDraining,
  kSilent,   // a probe waits for its answer, and nothing else comes
  kStuck,    // answers, but its sequences stand still
  kAway,     // no connection
  kRefused,  // another model or numeric format
};
const char* Name(RouterState state);

// A state machine of times and events: no clock, no locks, no gRPC of its own.
// Silence tells stopped from slow: a router with a long prefill or queue
// answers probes all the time, from threads that do not compute.
class RouterHealth {
 public:
  explicit RouterHealth(const RouterHealthOptions& options)
      : options_(options) {}

  void OnProbeSent(SteadyTime now);
  // Its answer; `refusal` says why it may not serve here, or is empty.
  void OnAnswer(SteadyTime now, const v1::RouterDescription& description,
                const std::string& refusal);
  // The probe ended without one: `timed_out`, or else there is no connection.
  void OnNoAnswer(SteadyTime now, bool timed_out, const std::string& why);
  // A stream brought something.
  void OnHeard(SteadyTime now);
  // A stream broke.
  void OnLost(SteadyTime now, const std::string& why);
  // It refused a sequence because it drains.
  void OnRefused(SteadyTime now);
  // Time has passed.
  void OnTick(SteadyTime now, bool has_streams);
  // We did not run for so long: nobody can have been heard.
  void Forgive(SteadyTime::duration slept);

  RouterState state() const { return state_; }
  bool ready() const { return state_ == RouterState::kReady; }
  bool was_ready() const { return was_ready_; }
  // Why it is not ready, empty when it is.
  const std::string& reason() const { return reason_; }
  const v1::RouterDescription& description() const { return description_; }

  // Whether its streams had better go elsewhere, if there is a ready router.
  bool IsToLeave(SteadyTime now) const;
  // Then they may not get on here: it is worth ending with an error when there
  // is no other router until their deadline.
  bool IsDoubtful() const;
  // Ready, and not standing still itself.
  bool IsHeir(SteadyTime now) const;

  milliseconds SilenceLimit() const;
  uint64_t failures() const { return failures_; }
  double probe_ms_mean() const;
  double probe_ms_max() const;  // of the last hundred

 private:
  void Set(SteadyTime now, RouterState state, const std::string& reason);
  // From ready to something worse that was not announced.
  void Fail(SteadyTime now, RouterState state, const std::string& reason);

  const RouterHealthOptions options_;
  RouterState state_ = RouterState::kConnecting;
  std::string reason_ = "not asked yet";
  SteadyTime since_;  // of the state
  v1::RouterDescription description_;
  bool was_ready_ = false;
  uint64_t failures_ = 0;
  uint64_t failures_in_row_ = 0;
  SteadyTime ready_since_;
  SteadyTime readmit_at_;
  SteadyTime lost_at_;  // answers to probes from before say nothing
  SteadyTime leave_at_ = kNoDeadline;  // of a draining one

  bool probing_ = false;
  SteadyTime probe_sent_;
  SteadyTime heard_;
  uint64_t progress_ = 0;
  SteadyTime progressed_;

  static constexpr size_t kNumProbes = 100;
  std::array<double, kNumProbes> probe_ms_ = {};
  uint64_t num_probes_ = 0;
  double probe_ms_sum_ = 0;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_ROUTER_HEALTH_H_

// One expert process in an ExpertPool. Internal to the pool.
#ifndef TROUPE_CLUSTER_POOL_MEMBER_H_
#define TROUPE_CLUSTER_POOL_MEMBER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "cluster/expert_pool.h"
#include "cluster/latency_tracker.h"
#include "cluster/peer_health.h"
#include "cluster/replica_choice.h"

namespace troupe {

// One peer and what is known of it. The fields are guarded by the pool's mu_.
// A slot: when its address is no longer listed it is retired, and later it may
// be another peer's.
class ExpertPool::PoolMember final : public ExpertPeer::Listener {
 public:
  PoolMember(ExpertPool* owner, size_t i, Member member);

  void OnDescription(const v1::ExpertDescription& told) override;
  void OnLost(const absl::Status& status) override;

  // For another peer, after the last one is gone.
  void Assign(Member member);

  std::string StateName() const;
  // 0: well, 1: it does not answer what is late, 2: ejected.
  int rank() const {
    return health.is_ejected() ? 2 : health.is_suspect() ? 1 : 0;
  }
  ReplicaLoad Load() const;
  void NoteServiceTime(uint32_t compute_us, uint64_t rows, SteadyTime now);

  struct Flight {
    uint64_t id = 0;
    uint64_t rows = 0;
    SteadyTime sent;
    bool late = false;
    bool probe = false;
  };

  ExpertPool* const pool;
  const size_t index;

  std::string address;
  bool retired = false;
  SteadyTime retired_at;

  v1::ExpertDescription description;
  bool connected = false;
  bool connecting = false;
  SteadyTime connect_at = SteadyTime::min();
  milliseconds backoff{0};
  std::string last_error;
  bool refused = false;  // last_error says that it serves another model
  // Of its leaving versions, what it was told that nobody here wants: layer,
  // expert, key.
  std::set<std::tuple<uint32_t, uint32_t, uint64_t>> released;
  uint64_t free_rows = 0;  // of the last answer
  uint64_t in_flight_rows = 0;
  uint64_t chosen_rows = 0;  // by Choose, and not sent yet
  std::vector<Flight> flights;
  uint64_t sent = 0;      // messages; the id of the last
  uint64_t turns = 0;     // messages since all were even; for equal peers
  uint64_t messages = 0;  // answered
  uint64_t failures = 0;
  // Sums over messages.
  double round_trip_seconds = 0.0;
  double compute_seconds = 0.0;
  double queue_seconds = 0.0;

  LatencyTracker latency;
  PeerHealth health;
  uint64_t num_late = 0;
  uint64_t num_hedges_won = 0;
  uint64_t num_timeouts = 0;
  std::string last_ejection;
  double us_per_row = 0;  // in the grouped GEMM, of late
  SteadyTime measured_at;

  std::shared_ptr<ExpertPeer> peer;  // null: a slot that is free
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_POOL_MEMBER_H_

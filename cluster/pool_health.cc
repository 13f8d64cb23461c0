// ExpertPool: late answers, sick peers, probes.
#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/pool_member.h"
#include "cluster/version_key.h"
#include "common/logging.h"

namespace troupe {
namespace {

double Milliseconds(std::chrono::nanoseconds duration) {
  return 1e-6 * static_cast<double>(duration.count());
}

}  // namespace

std::chrono::nanoseconds ExpertPool::HedgeDelay(size_t peer,
                                                uint64_t rows) const {
  absl::MutexLock lock(&mu_);
  return members_[peer]->latency.HedgeDelay(rows, options_.hedge);
}

void ExpertPool::OnLate(size_t peer, uint64_t message) {
  absl::MutexLock lock(&mu_);
  PoolMember& member = *members_[peer];
  for (PoolMember::Flight& flight : member.flights) {
    if (flight.id != message || flight.late) continue;
    flight.late = true;
    ++member.num_late;
    member.health.OnLate(std::chrono::steady_clock::now());
    lost_ = true;  // Maintain looks at it
    return;
  }
}

void ExpertPool::OnTrouble(size_t peer, Trouble trouble,
                           const std::string& why) {
  absl::MutexLock lock(&mu_);
  PoolMember& member = *members_[peer];
  if (trouble == Trouble::kHedgeWon) ++member.num_hedges_won;
  if (trouble == Trouble::kTimeout) ++member.num_timeouts;
  member.health.OnTrouble(why);
  lost_ = true;
}

void ExpertPool::OnAnswer(PoolMember& member, uint64_t message,
                          const absl::StatusOr<ExpertOutput>& output) {
  const auto flight = std::find_if(
      member.flights.begin(), member.flights.end(),
      [&](const PoolMember::Flight& f) { return f.id == message; });
  if (flight == member.flights.end()) return;
  const PoolMember::Flight done = *flight;
  *flight = member.flights.back();
  member.flights.pop_back();
  member.in_flight_rows -= done.rows;
  if (member.retired) lost_ = true;  // it may be the last
  const SteadyTime now = std::chrono::steady_clock::now();
  if (done.probe) {
    const bool ok = output.ok() && HasRows(output->verdict);
    if (member.health.OnProbeAnswer(ok, now)) {
      ++num_readmissions_;
      spdlog::info("expert process {} ({}) answers again",
                   member.description.name(), member.address);
      bell_->Ring();
    }
    lost_ = true;
    return;
  }
  if (!output.ok()) {
    if (done.late) member.health.OnLateLost();
    return;
  }
  if (done.late) {
    member.health.OnLateAnswer(now);
  } else {
    member.health.OnAnswer();
    if (HasRows(output->verdict))
      member.latency.Add(done.rows, now - done.sent);
  }
  ++member.messages;
  member.free_rows = output->free_rows;
  member.round_trip_seconds +=
      std::chrono::duration<double>(now - done.sent).count();
  member.compute_seconds += 1e-6 * output->compute_us;
  member.queue_seconds += 1e-6 * output->queue_us;
  if (done.rows > 0 && HasRows(output->verdict)) {
    member.NoteServiceTime(output->compute_us, done.rows, now);
  }
}

bool ExpertPool::IsLastReplica(const PoolMember& member) const {
  for (const v1::ExpertVersion& owned : member.description.experts()) {
    const uint64_t key = VersionKeyOf(owned.content_hash());
    const v1::ExpertRange& range = owned.range();
    const size_t layer_end =
        std::min<size_t>(range.layer_end(), options_.is_moe_layer.size());
    const size_t expert_end =
        std::min<size_t>(range.expert_end(), options_.num_experts);
    for (size_t layer = range.layer_begin(); layer < layer_end; ++layer) {
      if (!options_.is_moe_layer[layer]) continue;
      for (size_t e = range.expert_begin(); e < expert_end; ++e) {
        const auto replicas = placement_->Replicas(layer, e, key);
        if (std::none_of(replicas.begin(), replicas.end(), [&](size_t peer) {
              const PoolMember& other = *members_[peer];
              return peer != member.index && other.connected &&
                     !other.retired && other.rank() == 0;
            })) {
          return true;
        }
      }
    }
  }
  return false;
}

SteadyTime ExpertPool::LookAfter(PoolMember& member, SteadyTime now,
                                 std::vector<size_t>& probes) {
  if (!member.connected || member.retired || !options_.ejection ||
      member.description.state() != v1::SERVING_STATE_READY) {
    return kNoDeadline;
  }
  PeerHealth& health = member.health;
  if (!health.is_ejected()) {
    const std::string why = health.WhyEject(now);
    if (why.empty()) return health.overdue_at();
    if (IsLastReplica(member)) {
      ++num_ejections_forgone_;
      health.Forgive(now);
      return health.overdue_at();
    }
    health.Eject(why, now);
    member.last_ejection = why;
    ++num_ejections_;
    spdlog::warn("expert process {} ({}) is ejected: {}",
                 member.description.name(), member.address, why);
    bell_->Ring();
  }
  if (health.probe_at() <= now) {
    health.OnProbeSent(now);
    probes.push_back(member.index);
  }
  return health.probe_at();
}

void ExpertPool::SendProbe(size_t peer) {
  ExpertBatch batch;
  {
    absl::MutexLock lock(&mu_);
    const v1::ExpertDescription& description = members_[peer]->description;
    for (const v1::ExpertVersion& owned : description.experts()) {
      const size_t layer = owned.range().layer_begin();
      if (layer >= options_.is_moe_layer.size()) continue;
      batch.layer = static_cast<uint32_t>(layer);
      batch.expert_ids = {owned.range().expert_begin()};
      batch.versions = {VersionKeyOf(owned.content_hash())};
      break;
    }
  }
  if (batch.expert_ids.empty()) return;
  batch.num_tokens = 1;
  batch.timeout_ms = static_cast<uint32_t>(options_.health.probe_limit.count());
  batch.dtype = options_.wire_dtype;
  batch.copies_per_expert = {1};
  batch.row_of_copy = {0};
  const size_t num_bytes = options_.hidden_size * SizeOf(options_.wire_dtype);
  SendMessage(
      peer, batch, num_bytes, [&](char* to) { std::fill_n(to, num_bytes, 0); },
      [](const absl::StatusOr<ExpertOutput>&) {}, /*probe=*/true);
}

v1::PeerHealth ExpertPool::HealthOf(const PoolMember& member) const {
  v1::PeerHealth health;
  health.set_late(member.num_late);
  health.set_hedges_won(member.num_hedges_won);
  health.set_timeouts(member.num_timeouts);
  health.set_ejections(member.health.num_ejections());
  health.set_last_ejection(member.last_ejection);
  health.set_probes(member.health.num_probes());
  health.set_failed_probes(member.health.num_failed_probes());
  health.set_round_trip_ms_p50(
      Milliseconds(member.latency.all().Quantile(0.5)));
  health.set_round_trip_ms_p99(
      Milliseconds(member.latency.all().Quantile(0.99)));
  health.set_hedge_delay_ms(
      Milliseconds(member.latency.HedgeDelay(1, options_.hedge)));
  return health;
}

void ExpertPool::AddFailoverStats(v1::FailoverStats& stats) const {
  absl::MutexLock lock(&mu_);
  stats.set_ejections(num_ejections_);
  stats.set_readmissions(num_readmissions_);
  stats.set_ejections_forgone(num_ejections_forgone_);
}

}  // namespace troupe

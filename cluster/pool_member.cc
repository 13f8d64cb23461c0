#include "cluster/pool_member.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"

namespace troupe {
namespace {

constexpr uint64_t kMaxRows = uint64_t{1} << 40;
// Of the latest message in the service time of a row.
constexpr double kSmoothing = 0.05;
// A service time of so long ago says nothing any more.
constexpr milliseconds kMeasureAnew(2000);

}  // namespace

ExpertPool::PoolMember::PoolMember(ExpertPool* owner, size_t i, Member member)
    : pool(owner),
      index(i),
      address(std::move(member.address)),
      health(owner->options_.health),
      peer(std::move(member.peer)) {}

void ExpertPool::PoolMember::Assign(Member member) {
  address = std::move(member.address);
  peer = std::move(member.peer);
  retired = false;
  description.Clear();
  connected = false;
  connecting = false;
  connect_at = SteadyTime::min();
  backoff = milliseconds(0);
  last_error.clear();
  refused = false;
  released.clear();
  free_rows = 0;
  messages = failures = 0;
  round_trip_seconds = compute_seconds = queue_seconds = 0.0;
  latency = LatencyTracker();
  health = PeerHealth(pool->options_.health);
  num_late = num_hedges_won = num_timeouts = 0;
  last_ejection.clear();
  us_per_row = 0;
  chosen_rows = 0;
}

void ExpertPool::PoolMember::OnDescription(const v1::ExpertDescription& told) {
  absl::MutexLock lock(&pool->mu_);
  description = told;
  if (!connected) {
    health.OnReconnected(std::chrono::steady_clock::now());
    // It does not catch up on what others did while it was not there.
    for (const auto& other : pool->members_) {
      turns = std::max(turns, other->turns);
    }
  }
  connected = true;
  backoff = milliseconds(0);
  last_error.clear();
  refused = false;
  spdlog::info("expert process {} ({}): {}", told.name(), address,
               v1::ServingState_Name(told.state()));
  free_rows = told.queue_capacity_rows();
  pool->Rebuild();
  if (health.is_ejected()) pool->lost_ = true;  // to be probed
  pool->bell_->Ring();                          // copies may be waiting for it
}

void ExpertPool::PoolMember::OnLost(const absl::Status& status) {
  absl::MutexLock lock(&pool->mu_);
  const bool was_connected = connected;
  // A peer that is away is tried again and again: say it once. One that has
  // not been there yet, or said that it would leave, is no surprise.
  if (last_error != status.message() && !pool->stopping_ && !retired) {
    const bool expected =
        failures == 0 && !was_connected
            ? absl::IsUnavailable(status)
            : description.state() == v1::SERVING_STATE_DRAINING;
    spdlog::log(expected ? spdlog::level::info : spdlog::level::warn,
                "not connected: {}", std::string(status.message()));
    last_error = std::string(status.message());
  }
  refused = absl::IsFailedPrecondition(status);
  if (was_connected) {
    ++failures;
    if (description.state() == v1::SERVING_STATE_READY) {
      health.OnTrouble("the connection broke");
    }
  }
  connected = false;
  released.clear();
  description.set_state(v1::SERVING_STATE_UNSPECIFIED);
  backoff = std::clamp(2 * backoff, pool->options_.min_backoff,
                       pool->options_.max_backoff);
  connect_at = std::chrono::steady_clock::now() + backoff;
  connecting = false;
  pool->lost_ = true;
  // A failed attempt to connect changes nothing for anybody.
  if (was_connected) pool->Rebuild();
}

std::string ExpertPool::PoolMember::StateName() const {
  if (retired) return "leaving";
  if (!connected) {
    if (last_error.empty()) return "connecting";
    return absl::StrCat(refused ? "refused: " : "away: ", last_error);
  }
  if (health.is_ejected()) return absl::StrCat("ejected: ", health.why());
  switch (description.state()) {
    case v1::SERVING_STATE_READY:
      return "ready";
    case v1::SERVING_STATE_DRAINING:
      return "draining";
    default:
      return "loading";
  }
}

ReplicaLoad ExpertPool::PoolMember::Load() const {
  // What the peer says may be any number.
  const uint64_t capacity =
      std::min(description.queue_capacity_rows(), kMaxRows);
  const uint64_t room = std::min(free_rows, capacity);
  ReplicaLoad load;
  load.rows_ahead = in_flight_rows + chosen_rows + (capacity - room);
  load.chosen_rows = chosen_rows;
  load.free_rows =
      static_cast<int64_t>(room) -
      static_cast<int64_t>(std::min(in_flight_rows + chosen_rows, kMaxRows));
  // A peer that was slow once is to become known anew.
  const auto age = std::chrono::steady_clock::now() - measured_at;
  load.us_per_row = age < kMeasureAnew ? us_per_row : 0.0;
  load.sent = turns;
  return load;
}

void ExpertPool::PoolMember::NoteServiceTime(uint32_t compute_us, uint64_t rows,
                                             SteadyTime now) {
  const double sample = std::max(
      0.01, static_cast<double>(compute_us) / static_cast<double>(rows));
  const bool is_new = us_per_row == 0 || now - measured_at >= kMeasureAnew;
  us_per_row =
      is_new ? sample : us_per_row + kSmoothing * (sample - us_per_row);
  measured_at = now;
}

}  // namespace troupe

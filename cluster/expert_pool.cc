#include "cluster/expert_pool.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/logging.h"

namespace troupe {
namespace {

constexpr uint64_t kMaxRows = uint64_t{1} << 40;
// Of the latest message in the service time of a row.
constexpr double kSmoothing = 0.05;
// How often it is looked whether sequences still have versions that leave.
constexpr absl::Duration kReleasePoll = absl::Milliseconds(5);

}  // namespace

// One peer and what is known of it. The fields are guarded by the pool's mu_.
class ExpertPool::PoolMember final : public ExpertPeer::Listener {
 public:
  PoolMember(ExpertPool* owner, size_t i, Member member)
      : pool(owner),
        index(i),
        address(std::move(member.address)),
        peer(std::move(member.peer)) {}

  void OnDescription(const v1::ExpertDescription& told) override {
    absl::MutexLock lock(&pool->mu_);
    description = told;
    connected = true;
    backoff = milliseconds(0);
    last_error.clear();
    spdlog::info("expert process {} ({}): {}", told.name(), address,
                 v1::ServingState_Name(told.state()));
    free_rows = told.queue_capacity_rows();
    pool->Rebuild();
    pool->bell_->Ring();  // copies may be waiting for it
  }

  void OnLost(const absl::Status& status) override {
    absl::MutexLock lock(&pool->mu_);
    const bool was_connected = connected;
    // A peer that is away is tried again and again: say it once. One that has
    // not been there yet, or said that it would leave, is no surprise.
    if (last_error != status.message() && !pool->stopping_) {
      const bool expected =
          failures == 0 && !was_connected
              ? absl::IsUnavailable(status)
              : description.state() == v1::SERVING_STATE_DRAINING;
      spdlog::log(expected ? spdlog::level::info : spdlog::level::warn,
                  "not connected: {}", std::string(status.message()));
      last_error = std::string(status.message());
    }
    if (was_connected) ++failures;
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

  std::string StateName() const {
    if (!connected) {
      return last_error.empty() ? "connecting"
                                : absl::StrCat("away: ", last_error);
    }
    switch (description.state()) {
      case v1::SERVING_STATE_READY:
        return "ready";
      case v1::SERVING_STATE_DRAINING:
        return "draining";
      default:
        return "loading";
    }
  }

  ReplicaLoad Load() const {
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
    load.us_per_row = us_per_row;
    load.sent = sent;
    return load;
  }

  void NoteServiceTime(uint32_t compute_us, uint64_t rows) {
    const double sample = std::max(
        0.01, static_cast<double>(compute_us) / static_cast<double>(rows));
    us_per_row += us_per_row == 0 ? sample : kSmoothing * (sample - us_per_row);
  }

  ExpertPool* const pool;
  const size_t index;
  const std::string address;

  v1::ExpertDescription description;
  bool connected = false;
  bool connecting = false;
  SteadyTime connect_at = SteadyTime::min();
  milliseconds backoff{0};
  std::string last_error;
  // Of its leaving versions, what it was told that nobody here wants: layer,
  // expert, key.
  std::set<std::tuple<uint32_t, uint32_t, uint64_t>> released;
  uint64_t free_rows = 0;  // of the last answer
  uint64_t in_flight_rows = 0;
  uint64_t chosen_rows = 0;  // by Choose, and not sent yet
  double us_per_row = 0;     // in the grouped GEMM, of late
  uint64_t sent = 0;         // messages
  uint64_t messages = 0;     // answered
  uint64_t failures = 0;
  // Sums over messages.
  double round_trip_seconds = 0.0;
  double compute_seconds = 0.0;
  double queue_seconds = 0.0;

  std::unique_ptr<ExpertPeer> peer;
};

ExpertPool::ExpertPool(ExpertPoolOptions options, std::vector<Member> members)
    : options_(std::move(options)),
      bell_(options_.bell != nullptr ? options_.bell : Doorbell::Create()) {
  for (Member& member : members) {
    members_.push_back(
        std::make_unique<PoolMember>(this, members_.size(), std::move(member)));
  }
  {
    absl::MutexLock lock(&mu_);
    lost_ = true;
    Rebuild();
  }
  maintenance_ = std::thread([this] { Maintain(); });
}

ExpertPool::~ExpertPool() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  maintenance_.join();
  // Peers first: their last callbacks still look at all members.
  for (const auto& member : members_) member->peer.reset();
}

void ExpertPool::Maintain() {
  const auto woken = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || lost_;
  };
  absl::Duration wait = absl::ZeroDuration();
  while (true) {
    std::vector<PoolMember*> due;
    std::vector<std::pair<size_t, v1::ReleaseVersions>> releases;
    {
      absl::MutexLock lock(&mu_);
      mu_.AwaitWithTimeout(absl::Condition(&woken), wait);
      if (stopping_) return;
      lost_ = false;
      wait = absl::InfiniteDuration();
      const SteadyTime now = std::chrono::steady_clock::now();
      for (const auto& member : members_) {
        if (member->connected || member->connecting) continue;
        if (member->connect_at <= now) {
          member->connecting = true;
          due.push_back(member.get());
        } else {
          wait = std::min(wait, absl::FromChrono(member->connect_at - now));
        }
      }
      if (!placement_->leaving().empty()) {
        releases = TakeReleases();
        wait = std::min(wait, kReleasePoll);
      }
    }
    for (PoolMember* member : due) member->peer->Connect(member);
    for (const auto& [peer, release] : releases) {
      members_[peer]->peer->Release(release);
    }
  }
}

const std::string& ExpertPool::address(size_t peer) const {
  return members_[peer]->address;
}

void ExpertPool::Rebuild() {
  std::vector<PlacementPeer> peers;
  for (const auto& member : members_) {
    peers.push_back({member->index, member->description});
  }
  auto next = std::make_shared<Placement>(
      placement_ == nullptr ? 0 : placement_->epoch() + 1,
      options_.is_moe_layer, options_.num_experts, peers, placement_.get());
  for (const std::string& conflict : next->conflicts()) {
    spdlog::warn("not used by new sequences: {}", conflict);
  }
  Note(next->current());
  Note(next->canary());
  placement_ = std::move(next);
  if (!placement_->leaving().empty()) lost_ = true;  // Maintain looks at them
}

void ExpertPool::Note(const SnapshotPtr& snapshot) {
  if (snapshot == nullptr) return;
  std::erase_if(snapshots_, [](const auto& weak) { return weak.expired(); });
  for (const auto& weak : snapshots_) {
    if (weak.lock() == snapshot) return;
  }
  snapshots_.push_back(snapshot);
}

void ExpertPool::Register(const SnapshotPtr& snapshot) {
  absl::MutexLock lock(&mu_);
  Note(snapshot);
}

std::vector<std::pair<size_t, v1::ReleaseVersions>> ExpertPool::TakeReleases() {
  std::vector<SnapshotPtr> alive;
  for (const auto& weak : snapshots_) {
    if (SnapshotPtr snapshot = weak.lock()) {
      alive.push_back(std::move(snapshot));
    }
  }
  std::vector<v1::ReleaseVersions> releases(members_.size());
  std::vector<decltype(PoolMember::released)> told(members_.size());
  for (const LeavingVersion& leaving : placement_->leaving()) {
    const uint32_t layer = leaving.version.range().layer_begin();
    const uint32_t expert = leaving.version.range().expert_begin();
    // Without it a sequence would have to change its version. When there is no
    // other version, it would wait for this one to return: then nothing is won
    // by keeping its last replica from leaving.
    const bool is_wanted =
        !placement_->StaysElsewhere(layer, expert, leaving.key) &&
        placement_->HasOtherVersion(layer, expert, leaving.key) &&
        std::any_of(alive.begin(), alive.end(),
                    [&](const SnapshotPtr& snapshot) {
                      return snapshot->key(layer, expert) == leaving.key;
                    });
    if (is_wanted) continue;
    const auto& was_told = members_[leaving.peer]->released;
    told[leaving.peer].emplace(layer, expert, leaving.key);
    if (was_told.count({layer, expert, leaving.key}) == 0) {
      *releases[leaving.peer].add_versions() = leaving.version;
    }
  }
  std::vector<std::pair<size_t, v1::ReleaseVersions>> news;
  for (size_t peer = 0; peer < members_.size(); ++peer) {
    members_[peer]->released = std::move(told[peer]);
    if (!releases[peer].versions().empty()) {
      news.emplace_back(peer, std::move(releases[peer]));
    }
  }
  return news;
}

std::shared_ptr<const Placement> ExpertPool::placement() const {
  absl::MutexLock lock(&mu_);
  return placement_;
}

std::optional<size_t> ExpertPool::Choose(const Placement& placement,
                                         size_t layer, size_t expert,
                                         absl::Span<const size_t> avoid,
                                         uint64_t version, uint64_t rows) {
  const absl::Span<const size_t> replicas =
      placement.Replicas(layer, expert, version);
  absl::MutexLock lock(&mu_);
  candidates_.clear();
  loads_.clear();
  for (const size_t peer : replicas) {
    const PoolMember& member = *members_[peer];
    if (!member.connected ||
        std::find(avoid.begin(), avoid.end(), peer) != avoid.end()) {
      continue;
    }
    candidates_.push_back(peer);
    loads_.push_back(member.Load());
  }
  if (candidates_.empty()) return std::nullopt;
  const size_t best = candidates_[ChooseReplica(
      loads_, std::max<uint64_t>(rows, 1), Draw())];
  members_[best]->chosen_rows += rows;
  return best;
}

uint64_t ExpertPool::Room(const Placement& placement, size_t layer,
                          size_t expert, uint64_t version) const {
  uint64_t most = 0;
  absl::MutexLock lock(&mu_);
  for (const size_t peer : placement.Replicas(layer, expert, version)) {
    const PoolMember& member = *members_[peer];
    if (!member.connected || member.free_rows <= member.in_flight_rows) {
      continue;
    }
    most = std::max(most, member.free_rows - member.in_flight_rows);
  }
  return most;
}

// The same until something is sent: the experts of a layer go into the same
// messages. (The mixing steps of MurmurHash3.)
uint64_t ExpertPool::Draw() const {
  uint64_t x = num_sent_;
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
  return x ^ (x >> 33);
}

void ExpertPool::Send(size_t peer, const ExpertBatch& batch,
                      size_t payload_bytes, ExpertPeer::WritePayload write,
                      ExpertPeer::OutputCallback done) {
  PoolMember* const member = members_[peer].get();
  const uint64_t rows = batch.num_copies();
  {
    absl::MutexLock lock(&mu_);
    member->in_flight_rows += rows;
    member->chosen_rows -= std::min(member->chosen_rows, rows);
    ++member->sent;
    ++num_sent_;
  }
  const SteadyTime sent = std::chrono::steady_clock::now();
  member->peer->Send(batch, payload_bytes, write,
                     [this, member, rows, sent, done = std::move(done)](
                         const absl::StatusOr<ExpertOutput>& output) {
                       {
                         absl::MutexLock lock(&mu_);
                         member->in_flight_rows -= rows;
                         if (output.ok()) {
                           ++member->messages;
                           member->free_rows = output->free_rows;
                           member->round_trip_seconds +=
                               std::chrono::duration<double>(
                                   std::chrono::steady_clock::now() - sent)
                                   .count();
                           member->NoteServiceTime(output->compute_us, rows);
                           member->compute_seconds += 1e-6 * output->compute_us;
                           member->queue_seconds += 1e-6 * output->queue_us;
                         }
                       }
                       done(output);
                       bell_->Ring();
                     });
}

void ExpertPool::Poll() {
  for (const auto& member : members_) member->peer->Poll();
}

std::vector<v1::ExpertPeer> ExpertPool::Describe() const {
  absl::MutexLock lock(&mu_);
  std::vector<v1::ExpertPeer> peers;
  for (const auto& member : members_) {
    v1::ExpertPeer peer;
    peer.set_address(member->address);
    peer.set_state(member->StateName());
    peer.set_transport(member->peer->transport());
    *peer.mutable_description() = member->description;
    peer.set_free_rows(member->free_rows);
    peer.set_in_flight_rows(member->in_flight_rows);
    peer.set_messages(member->messages);
    peer.set_failures(member->failures);
    peer.mutable_description()->clear_shm();  // its token is nobody's business
    if (member->messages > 0) {
      const double ms_per_message = 1e3 / static_cast<double>(member->messages);
      peer.set_round_trip_ms_mean(member->round_trip_seconds * ms_per_message);
      peer.set_compute_ms_mean(member->compute_seconds * ms_per_message);
      peer.set_queue_ms_mean(member->queue_seconds * ms_per_message);
    }
    peers.push_back(std::move(peer));
  }
  return peers;
}

}  // namespace troupe

#include "cluster/expert_pool.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cluster/pool_member.h"
#include "common/logging.h"

namespace troupe {
namespace {

// While a peer that is let go is in somebody's hands, or a probe in flight.
constexpr absl::Duration kSoon = absl::Milliseconds(1);
// How often it is looked whether sequences still have versions that leave.
constexpr absl::Duration kReleasePoll = absl::Milliseconds(5);

}  // namespace

ExpertPool::ExpertPool(ExpertPoolOptions options, std::vector<Member> members)
    : options_(std::move(options)),
      bell_(options_.bell != nullptr ? options_.bell : Doorbell::Create()) {
  {
    absl::MutexLock lock(&mu_);
    for (Member& member : members) {
      members_.push_back(std::make_unique<PoolMember>(this, members_.size(),
                                                      std::move(member)));
    }
    ListPeers();
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
  PeerList peers;
  {
    absl::MutexLock lock(&mu_);
    peers_ = nullptr;
    for (const auto& member : members_)
      peers.push_back(std::move(member->peer));
  }
  peers.clear();
}

void ExpertPool::ListPeers() {
  auto peers = std::make_shared<PeerList>();
  for (const auto& member : members_) {
    if (member->peer != nullptr) peers->push_back(member->peer);
  }
  peers_ = std::move(peers);
}

void ExpertPool::SetAddresses(const std::vector<std::string>& addresses) {
  const std::set<std::string> listed(addresses.begin(), addresses.end());
  absl::MutexLock lock(&mu_);
  if (stopping_) return;
  const SteadyTime now = std::chrono::steady_clock::now();
  std::set<std::string> missing = listed;
  for (const auto& member : members_) {
    if (member->peer == nullptr) continue;
    const bool is_listed = missing.erase(member->address) > 0;
    if (is_listed == !member->retired) continue;
    spdlog::info("expert process {} is {} listed", member->address,
                 is_listed ? "again" : "no longer");
    member->retired = !is_listed;
    member->retired_at = now;
    if (is_listed && !member->connected) member->connect_at = now;
  }
  for (const std::string& address : missing) {
    Member member = {address, options_.make_peer(address)};
    const auto slot = std::find_if(
        members_.begin(), members_.end(), [&](const auto& candidate) {
          return candidate->peer == nullptr && candidate->flights.empty() &&
                 now - candidate->retired_at > options_.retire_limit;
        });
    if (slot != members_.end()) {
      (*slot)->Assign(std::move(member));
    } else {
      members_.push_back(std::make_unique<PoolMember>(this, members_.size(),
                                                      std::move(member)));
    }
    spdlog::info("expert process {} is listed", address);
  }
  ListPeers();
  Rebuild();
  lost_ = true;
  bell_->Ring();
}

void ExpertPool::TakeRetired(SteadyTime now, PeerList& gone) {
  bool any = false;
  for (const auto& member : members_) {
    if (!member->retired || member->peer == nullptr ||
        (!member->flights.empty() &&
         now - member->retired_at < options_.retire_limit)) {
      continue;
    }
    gone.push_back(std::move(member->peer));
    member->peer = nullptr;
    any = true;
  }
  if (any) ListPeers();
}

void ExpertPool::Maintain() {
  const auto woken = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || lost_;
  };
  absl::Duration wait = absl::ZeroDuration();
  // Let go, but perhaps in the hands of one that polls or sends.
  PeerList gone;
  while (true) {
    std::vector<std::pair<PoolMember*, std::shared_ptr<ExpertPeer>>> due;
    std::vector<std::pair<std::shared_ptr<ExpertPeer>, v1::ReleaseVersions>>
        releases;
    std::vector<size_t> probes;
    PeerList probed;
    {
      absl::MutexLock lock(&mu_);
      mu_.AwaitWithTimeout(absl::Condition(&woken), wait);
      if (stopping_) break;
      lost_ = false;
      wait = absl::InfiniteDuration();
      const SteadyTime now = std::chrono::steady_clock::now();
      TakeRetired(now, gone);
      for (const auto& member : members_) {
        if (member->peer == nullptr) continue;
        if (member->retired) {
          wait = std::min(wait, absl::FromChrono(options_.retire_limit));
          continue;
        }
        const SteadyTime look_at = LookAfter(*member, now, probes);
        if (look_at != kNoDeadline) {
          wait = std::min(wait, absl::FromChrono(look_at - now));
        }
        for (const PoolMember::Flight& flight : member->flights) {
          if (!flight.probe ||
              now - flight.sent > options_.health.probe_limit) {
            continue;
          }
          probed.push_back(member->peer);
          wait = std::min(wait, kSoon);
          break;
        }
        if (member->connected || member->connecting) continue;
        if (member->connect_at <= now) {
          member->connecting = true;
          due.emplace_back(member.get(), member->peer);
        } else {
          wait = std::min(wait, absl::FromChrono(member->connect_at - now));
        }
      }
      if (!placement_->leaving().empty()) {
        for (auto& [peer, release] : TakeReleases()) {
          if (members_[peer]->peer == nullptr) continue;
          releases.emplace_back(members_[peer]->peer, std::move(release));
        }
        wait = std::min(wait, kReleasePoll);
      }
    }
    for (const auto& [member, peer] : due) peer->Connect(member);
    for (const auto& [peer, release] : releases) peer->Release(release);
    for (const size_t peer : probes) SendProbe(peer);
    if (!probes.empty()) wait = std::min(wait, kSoon);
    if (!probed.empty()) {
      // Nobody else may be waiting for answers.
      absl::MutexLock lock(&poll_mu_);
      for (const auto& peer : probed) peer->Poll();
    }
    due.clear();
    releases.clear();
    probed.clear();
    std::erase_if(gone, [](const auto& peer) { return peer.use_count() == 1; });
    if (!gone.empty()) wait = std::min(wait, kSoon);
  }
}

std::string ExpertPool::address(size_t peer) const {
  absl::MutexLock lock(&mu_);
  return members_[peer]->address;
}

size_t ExpertPool::size() const {
  absl::MutexLock lock(&mu_);
  return members_.size();
}

void ExpertPool::Rebuild() {
  std::vector<PlacementPeer> peers;
  for (const auto& member : members_) {
    if (member->retired) continue;
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
  return ChooseAmong(replicas, avoid, /*max_rank=*/2, rows);
}

std::optional<size_t> ExpertPool::ChooseForHedge(const Placement& placement,
                                                 size_t layer, size_t expert,
                                                 absl::Span<const size_t> avoid,
                                                 uint64_t version) {
  const absl::Span<const size_t> replicas =
      placement.Replicas(layer, expert, version);
  absl::MutexLock lock(&mu_);
  const std::optional<size_t> peer =
      ChooseAmong(replicas, avoid, /*max_rank=*/0, /*rows=*/0);
  if (!peer.has_value() || members_[*peer]->Load().free_rows <= 0) {
    return std::nullopt;
  }
  return peer;
}

std::optional<size_t> ExpertPool::ChooseAmong(absl::Span<const size_t> replicas,
                                              absl::Span<const size_t> avoid,
                                              int max_rank, uint64_t rows) {
  candidates_.clear();
  loads_.clear();
  int best_rank = max_rank;
  for (const size_t peer : replicas) {
    const PoolMember& member = *members_[peer];
    const int rank = member.rank();
    if (!member.connected || member.retired || rank > max_rank ||
        rank > best_rank ||
        std::find(avoid.begin(), avoid.end(), peer) != avoid.end()) {
      continue;
    }
    if (rank < best_rank) {
      best_rank = rank;
      candidates_.clear();
      loads_.clear();
    }
    candidates_.push_back(peer);
    loads_.push_back(member.Load());
  }
  if (candidates_.empty()) return std::nullopt;
  const size_t best =
      candidates_[ChooseReplica(loads_, std::max<uint64_t>(rows, 1), Draw())];
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

uint64_t ExpertPool::Send(size_t peer, const ExpertBatch& batch,
                          size_t payload_bytes, ExpertPeer::WritePayload write,
                          ExpertPeer::OutputCallback done) {
  return SendMessage(peer, batch, payload_bytes, write, std::move(done),
                     /*probe=*/false);
}

uint64_t ExpertPool::SendMessage(size_t peer, const ExpertBatch& batch,
                                 size_t payload_bytes,
                                 ExpertPeer::WritePayload write,
                                 ExpertPeer::OutputCallback done, bool probe) {
  std::shared_ptr<ExpertPeer> transport;
  PoolMember* member = nullptr;
  uint64_t message = 0;
  {
    absl::MutexLock lock(&mu_);
    member = members_[peer].get();
    transport = member->peer;
    message = ++member->sent;
    const uint64_t rows = batch.num_copies();
    member->in_flight_rows += rows;
    member->flights.push_back(
        {message, rows, std::chrono::steady_clock::now(), false, probe});
    if (!probe) {
      member->chosen_rows -= std::min(member->chosen_rows, rows);
      ++member->turns;
      ++num_sent_;
    }
  }
  auto answered = [this, member, message, done = std::move(done)](
                      const absl::StatusOr<ExpertOutput>& output) {
    {
      absl::MutexLock lock(&mu_);
      OnAnswer(*member, message, output);
    }
    done(output);
    bell_->Ring();
  };
  if (transport == nullptr) {
    answered(absl::UnavailableError("the expert process is no longer listed"));
  } else {
    transport->Send(batch, payload_bytes, write, std::move(answered));
  }
  return message;
}

void ExpertPool::Poll() {
  // Maintain holds it for moments, and looks at probed peers alone.
  absl::MutexLock polling(&poll_mu_);
  std::shared_ptr<const PeerList> peers;
  {
    absl::MutexLock lock(&mu_);
    peers = peers_;
  }
  for (const auto& peer : *peers) peer->Poll();
}

std::vector<v1::ExpertPeer> ExpertPool::Describe() const {
  absl::MutexLock lock(&mu_);
  std::vector<v1::ExpertPeer> peers;
  for (const auto& member : members_) {
    if (member->peer == nullptr) continue;
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
    *peer.mutable_health() = HealthOf(*member);
    peers.push_back(std::move(peer));
  }
  return peers;
}

}  // namespace troupe

#include "gateway/router_pool.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/logging.h"
#include "common/rpc/rpc_channel.h"
#include "gateway/router_choice.h"

namespace troupe {
namespace {

// Of prefixes that are remembered: 4 million tokens.
constexpr size_t kMaxPrefixBlocks = size_t{1} << 16;
constexpr milliseconds kPollIntervalNotReady{50};
// How often the thread looks whether a router with streams is silent.
constexpr milliseconds kTick{20};
// It woke up so much later than it wanted: this process did not run.
constexpr milliseconds kSlept{100};
// An error message names so many routers.
constexpr size_t kMaxExplained = 8;

SteadyTime Now() { return Clock::Real().Now(); }

}  // namespace

// All but the constant ones and `heard` are guarded by the pool's mu_.
struct RouterEndpoint {
  RouterEndpoint(uint64_t router_id, std::string router_address,
                 const RouterPoolOptions& options)
      : id(router_id),
        address(std::move(router_address)),
        stub(v1::Router::NewStub(MakeChannel(address, options.credentials))),
        health(options.health) {}

  const uint64_t id;
  const std::string address;
  const std::shared_ptr<v1::Router::Stub> stub;
  std::atomic<bool> heard{false};  // since the last tick

  RouterHealth health;
  bool removed = false;
  bool polling = false;
  SteadyTime next_poll = SteadyTime::min();
  uint32_t sequences_of_others = 0;  // gateways, when it last described itself
  uint32_t active_sequences = 0;
  uint64_t streams = 0;
  uint64_t lost_streams = 0;
  uint64_t moved_streams = 0;
  // By watch id; called once.
  std::map<uint64_t, RouterLease::Leave> watchers;
};

RouterLease::RouterLease(RouterLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      router_(std::move(other.router_)),
      watch_id_(std::exchange(other.watch_id_, 0)) {}

RouterLease& RouterLease::operator=(RouterLease&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(router_, other.router_);
  std::swap(watch_id_, other.watch_id_);
  return *this;
}

RouterLease::~RouterLease() {
  if (pool_ != nullptr) pool_->Release(*this);
}

v1::Router::Stub& RouterLease::stub() const { return *router_->stub; }
const std::string& RouterLease::address() const { return router_->address; }
uint64_t RouterLease::router_id() const { return router_->id; }
void RouterLease::Heard() const { router_->heard = true; }

void RouterLease::Watch(Leave leave) {
  Leave before;  // destroyed without the lock
  absl::MutexLock lock(&pool_->mu_);
  if (watch_id_ == 0) watch_id_ = ++pool_->last_id_;
  before = std::move(router_->watchers[watch_id_]);
  router_->watchers[watch_id_] = std::move(leave);
  pool_->Wake();  // the router may have turned bad meanwhile
}

void RouterLease::ReportLost(const std::string& why) const {
  absl::MutexLock lock(&pool_->mu_);
  const SteadyTime now = Now();
  ++router_->lost_streams;
  if (router_->health.ready()) {
    spdlog::warn("router lost address={} reason=\"{}\"", router_->address, why);
  }
  router_->health.OnLost(now, why);
  pool_->prefixes_.Forget(router_->id);
  router_->next_poll = now;
  pool_->Wake();
}

void RouterLease::Remember(const std::vector<uint64_t>& prefix) const {
  absl::MutexLock lock(&pool_->mu_);
  pool_->prefixes_.Remember(prefix, router_->id);
}

void RouterLease::ReportRefused() const {
  absl::MutexLock lock(&pool_->mu_);
  const SteadyTime now = Now();
  router_->health.OnRefused(now);
  router_->next_poll = now;
  pool_->Wake();
}

void RouterLease::ReportMoved() const {
  absl::MutexLock lock(&pool_->mu_);
  ++router_->moved_streams;
}

// One Describe call in flight.
struct RouterPool::Poll {
  std::shared_ptr<RouterEndpoint> router;
  grpc::ClientContext context;
  v1::DescribeRouterRequest request;
  v1::RouterDescription description;
};

RouterPool::RouterPool(RouterPoolOptions options)
    : options_(std::move(options)),
      budget_(options_.retries, Now()),
      prefixes_(kMaxPrefixBlocks) {
  thread_ = std::thread([this] { Run(); });
}

RouterPool::~RouterPool() {
  Stop();
  absl::MutexLock lock(&mu_);
  while (polls_in_flight_ > 0) wake_.Wait(&mu_);
  for (const auto& router : routers_) {
    CHECK_EQ(router->active_sequences, 0u);
  }
}

void RouterPool::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
    Wake();
  }
  if (thread_.joinable()) thread_.join();
}

void RouterPool::Wake() {
  dirty_ = true;
  wake_.SignalAll();
}

void RouterPool::SetAddresses(const std::vector<std::string>& addresses) {
  absl::MutexLock lock(&mu_);
  std::set<std::string> missing(addresses.begin(), addresses.end());
  for (const auto& router : routers_) {
    const bool removed = missing.erase(router->address) == 0;
    if (removed != router->removed) {
      spdlog::info("router {} address={}", removed ? "removed" : "added again",
                   router->address);
    }
    router->removed = removed;
  }
  for (const std::string& address : missing) {
    routers_.push_back(
        std::make_shared<RouterEndpoint>(++last_id_, address, options_));
  }
  Wake();
}

std::optional<RouterLease> RouterPool::Pick(const Wish& wish) {
  absl::MutexLock lock(&mu_);
  bool held_back = false;  // whoever is waits, and is counted then
  return PickLocked(wish, &held_back);
}

std::optional<RouterLease> RouterPool::PickLocked(const Wish& wish,
                                                  bool* held_back) {
  if (stopped_) return std::nullopt;
  std::vector<RouterLoad> loads(routers_.size());
  for (size_t i = 0; i < routers_.size(); ++i) {
    const RouterEndpoint& router = *routers_[i];
    loads[i].ready = router.health.ready() && !router.removed;
    const v1::RouterDescription& described = router.health.description();
    loads[i].active_sequences =
        router.active_sequences + router.sequences_of_others;
    const size_t known =
        options_.prefix_affinity
            ? kPrefixBlockTokens * prefixes_.NumKnown(wish.prefix, router.id)
            : 0;
    loads[i].uncached_tokens =
        wish.num_tokens - std::min<uint64_t>(wish.num_tokens, known);
    if (described.kv_blocks() > 0) {
      loads[i].kv_use = 1.0 - static_cast<double>(described.free_kv_blocks()) /
                                  described.kv_blocks();
    }
    loads[i].excluded = described.max_context() < wish.min_context ||
                        std::find(wish.excluded.begin(), wish.excluded.end(),
                                  router.id) != wish.excluded.end();
  }
  const std::optional<size_t> best = ChooseRouter(loads, turn_);
  if (!best) return std::nullopt;
  if (!wish.is_retry) {
    budget_.OnStream();
  } else if (!budget_.TryTake(Now())) {
    *held_back = true;
    return std::nullopt;
  }
  turn_ = *best + 1;
  RouterEndpoint& router = *routers_[*best];
  ++router.streams;
  prefixes_.Remember(wish.prefix, router.id);
  if (router.active_sequences++ == 0) {
    router.next_poll = std::min(router.next_poll, Now() + ProbeInterval());
    Wake();
  }
  return RouterLease(this, routers_[*best]);
}

uint64_t RouterPool::PickWhenReady(SteadyTime until, const Wish& wish,
                                   Waiter done) {
  absl::MutexLock lock(&mu_);
  if (stopped_) return 0;
  const uint64_t wait_id = ++last_id_;
  parked_.push_back({wait_id, until, wish, std::move(done)});
  Wake();
  return wait_id;
}

void RouterPool::CancelWait(uint64_t wait_id) {
  Waiter cancelled;  // destroyed without the lock
  absl::MutexLock lock(&mu_);
  const auto parked =
      std::find_if(parked_.begin(), parked_.end(),
                   [&](const Parked& waiter) { return waiter.id == wait_id; });
  if (parked == parked_.end()) return;
  cancelled = std::move(parked->done);
  parked_.erase(parked);
}

void RouterPool::Release(const RouterLease& lease) {
  RouterLease::Leave watcher;  // destroyed without the lock
  absl::MutexLock lock(&mu_);
  RouterEndpoint& router = *lease.router_;
  CHECK_GT(router.active_sequences, 0u);
  --router.active_sequences;
  const auto watch = router.watchers.find(lease.watch_id_);
  if (watch != router.watchers.end()) {
    watcher = std::move(watch->second);
    router.watchers.erase(watch);
  }
  if (router.removed && router.active_sequences == 0) Wake();
}

uint32_t RouterPool::MaxContext() const {
  absl::MutexLock lock(&mu_);
  uint32_t smallest = 0;
  for (const auto& router : routers_) {
    if (!router->health.ready()) continue;
    const uint32_t context = router->health.description().max_context();
    if (smallest == 0 || context < smallest) smallest = context;
  }
  return smallest;
}

std::string RouterPool::Explain() const {
  absl::MutexLock lock(&mu_);
  if (stopped_) return "this gateway is draining";
  std::string text;
  size_t count = 0;
  for (const auto& router : routers_) {
    if (router->removed) continue;
    if (count++ == kMaxExplained) {
      absl::StrAppend(&text, "; and others");
      break;
    }
    absl::StrAppend(&text, text.empty() ? "" : "; ", router->address, ": ",
                    router->health.ready() ? "ready" : router->health.reason());
  }
  return text.empty() ? "no address of a router is known" : text;
}

std::vector<RouterPool::Member> RouterPool::Members() const {
  absl::MutexLock lock(&mu_);
  std::vector<Member> members;
  for (const auto& router : routers_) {
    members.push_back({router->address, router->stub});
  }
  return members;
}

std::vector<v1::RouterPeer> RouterPool::Describe() const {
  absl::MutexLock lock(&mu_);
  std::vector<v1::RouterPeer> peers;
  for (const auto& router : routers_) {
    const RouterHealth& health = router->health;
    v1::RouterPeer peer;
    peer.set_address(router->address);
    peer.set_name(health.description().name());
    peer.set_state(Name(health.state()));
    peer.set_reason(health.reason());
    peer.set_removed(router->removed);
    peer.set_active_streams(router->active_sequences);
    peer.set_streams(router->streams);
    peer.set_lost_streams(router->lost_streams);
    peer.set_moved_streams(router->moved_streams);
    peer.set_failures(health.failures());
    peer.set_probe_ms_mean(health.probe_ms_mean());
    peer.set_probe_ms_max(health.probe_ms_max());
    peers.push_back(std::move(peer));
  }
  return peers;
}

uint64_t RouterPool::moves_held_back() const {
  absl::MutexLock lock(&mu_);
  return moves_held_back_;
}

KvBlocks RouterPool::kv_blocks() const {
  absl::MutexLock lock(&mu_);
  KvBlocks sum;
  for (const auto& router : routers_) {
    if (!router->health.ready() || router->removed) continue;
    const v1::RouterDescription& described = router->health.description();
    sum.total += described.kv_blocks();
    sum.free += std::min(described.free_kv_blocks(), described.kv_blocks());
  }
  return sum;
}

bool RouterPool::AnyReady() const {
  return std::any_of(routers_.begin(), routers_.end(), [](const auto& router) {
    return router->health.ready() && !router->removed;
  });
}

bool RouterPool::HasHeir(const RouterEndpoint& leaving, SteadyTime now) const {
  return std::any_of(routers_.begin(), routers_.end(), [&](const auto& router) {
    return router.get() != &leaving && !router->removed &&
           router->health.IsHeir(now);
  });
}

SteadyTime RouterPool::LookAtRouters(SteadyTime now) {
  SteadyTime next = kNoDeadline;
  for (size_t i = 0; i < routers_.size();) {
    RouterEndpoint& router = *routers_[i];
    if (router.removed && router.active_sequences == 0 && !router.polling) {
      routers_.erase(routers_.begin() + static_cast<ptrdiff_t>(i));
      continue;
    }
    const RouterState before = router.health.state();
    if (router.heard.exchange(false)) router.health.OnHeard(now);
    router.health.OnTick(now, router.active_sequences > 0);
    if (router.health.state() != before) {
      spdlog::warn("router not ready address={} reason=\"{}\"", router.address,
                   router.health.reason());
    }
    if (router.active_sequences > 0 || router.polling) {
      next = std::min(next, now + kTick);
    }
    if (!router.polling) {
      if (router.next_poll <= now) {
        StartPoll(routers_[i], now);
        next = std::min(next, now + kTick);
      } else {
        next = std::min(next, router.next_poll);
      }
    }
    ++i;
  }
  return next;
}

std::vector<std::function<void()>> RouterPool::TakeCalls(SteadyTime now,
                                                         SteadyTime& next) {
  std::vector<std::function<void()>> calls;
  for (const auto& router : routers_) {
    if (router->watchers.empty() || !router->health.IsToLeave(now)) continue;
    const bool doubtful = router->health.IsDoubtful();
    if (!doubtful && !HasHeir(*router, now)) continue;
    // A stuck one answers: there is no hurry as long as nobody is better.
    if (router->health.state() == RouterState::kStuck &&
        !HasHeir(*router, now)) {
      continue;
    }
    for (auto& [id, leave] : std::exchange(router->watchers, {})) {
      calls.push_back([leave = std::move(leave), doubtful,
                       reason = absl::StrCat(router->address, ": ",
                                             router->health.reason())] {
        leave(doubtful, reason);
      });
    }
  }
  for (size_t i = 0; i < parked_.size();) {
    Parked& waiter = parked_[i];
    bool held_back = false;
    std::optional<RouterLease> lease = PickLocked(waiter.wish, &held_back);
    if (held_back && !std::exchange(waiter.held_back, true)) {
      ++moves_held_back_;
    }
    if (!lease && waiter.until > now) {
      next = std::min(
          next, held_back ? std::min(now + kTick, waiter.until) : waiter.until);
      ++i;
      continue;
    }
    calls.push_back([done = std::move(waiter.done), id = waiter.id,
                     shared = std::make_shared<std::optional<RouterLease>>(
                         std::move(lease))] { done(id, std::move(*shared)); });
    parked_.erase(parked_.begin() + static_cast<ptrdiff_t>(i));
  }
  return calls;
}

void RouterPool::Run() {
  bool told_ready = false;
  SteadyTime wanted = kNoDeadline;  // to wake up
  mu_.Lock();
  while (!stopped_) {
    dirty_ = false;
    const SteadyTime now = Now();
    if (wanted != kNoDeadline && now - wanted > kSlept) {
      for (const auto& router : routers_) router->health.Forgive(now - wanted);
    }
    SteadyTime next = LookAtRouters(now);
    const bool any_ready = AnyReady();
    std::vector<std::function<void()>> calls = TakeCalls(now, next);
    wanted = next;
    if (any_ready != told_ready || !calls.empty()) {
      const bool tell = any_ready != told_ready;
      told_ready = any_ready;
      mu_.Unlock();
      if (tell && options_.on_ready_change) options_.on_ready_change(any_ready);
      for (const auto& call : calls) call();
      calls.clear();
      mu_.Lock();
      continue;
    }
    if (dirty_ || stopped_) continue;
    if (next == kNoDeadline) {
      wake_.Wait(&mu_);
    } else {
      wake_.WaitWithTimeout(
          &mu_, absl::FromChrono(
                    std::max(next - Now(), SteadyTime::duration::zero())));
    }
  }
  std::vector<Parked> parked = std::exchange(parked_, {});
  mu_.Unlock();
  for (Parked& waiter : parked) waiter.done(waiter.id, std::nullopt);
}

void RouterPool::StartPoll(const std::shared_ptr<RouterEndpoint>& router,
                           SteadyTime now) {
  router->polling = true;
  router->health.OnProbeSent(now);
  ++polls_in_flight_;
  auto poll = std::make_shared<Poll>();
  poll->router = router;
  SetDeadline(poll->context, now + options_.poll_timeout);
  router->stub->async()->Describe(
      &poll->context, &poll->request, &poll->description,
      [this, poll](const grpc::Status& status) mutable {
        std::shared_ptr<RouterEndpoint> polled = std::move(poll->router);
        const v1::RouterDescription description = std::move(poll->description);
        // Gone before the pool may be: the program may end then.
        poll.reset();
        OnPolled(std::move(polled), description, status);
      });
}

// Also decides on the numeric format: that of the first router that is ready
// while no other is or has streams. The bytes of a stream must not change with
// a move.
std::string RouterPool::Refusal(const RouterEndpoint& router,
                                const v1::RouterDescription& description) {
  if (description.model_fingerprint() != options_.model_fingerprint) {
    return absl::StrCat("serves another model: its fingerprint is ",
                        description.model_fingerprint(), ", this gateway's is ",
                        options_.model_fingerprint);
  }
  const std::string& format = description.numeric_format();
  if (format == numeric_format_) return "";
  const bool in_use =
      std::any_of(routers_.begin(), routers_.end(), [&](const auto& other) {
        return other.get() != &router &&
               other->health.description().numeric_format() ==
                   numeric_format_ &&
               (other->health.ready() || other->active_sequences > 0);
      });
  if (!in_use && router.active_sequences == 0) {
    if (description.state() == v1::SERVING_STATE_READY) {
      numeric_format_ = format;
    }
    return "";
  }
  return absl::StrCat("computes in another numeric format: its is \"", format,
                      "\", that of the routers here is \"", numeric_format_,
                      "\"");
}

milliseconds RouterPool::ProbeInterval() const {
  return std::min(options_.probe_interval, options_.poll_interval);
}

void RouterPool::OnPolled(std::shared_ptr<RouterEndpoint> polled,
                          const v1::RouterDescription& description,
                          const grpc::Status& status) {
  absl::MutexLock lock(&mu_);
  RouterEndpoint& router = *polled;
  const SteadyTime now = Now();
  const RouterState before = router.health.state();
  const bool was_ready = router.health.ready();
  const std::string reason = router.health.reason();
  if (status.ok()) {
    router.health.OnAnswer(now, description, Refusal(router, description));
    router.sequences_of_others =
        description.sequences() -
        std::min(description.sequences(), router.active_sequences);
  } else {
    router.health.OnNoAnswer(
        now, status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED,
        status.error_message());
  }
  const bool ready = router.health.ready();
  if (ready && !was_ready) {
    spdlog::info("router ready address={}", router.address);
  } else if (!ready && router.health.reason() != reason &&
             (router.health.state() != RouterState::kAway ||
              before != RouterState::kAway)) {
    // At the start nothing is ready yet; losing what was ready is news. How
    // gRPC words it that nobody is there is not.
    spdlog::log(was_ready ? spdlog::level::warn : spdlog::level::info,
                "router not ready address={} reason=\"{}\"", router.address,
                router.health.reason());
  }
  router.polling = false;
  router.next_poll =
      now + (!ready                        ? kPollIntervalNotReady
             : router.active_sequences > 0 ? ProbeInterval()
                                           : options_.poll_interval);
  // As the poll: routers_ still has it, until `polling` is seen.
  polled.reset();
  --polls_in_flight_;
  Wake();
}

}  // namespace troupe

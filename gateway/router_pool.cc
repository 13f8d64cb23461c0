#include "gateway/router_pool.h"

#include <algorithm>
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

constexpr milliseconds kPollIntervalNotReady{50};

SteadyTime Now() { return Clock::Real().Now(); }

std::string StateName(v1::ServingState state) {
  switch (state) {
    case v1::SERVING_STATE_LOADING:
      return "loading";
    case v1::SERVING_STATE_READY:
      return "ready";
    case v1::SERVING_STATE_DRAINING:
      return "draining";
    default:
      return "in an unknown state";
  }
}

}  // namespace

RouterLease::RouterLease(RouterLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), index_(other.index_) {}

RouterLease& RouterLease::operator=(RouterLease&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(index_, other.index_);
  return *this;
}

RouterLease::~RouterLease() {
  if (pool_ != nullptr) pool_->Release(index_);
}

v1::Router::Stub& RouterLease::stub() const { return pool_->stub(index_); }

const std::string& RouterLease::address() const {
  return pool_->address(index_);
}

// One Describe call in flight.
struct RouterPool::Poll {
  size_t index = 0;
  uint64_t generation = 0;
  grpc::ClientContext context;
  v1::DescribeRouterRequest request;
  v1::RouterDescription description;
};

RouterPool::RouterPool(RouterPoolOptions options)
    : options_(std::move(options)), routers_(options_.addresses.size()) {
  for (size_t i = 0; i < routers_.size(); ++i) {
    routers_[i].address = options_.addresses[i];
    routers_[i].stub = v1::Router::NewStub(MakeChannel(routers_[i].address));
  }
  thread_ = std::thread([this] { Run(); });
}

RouterPool::~RouterPool() {
  Stop();
  absl::MutexLock lock(&mu_);
  while (polls_in_flight_ > 0) wake_.Wait(&mu_);
  for (const Endpoint& router : routers_) {
    CHECK_EQ(router.active_sequences, 0u);
  }
}

void RouterPool::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
    wake_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

std::optional<RouterLease> RouterPool::Pick(
    const std::vector<size_t>& excluded) {
  absl::MutexLock lock(&mu_);
  return PickLocked(excluded);
}

std::optional<RouterLease> RouterPool::PickLocked(
    const std::vector<size_t>& excluded) {
  if (stopped_) return std::nullopt;
  std::vector<RouterLoad> loads(routers_.size());
  for (size_t i = 0; i < routers_.size(); ++i) {
    loads[i] = {.ready = routers_[i].ready,
                .active_sequences = routers_[i].active_sequences};
  }
  for (const size_t index : excluded) loads[index].excluded = true;
  const std::optional<size_t> best = ChooseRouter(loads, turn_);
  if (!best) return std::nullopt;
  turn_ = *best + 1;
  ++routers_[*best].active_sequences;
  return RouterLease(this, *best);
}

bool RouterPool::PickWhenReady(SteadyTime until, Waiter done) {
  absl::MutexLock lock(&mu_);
  if (stopped_) return false;
  parked_.push_back({until, std::move(done)});
  dirty_ = true;
  wake_.SignalAll();
  return true;
}

void RouterPool::ReportLost(size_t index) {
  absl::MutexLock lock(&mu_);
  Endpoint& router = routers_[index];
  ++router.generation;
  router.ready = false;
  router.why_not = "lost a call; not seen ready since";
  router.next_poll = Now();
  dirty_ = true;
  wake_.SignalAll();
}

void RouterPool::Release(size_t index) {
  absl::MutexLock lock(&mu_);
  CHECK_GT(routers_[index].active_sequences, 0u);
  --routers_[index].active_sequences;
}

uint32_t RouterPool::MaxContext() const {
  absl::MutexLock lock(&mu_);
  uint32_t smallest = 0;
  for (const Endpoint& router : routers_) {
    if (!router.ready) continue;
    if (smallest == 0 || router.max_context < smallest) {
      smallest = router.max_context;
    }
  }
  return smallest;
}

std::string RouterPool::Explain() const {
  absl::MutexLock lock(&mu_);
  if (stopped_) return "this gateway is draining";
  std::string text;
  for (const Endpoint& router : routers_) {
    absl::StrAppend(&text, text.empty() ? "" : "; ", router.address, ": ",
                    router.ready ? "ready" : router.why_not);
  }
  return text;
}

const std::string& RouterPool::address(size_t index) const {
  return routers_[index].address;
}

v1::Router::Stub& RouterPool::stub(size_t index) const {
  return *routers_[index].stub;
}

bool RouterPool::AnyReady() const {
  return std::any_of(routers_.begin(), routers_.end(),
                     [](const Endpoint& router) { return router.ready; });
}

void RouterPool::Run() {
  bool told_ready = false;
  mu_.Lock();
  while (!stopped_) {
    dirty_ = false;
    SteadyTime next = kNoDeadline;
    for (size_t i = 0; i < routers_.size(); ++i) {
      if (routers_[i].polling) continue;
      if (routers_[i].next_poll <= Now()) {
        StartPoll(i);
      } else {
        next = std::min(next, routers_[i].next_poll);
      }
    }
    const bool any_ready = AnyReady();
    std::vector<std::pair<Waiter, std::optional<RouterLease>>> served;
    for (size_t i = 0; i < parked_.size();) {
      std::optional<RouterLease> lease = PickLocked({});
      if (!lease && parked_[i].until > Now()) {
        next = std::min(next, parked_[i].until);
        ++i;
        continue;
      }
      served.emplace_back(std::move(parked_[i].done), std::move(lease));
      parked_.erase(parked_.begin() + static_cast<ptrdiff_t>(i));
    }
    if (any_ready != told_ready || !served.empty()) {
      const bool tell = any_ready != told_ready;
      told_ready = any_ready;
      mu_.Unlock();
      if (tell && options_.on_ready_change) options_.on_ready_change(any_ready);
      for (auto& [done, lease] : served) done(std::move(lease));
      served.clear();
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
  for (Parked& waiter : parked) waiter.done(std::nullopt);
}

void RouterPool::StartPoll(size_t index) {
  Endpoint& router = routers_[index];
  router.polling = true;
  ++polls_in_flight_;
  auto poll = std::make_shared<Poll>();
  poll->index = index;
  poll->generation = router.generation;
  SetDeadline(poll->context, Now() + options_.poll_timeout);
  router.stub->async()->Describe(
      &poll->context, &poll->request, &poll->description,
      [this, poll](const grpc::Status& status) mutable {
        const size_t polled = poll->index;
        const uint64_t generation = poll->generation;
        const v1::RouterDescription description = std::move(poll->description);
        // Gone before the pool may be: the program may end then.
        poll.reset();
        OnPolled(polled, generation, description, status);
      });
}

void RouterPool::OnPolled(size_t index, uint64_t generation,
                          const v1::RouterDescription& description,
                          const grpc::Status& status) {
  std::string why_not;
  if (!status.ok()) {
    why_not = status.error_message();
  } else if (description.model_fingerprint() != options_.model_fingerprint) {
    why_not = absl::StrCat("serves another model (fingerprint ",
                           description.model_fingerprint(), ", not ",
                           options_.model_fingerprint, ")");
  } else if (description.state() != v1::SERVING_STATE_READY) {
    why_not = StateName(description.state());
    if (!description.detail().empty()) {
      absl::StrAppend(&why_not, ": ", description.detail());
    }
  }
  absl::MutexLock lock(&mu_);
  Endpoint& router = routers_[index];
  router.polling = false;
  --polls_in_flight_;
  dirty_ = true;
  wake_.SignalAll();
  if (generation != router.generation) {
    router.next_poll = Now();
    return;
  }
  const bool ready = why_not.empty();
  if (ready && !router.ready) {
    spdlog::info("router ready address={}", router.address);
  } else if (!ready && why_not != router.why_not) {
    // At the start nothing is ready yet; losing what was ready is news.
    spdlog::log(router.ready ? spdlog::level::warn : spdlog::level::info,
                "router not ready address={} reason=\"{}\"", router.address,
                why_not);
  }
  router.ready = ready;
  router.was_ready = router.was_ready || ready;
  router.why_not = why_not;
  router.max_context = description.max_context();
  router.next_poll =
      Now() + (ready ? options_.poll_interval : kPollIntervalNotReady);
}

}  // namespace troupe

// The routers that a gateway may send work to.
#ifndef TROUPE_GATEWAY_ROUTER_POOL_H_
#define TROUPE_GATEWAY_ROUTER_POOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "protos/router.grpc.pb.h"

namespace troupe {

class RouterPool;

// One sequence's place at a router; counts as active load until destroyed.
// Move-only. The pool must outlive it.
class RouterLease {
 public:
  RouterLease() = default;
  RouterLease(RouterLease&& other) noexcept;
  RouterLease& operator=(RouterLease&& other) noexcept;
  ~RouterLease();

  v1::Router::Stub& stub() const;
  const std::string& address() const;
  // Its place in the pool's list of addresses.
  size_t index() const { return index_; }

 private:
  friend class RouterPool;
  RouterLease(RouterPool* pool, size_t index) : pool_(pool), index_(index) {}
  RouterPool* pool_ = nullptr;
  size_t index_ = 0;
};

struct RouterPoolOptions {
  std::vector<std::string> addresses;
  // Routers of another model are left out.
  std::string model_fingerprint;
  // Between two looks at a ready router; one that is not ready is looked at
  // every 50 ms.
  milliseconds poll_interval{500};
  milliseconds poll_timeout{1000};
  // Called when "at least one router is ready" changes, from the pool's
  // thread, without locks held.
  std::function<void(bool any_ready)> on_ready_change;
};

// Owns one channel per router and a thread that asks each by turns whether it
// is ready (Router.Describe). A router that lost a call is out until it says
// READY again. Thread-safe. Destroy after every lease.
class RouterPool {
 public:
  explicit RouterPool(RouterPoolOptions options);
  ~RouterPool();

  // The ready router with the least active sequences, without those in
  // `excluded`; empty when there is none.
  std::optional<RouterLease> Pick(const std::vector<size_t>& excluded);

  // Calls `done` once, from the pool's thread, with a lease as soon as a
  // router is ready, or without one at `until` or when the pool stops. False,
  // and no call, when it has stopped already.
  using Waiter = std::function<void(std::optional<RouterLease>)>;
  bool PickWhenReady(SteadyTime until, Waiter done);

  // A call there ended with a broken connection or the like.
  void ReportLost(size_t index);

  // The smallest context of the ready routers, 0 when none is ready.
  uint32_t MaxContext() const;

  // Why there is no ready router, one clause per router.
  std::string Explain() const;

  // No more polls; who waits is called back, Pick finds nothing.
  void Stop();

  size_t size() const { return routers_.size(); }
  const std::string& address(size_t index) const;
  v1::Router::Stub& stub(size_t index) const;

 private:
  friend class RouterLease;
  struct Endpoint {
    std::string address;
    std::unique_ptr<v1::Router::Stub> stub;
    // Guarded by mu_.
    bool polling = false;
    SteadyTime next_poll = SteadyTime::min();
    bool ready = false;
    bool was_ready = false;   // ever
    uint64_t generation = 0;  // of losses: answers from before one are stale
    uint32_t active_sequences = 0;
    uint32_t max_context = 0;
    std::string why_not = "not asked yet";
  };
  struct Poll;
  struct Parked {
    SteadyTime until;
    Waiter done;
  };

  void Release(size_t index);
  void Run();
  void StartPoll(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnPolled(size_t index, uint64_t generation,
                const v1::RouterDescription& description,
                const grpc::Status& status);
  bool AnyReady() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<RouterLease> PickLocked(const std::vector<size_t>& excluded)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const RouterPoolOptions options_;
  std::vector<Endpoint> routers_;  // size and stubs constant

  mutable absl::Mutex mu_;
  absl::CondVar wake_;
  bool dirty_ ABSL_GUARDED_BY(mu_) = false;  // something for the thread to do
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  size_t polls_in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  size_t turn_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Parked> parked_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_ROUTER_POOL_H_

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
#include "gateway/kv_blocks.h"
#include "gateway/prefix_memory.h"
#include "gateway/retry_budget.h"
#include "gateway/router_health.h"
#include "grpcpp/security/credentials.h"
#include "protos/gateway.pb.h"
#include "protos/router.grpc.pb.h"

namespace troupe {

class RouterPool;
struct RouterEndpoint;

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
  // Of the router; never used again for another.
  uint64_t router_id() const;

  // The router said something on this lease's stream. Cheap.
  void Heard() const;
  // `leave` is called from the pool's thread, without locks, whenever the
  // stream had better go on elsewhere and there is a router for it, or when
  // the router does not answer (`doubtful`). Once per Watch; not after the
  // lease is gone, but for a call that is under way.
  using Leave = std::function<void(bool doubtful, const std::string& reason)>;
  void Watch(Leave leave);
  // A call there ended with a broken connection or the like.
  void ReportLost(const std::string& why) const;
  // It refused the call because it drains.
  void ReportRefused() const;
  // The stream goes on at another router.
  void ReportMoved() const;
  // The router has the keys and values of that beginning (PrefixHashes).
  void Remember(const std::vector<uint64_t>& prefix) const;

 private:
  friend class RouterPool;
  RouterLease(RouterPool* pool, std::shared_ptr<RouterEndpoint> router)
      : pool_(pool), router_(std::move(router)) {}
  RouterPool* pool_ = nullptr;
  std::shared_ptr<RouterEndpoint> router_;
  uint64_t watch_id_ = 0;  // 0: does not watch
};

struct RouterPoolOptions {
  // Routers of another model are refused.
  std::string model_fingerprint;
  // Null: plain text.
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  // Between two looks at a ready router, and at one that has streams; one that
  // is not ready is looked at every 50 ms.
  milliseconds poll_interval{500};
  milliseconds probe_interval{100};
  milliseconds poll_timeout{1000};
  RouterHealthOptions health;
  RetryBudgetOptions retries;
  // Prompts go where their beginning has been seen, unless it is busier there.
  bool prefix_affinity = true;
  // Called when "at least one router is ready" changes, from the pool's
  // thread, without locks held.
  std::function<void(bool any_ready)> on_ready_change;
};

// Owns one channel per router and a thread that asks each by turns how it is
// (Router.Describe), tells streams to leave those that are silent, stuck, out
// of experts or near the end of their drain, and serves who waits for one.
// Routers come and go with SetAddresses; one that goes keeps its streams to
// their end. Thread-safe. Destroy after every lease.
class RouterPool {
 public:
  explicit RouterPool(RouterPoolOptions options);
  ~RouterPool();

  // The routers from now on. Those that stay keep what is known of them.
  void SetAddresses(const std::vector<std::string>& addresses);

  struct Wish {
    std::vector<uint64_t> excluded;  // router ids
    uint32_t min_context = 0;        // prompt and output
    // What is to be computed before the first new token, and its beginning.
    uint64_t num_tokens = 0;
    std::vector<uint64_t> prefix;  // PrefixHashes
    // Does work over again after a failure: bounded by the budget.
    bool is_retry = false;
  };

  // The ready router with the least to do (router_choice.h); empty when there
  // is none or the budget is spent.
  std::optional<RouterLease> Pick(const Wish& wish);

  // Calls `done` once, from the pool's thread, with a lease as soon as there
  // is one, or without at `until` or when the pool stops. Returns a number for
  // CancelWait; 0, and no call, when the pool has stopped already.
  using Waiter =
      std::function<void(uint64_t wait_id, std::optional<RouterLease>)>;
  uint64_t PickWhenReady(SteadyTime until, const Wish& wish, Waiter done);
  // No call from now on, but for one that is under way.
  void CancelWait(uint64_t wait_id);

  // The smallest context of the ready routers, 0 when none is ready.
  uint32_t MaxContext() const;

  // Why there is no ready router, one clause per router.
  std::string Explain() const;

  // No more polls; who waits is called back, Pick finds nothing.
  void Stop();

  // For statistics: those that are asked for theirs.
  struct Member {
    std::string address;
    std::shared_ptr<v1::Router::Stub> stub;
  };
  std::vector<Member> Members() const;
  std::vector<v1::RouterPeer> Describe() const;
  uint64_t moves_held_back() const;
  KvBlocks kv_blocks() const;  // of the ready ones, as they last said

 private:
  friend class RouterLease;
  struct Poll;
  struct Parked {
    uint64_t id;
    SteadyTime until;
    Wish wish;
    Waiter done;
    bool held_back = false;  // counted
  };

  void Release(const RouterLease& lease);
  void Run();
  // Starts what is due; returns when the next is.
  SteadyTime LookAtRouters(SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What is to be called without locks: leaves, and waiters that are served.
  std::vector<std::function<void()>> TakeCalls(SteadyTime now, SteadyTime& next)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StartPoll(const std::shared_ptr<RouterEndpoint>& router, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  milliseconds ProbeInterval() const;  // of routers with streams
  void OnPolled(std::shared_ptr<RouterEndpoint> polled,
                const v1::RouterDescription& description,
                const grpc::Status& status);
  std::string Refusal(const RouterEndpoint& router,
                      const v1::RouterDescription& description)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AnyReady() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasHeir(const RouterEndpoint& leaving, SteadyTime now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<RouterLease> PickLocked(const Wish& wish, bool* held_back)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Wake() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const RouterPoolOptions options_;

  mutable absl::Mutex mu_;
  absl::CondVar wake_;
  std::vector<std::shared_ptr<RouterEndpoint>> routers_ ABSL_GUARDED_BY(mu_);
  uint64_t last_id_ ABSL_GUARDED_BY(mu_) = 0;  // of routers, watches, waits
  // Of the routers that serve here, of the first that was ready.
  std::string numeric_format_ ABSL_GUARDED_BY(mu_);
  RetryBudget budget_ ABSL_GUARDED_BY(mu_);
  PrefixMemory prefixes_ ABSL_GUARDED_BY(mu_);
  uint64_t moves_held_back_ ABSL_GUARDED_BY(mu_) = 0;
  bool dirty_ ABSL_GUARDED_BY(mu_) = false;  // something for the thread to do
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  size_t polls_in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  size_t turn_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Parked> parked_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_ROUTER_POOL_H_

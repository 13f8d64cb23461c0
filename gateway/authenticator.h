// Who calls a gateway: one function for every edge (gRPC, HTTP).
#ifndef TROUPE_GATEWAY_AUTHENTICATOR_H_
#define TROUPE_GATEWAY_AUTHENTICATOR_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "gateway/admission.h"
#include "gateway/key_store.h"

namespace troupe {

// What a call is, for the key that it comes with.
enum class CallKind {
  kGenerate,  // charged; takes one of the key's places
  kCompute,   // charged (Tokenize)
  kLook,      // free (GetModel)
  kAdmin,     // free; for keys of the admin role
};

// What is left of a key's limits, also after its lease has gone. A value.
class RateLimitReader {
 public:
  RateLimitReader() = default;  // of nobody: no limits
  RateLimitReader(std::shared_ptr<RateLimiter> limiter, const Clock* clock)
      : limiter_(std::move(limiter)), clock_(clock) {}
  RateLimitState Read() const {
    return limiter_ == nullptr ? RateLimitState()
                               : limiter_->state(clock_->Now());
  }

 private:
  std::shared_ptr<RateLimiter> limiter_;
  const Clock* clock_ = nullptr;
};

// A caller that was let in. While a kGenerate call's lease lives it holds one
// of its key's places; at the end what it reserved and did not use is given
// back. Empty: nobody. Move-only; one thread at a time.
class KeyLease {
 public:
  KeyLease() = default;
  KeyLease(KeyLease&& other) noexcept { Swap(other); }
  KeyLease& operator=(KeyLease&& other) noexcept {
    Swap(other);
    return *this;
  }
  ~KeyLease();

  // Of the key; empty where no keys are demanded.
  const std::string& name() const { return name_; }
  KeyRole role() const { return role_; }

  // For Admission::TryEnter.
  AdmissionRequest ToAdmissionRequest(uint64_t prompt_tokens) const;

  // The prompt is tokenized. max_completion_tokens: of all choices, as the
  // client said; 0: it did not. Once. See RateLimiter::Reserve.
  absl::Status Reserve(uint64_t prompt_tokens, uint64_t max_completion_tokens);
  // Tokens were generated.
  void Charge(uint64_t num_tokens);

  // For the x-ratelimit headers.
  RateLimitReader rate_limits() const { return {limiter_, clock_}; }

 private:
  friend class Authenticator;
  void Swap(KeyLease& other) noexcept;

  std::string name_;
  KeyRole role_ = KeyRole::kClient;
  uint32_t priority_ = kDefaultPriority;
  std::shared_ptr<RateLimiter> limiter_;  // nullptr: no limits
  const Clock* clock_ = nullptr;
  SteadyTime entered_;
  uint64_t reserved_ = 0;  // not yet used
  bool holds_place_ = false;
};

// Lets callers in, or not. Thread-safe; outlives its leases' calls of Reserve
// and Charge no more than its clock does.
class Authenticator {
 public:
  using WallClock = std::function<absl::Time()>;

  // `store` may be nullptr: no keys are demanded, everybody is let in without
  // limits. Both outlive it.
  explicit Authenticator(const KeyStore* store,
                         const Clock& clock = Clock::Real(),
                         WallClock wall_clock = absl::Now)
      : store_(store), clock_(clock), wall_clock_(std::move(wall_clock)) {}

  // `authorization`: the value of the header or metadata of that name, empty
  // when there is none ("Bearer KEY"). UNAUTHENTICATED: no key, or one that is
  // unknown, revoked or has expired. PERMISSION_DENIED: the key's role may not
  // do that. RESOURCE_EXHAUSTED: a refusal (refusal.h) of the key's limits.
  absl::StatusOr<KeyLease> Admit(absl::string_view authorization,
                                 CallKind kind);

  bool demands_keys() const { return store_ != nullptr; }

  // Since the start.
  struct Counters {
    std::atomic<uint64_t> unauthenticated{0};
    std::atomic<uint64_t> denied{0};
    std::atomic<uint64_t> limited{0};
  };
  const Counters& counters() const { return counters_; }

 private:
  absl::StatusOr<KeyStore::Found> Identify(absl::string_view authorization);

  const KeyStore* const store_;
  const Clock& clock_;
  const WallClock wall_clock_;
  Counters counters_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_AUTHENTICATOR_H_

// The bounds on what a gateway works on, and how keys share them.
#ifndef TROUPE_GATEWAY_ADMISSION_H_
#define TROUPE_GATEWAY_ADMISSION_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "gateway/fair_share.h"

namespace troupe {

struct AdmissionOptions {
  uint32_t max_requests = 256;
  // Prompt tokens of the requests that wait for their first token; 0: no bound.
  uint64_t max_waiting_prompt_tokens = 0;
};

struct AdmissionRequest {
  // Name of the key that asks. Empty: without keys; all places are open.
  std::string key;
  uint32_t priority = kDefaultPriority;
  // What is known before the text is tokenized: Ticket::SetPromptTokens
  // corrects it.
  uint64_t prompt_tokens = 0;
};

// Lets at most so many requests, and so many tokens of prompts that wait, in at
// a time. Whoever comes when it is full, or has its fair share when it is
// nearly full (fair_share.h), is refused at once with a hint when to come back:
// nobody waits here, since what waits at routers is in already.
//
// Thread-safe; outlives its tickets.
class Admission {
 private:
  // What one key holds. Stays where it is while it holds a place.
  struct Holder {
    uint64_t held = 0;            // places
    uint64_t waiting_tokens = 0;  // of prompts
    uint64_t weight = 0;
    SteadyTime promised;  // when the last one that was refused is to come back
  };

 public:
  explicit Admission(uint32_t max_requests)
      : Admission(AdmissionOptions{.max_requests = max_requests}) {}
  explicit Admission(const AdmissionOptions& options,
                     const Clock& clock = Clock::Real())
      : options_(options), clock_(clock) {}
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // A place; empty when refused. Move-only; gives the place back. One thread
  // at a time.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept { Swap(other); }
    Ticket& operator=(Ticket&& other) noexcept {
      Swap(other);
      return *this;
    }
    ~Ticket() {
      if (admission_ != nullptr) admission_->Leave(*this);
    }
    explicit operator bool() const { return admission_ != nullptr; }

    // The prompt has that many tokens; refuses nobody.
    void SetPromptTokens(uint64_t num_tokens);
    // The first token has come: the prompt waits no more.
    void PromptDone();

   private:
    friend class Admission;
    Ticket(Admission* admission, Holder* holder, uint64_t waiting_tokens,
           SteadyTime entered)
        : admission_(admission),
          holder_(holder),
          waiting_tokens_(waiting_tokens),
          entered_(entered) {}
    void Swap(Ticket& other) noexcept;

    Admission* admission_ = nullptr;
    Holder* holder_ = nullptr;
    uint64_t waiting_tokens_ = 0;
    SteadyTime entered_;
  };

  // Without a key.
  Ticket TryEnter();
  // A refusal (refusal.h) says what was too little. Its delay is an estimate,
  // the mean time until enough requests have left, but a promise is given
  // once: each further request of the key that is refused gets a turn of its
  // own, one share of a mean request later, so that those who obey do not come
  // back all at once. From 100 ms to 10 s.
  absl::StatusOr<Ticket> TryEnter(const AdmissionRequest& request);

  // A served request took that long; refines the hints.
  void RecordDuration(double duration_ms);

  // The mean time until one of the active requests ends, in [100, 10000].
  int RetryDelayMs() const;

  uint32_t active() const;
  uint64_t waiting_prompt_tokens() const;
  uint32_t max_requests() const { return options_.max_requests; }

 private:
  ShareState PlacesOf(const Holder& holder) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  ShareState TokensOf(const Holder& holder) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Refuse(const AdmissionRequest& request, Holder& holder,
                      ShareAnswer places, ShareAnswer tokens, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Of key `key`, with that weight from now on.
  Holder& HolderOf(const AdmissionRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetWaitingTokens(Ticket& ticket, uint64_t num_tokens)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Leave(Ticket& ticket);

  const AdmissionOptions options_;
  const Clock& clock_;
  mutable absl::Mutex mu_;
  std::map<std::string, Holder> holders_ ABSL_GUARDED_BY(mu_);
  uint64_t holding_weight_ ABSL_GUARDED_BY(mu_) = 0;  // of those with places
  uint32_t active_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t waiting_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  double mean_duration_ms_ ABSL_GUARDED_BY(mu_) = 1000;
  double mean_prompt_wait_ms_ ABSL_GUARDED_BY(mu_) = 1000;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_ADMISSION_H_

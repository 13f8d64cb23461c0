// The API keys of a watched file.
#ifndef TROUPE_GATEWAY_KEY_STORE_H_
#define TROUPE_GATEWAY_KEY_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "gateway/api_keys.h"
#include "gateway/rate_limiter.h"

namespace troupe {

struct KeyStoreOptions {
  std::string path;
  // Between two looks at the file; 0: only Look looks.
  milliseconds interval{250};
};

// Knows the keys of the file as it was at the last look that found a good one:
// a file that is broken or gone changes nothing, is logged (once for the same
// reason) and counted. A key that was revoked is unknown from that look on;
// streams that it has opened end by themselves. What a key has used of its
// limits stays with its name, also when its secret or its limits change.
//
// Owns one thread, which looks. Thread-safe.
class KeyStore {
 public:
  // An error when the first look fails.
  static absl::StatusOr<std::unique_ptr<KeyStore>> Open(
      const KeyStoreOptions& options, const Clock& clock = Clock::Real());
  ~KeyStore();
  KeyStore(const KeyStore&) = delete;
  KeyStore& operator=(const KeyStore&) = delete;

  struct Found {
    std::shared_ptr<const ApiKey> key;  // as it was then
    std::shared_ptr<RateLimiter> limiter;
  };
  // Nothing when no key is like the one that was presented. Whether the key is
  // disabled or has expired is not looked at.
  std::optional<Found> Find(absl::string_view presented) const;

  // Looks now. In a file that is being written in place a look may find a part
  // of it, which is no JSON: such an error counts when two looks found it.
  void Look();

  struct Stats {
    size_t num_keys = 0;
    uint64_t changes = 0;
    uint64_t failures = 0;   // looks
    std::string last_error;  // empty: the last look succeeded
  };
  Stats stats() const;

 private:
  struct Snapshot;
  KeyStore(const KeyStoreOptions& options, const Clock& clock);
  absl::Status Load(const std::string& text);
  void Watch();

  const KeyStoreOptions options_;
  const Clock& clock_;
  absl::Mutex look_mu_;  // one look at a time; before mu_
  std::string taken_text_ ABSL_GUARDED_BY(look_mu_);
  std::optional<std::string> broken_text_ ABSL_GUARDED_BY(look_mu_);
  mutable absl::Mutex mu_;
  std::shared_ptr<const Snapshot> snapshot_ ABSL_GUARDED_BY(mu_);
  Stats stats_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_KEY_STORE_H_

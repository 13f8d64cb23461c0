// API keys: who may call a gateway, and how much.
#ifndef TROUPE_GATEWAY_API_KEYS_H_
#define TROUPE_GATEWAY_API_KEYS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gateway/fair_share.h"

namespace troupe {

inline constexpr size_t kMaxApiKeys = 4096;
inline constexpr size_t kMaxKeyFileBytes = size_t{4} << 20;
// A longer text is no key of ours and is not even hashed.
inline constexpr size_t kMaxApiKeyBytes = 512;
inline constexpr uint64_t kMaxPerMinute = 1000000000;
inline constexpr uint32_t kMaxKeyConcurrent = 1 << 20;

using ApiKeyHash = std::array<uint8_t, 32>;

// SHA-256. Keys are random (256 bits): there is nothing to guess that a slow
// hash would protect.
ApiKeyHash HashApiKey(absl::string_view key);

enum class KeyRole { kClient, kAdmin };

struct KeyLimits {
  // 0: no limit.
  uint64_t requests_per_minute = 0;
  uint64_t tokens_per_minute = 0;
  uint32_t max_concurrent = 0;
  uint32_t priority = kDefaultPriority;
};

struct ApiKey {
  std::string name;  // 1 to 64 of [A-Za-z0-9._-]: for logs and metrics
  ApiKeyHash sha256 = {};
  KeyRole role = KeyRole::kClient;
  KeyLimits limits;
  absl::Time expires = absl::InfiniteFuture();
  bool disabled = false;
};

// OK, or why it cannot be the name of a key.
absl::Status CheckKeyName(absl::string_view name);

// "2027-01-31T00:00:00Z", with any offset.
absl::StatusOr<absl::Time> ParseExpiry(absl::string_view text);

const char* KeyRoleName(KeyRole role);

// An immutable set of keys. It knows their hashes alone.
class ApiKeys {
 public:
  // Of a file's text:
  //   {"keys": [{"name": "alice", "sha256": "64 hex digits",
  //              "role": "client", "expires": "2027-01-31T00:00:00Z",
  //              "disabled": false,
  //              "limits": {"requests_per_minute": 60, "priority": 2,
  //                         "tokens_per_minute": 100000,
  //                         "max_concurrent": 8}}]}
  // Only name and sha256 must be there. Unknown fields, a name or hash twice
  // and values out of range are errors, which name `what` (a path), the key and
  // the field.
  static absl::StatusOr<ApiKeys> Parse(const std::string& text,
                                       const std::string& what);
  static absl::StatusOr<ApiKeys> Read(const std::string& path);

  // The index of the key in all() that was presented, -1: none. Takes the same
  // time whichever key it is or is like: every entry is compared, each in
  // constant time.
  int Find(absl::string_view presented) const;

  const std::vector<ApiKey>& all() const { return keys_; }

 private:
  explicit ApiKeys(std::vector<ApiKey> keys) : keys_(std::move(keys)) {}

  std::vector<ApiKey> keys_;
};

// What ApiKeys::Parse reads.
std::string FormatApiKeys(const std::vector<ApiKey>& keys);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_API_KEYS_H_

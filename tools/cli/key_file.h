// Changes to a file of API keys (gateway/api_keys.h).
#ifndef TROUPE_TOOLS_CLI_KEY_FILE_H_
#define TROUPE_TOOLS_CLI_KEY_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gateway/api_keys.h"

namespace troupe {

// Each change replaces the file at once by one of mode 0600, which is on the
// disk before; one that fails leaves it as it was. Two changes at a time do
// not lose one another: "FILE.new" is the draft of one of them, for which the
// other waits two seconds.

// A new key with all of `key` but its hash; makes the file when there is none.
// Returns the secret, "trp-" and 256 random bits, which is nowhere else.
absl::StatusOr<std::string> AddKeyToFile(const std::string& path, ApiKey key);

// Disables the key, or takes it out. NotFound names it.
absl::Status RevokeKeyInFile(const std::string& path, const std::string& name,
                             bool remove);

// A table for people, without hashes.
std::string DescribeKeys(const ApiKeys& keys, absl::Time now);

// "2027-01-31T00:00:00Z", or "30d": so many days from `now`.
absl::StatusOr<absl::Time> ParseExpiryOrDays(absl::string_view text,
                                             absl::Time now);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_KEY_FILE_H_

// JSON from files that we did not write: bounded, and strict where the grammar
// leaves a choice.
#ifndef TROUPE_MODEL_STRICT_JSON_H_
#define TROUPE_MODEL_STRICT_JSON_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace troupe {

inline constexpr size_t kMaxJsonDepth = 64;

// Parses one JSON value. Refuses nesting beyond kMaxJsonDepth, duplicate keys,
// invalid UTF-8 and numbers beyond double. `what` (a path) starts the message
// of an error.
absl::StatusOr<nlohmann::json> ParseStrictJson(const std::string& text,
                                               const std::string& what);

// Reads a whole regular file of at most max_bytes.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes);

// ReadSmallFile and ParseStrictJson.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path,
                                            size_t max_bytes);

// For names and values out of a file in messages: control characters and
// bytes beyond ASCII escaped, at most 200 characters.
std::string Printable(const std::string& text);

// Opens a regular file for reading (never blocks on a FIFO). The caller closes
// the descriptor. `num_bytes` may be null.
absl::StatusOr<int> OpenRegularFile(const std::string& path,
                                    uint64_t* num_bytes);

}  // namespace troupe

#endif  // TROUPE_MODEL_STRICT_JSON_H_

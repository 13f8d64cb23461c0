// The digest of a whole file.
#ifndef TROUPE_MODEL_FILE_HASH_H_
#define TROUPE_MODEL_FILE_HASH_H_

#include <string>

#include "absl/status/statusor.h"

namespace troupe {

// XXH3, 128 bits, as xxh128sum prints it. NotFound when it cannot be opened.
absl::StatusOr<std::string> FileHash(const std::string& path);

}  // namespace troupe

#endif  // TROUPE_MODEL_FILE_HASH_H_

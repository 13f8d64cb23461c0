#include "cluster/version_key.h"

#include <xxhash.h>

#include <algorithm>

namespace troupe {

uint64_t VersionKeyOf(absl::string_view content_hash) {
  return std::max<uint64_t>(
      1, XXH3_64bits(content_hash.data(), content_hash.size()));
}

}  // namespace troupe

// The short name of a version of an expert.
#ifndef TROUPE_CLUSTER_VERSION_KEY_H_
#define TROUPE_CLUSTER_VERSION_KEY_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace troupe {

// Versions of one expert that a process holds at once.
inline constexpr size_t kMaxVersionsPerExpert = 8;

// XXH3, 64 bits, of the content hash as it is described; never 0, which means
// "any". Frames name versions by it. It depends on the weights alone, so that
// it means the same to every process, also to one that was started anew. An
// expert process loads no two versions of an expert that share one.
uint64_t VersionKeyOf(absl::string_view content_hash);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_VERSION_KEY_H_

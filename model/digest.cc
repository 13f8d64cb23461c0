#include "model/digest.h"

#include <xxhash.h>

#include "absl/strings/str_format.h"
#include "common/check.h"

namespace troupe {

Digest::Digest() : state_(XXH3_createState()) {
  CHECK(state_ != nullptr);
  XXH3_128bits_reset(state_.get());
}

Digest::~Digest() = default;

void Digest::Free::operator()(XXH3_state_s* state) const {
  XXH3_freeState(state);
}

void Digest::Update(const void* data, size_t num_bytes) {
  XXH3_128bits_update(state_.get(), data, num_bytes);
}

std::string Digest::Hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

}  // namespace troupe

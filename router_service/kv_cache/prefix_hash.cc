#include "router_service/kv_cache/prefix_hash.h"

#include <xxhash.h>

#include <cstring>

#include "common/check.h"
#include "kernels/attention.h"

namespace troupe {
namespace {

PrefixHash Hash(const void* data, size_t num_bytes) {
  const XXH128_hash_t hash = XXH3_128bits(data, num_bytes);
  return {hash.low64, hash.high64};
}

}  // namespace

PrefixHash HashOfRoot(std::string_view salt) {
  return Hash(salt.data(), salt.size());
}

PrefixHash HashOfBlock(const PrefixHash& parent,
                       std::span<const int32_t> tokens) {
  struct {
    PrefixHash parent;
    int32_t tokens[kKvBlockSize];
  } input;
  static_assert(sizeof(input) == sizeof(PrefixHash) + 4 * kKvBlockSize);
  CHECK_EQ(tokens.size(), kKvBlockSize);
  input.parent = parent;
  std::memcpy(input.tokens, tokens.data(), sizeof(input.tokens));
  return Hash(&input, sizeof(input));
}

}  // namespace troupe

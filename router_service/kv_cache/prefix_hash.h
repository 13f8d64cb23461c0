// Names of prefixes: what the KV cache of a sequence of tokens depends on.
#ifndef TROUPE_ROUTER_SERVICE_KV_CACHE_PREFIX_HASH_H_
#define TROUPE_ROUTER_SERVICE_KV_CACHE_PREFIX_HASH_H_

#include <cstdint>
#include <span>
#include <string_view>

namespace troupe {

// XXH3, 128 bits. It finds blocks; whether they are the right ones is decided
// by their tokens.
struct PrefixHash {
  uint64_t low = 0;
  uint64_t high = 0;

  friend bool operator==(const PrefixHash&, const PrefixHash&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const PrefixHash& hash) {
    return H::combine(std::move(state), hash.low, hash.high);
  }
};

// Of no token at all: prefixes of different salts have nothing in common.
PrefixHash HashOfRoot(std::string_view salt);

// Of the prefix that ends with these tokens after the prefix `parent`.
PrefixHash HashOfBlock(const PrefixHash& parent,
                       std::span<const int32_t> tokens);

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_KV_CACHE_PREFIX_HASH_H_

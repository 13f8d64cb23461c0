// The seed of each choice of a request.
#ifndef TROUPE_GATEWAY_CHOICE_SEED_H_
#define TROUPE_GATEWAY_CHOICE_SEED_H_

#include <cstdint>

namespace troupe {

// Choice 0 uses the seed itself, so that a request for one choice is repeated
// by any other number of choices; the others a fixed mix of both (the
// finaliser of SplitMix64, a bijection, so that no two choices agree).
constexpr uint64_t ChoiceSeed(uint64_t seed, uint32_t index) {
  if (index == 0) return seed;
  uint64_t z = seed + index * uint64_t{0x9E3779B97F4A7C15};
  z = (z ^ (z >> 30)) * uint64_t{0xBF58476D1CE4E5B9};
  z = (z ^ (z >> 27)) * uint64_t{0x94D049BB133111EB};
  return z ^ (z >> 31);
}

}  // namespace troupe

#endif  // TROUPE_GATEWAY_CHOICE_SEED_H_

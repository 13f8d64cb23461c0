// Which router a sequence goes to.
#ifndef TROUPE_GATEWAY_ROUTER_CHOICE_H_
#define TROUPE_GATEWAY_ROUTER_CHOICE_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/types/span.h"

namespace troupe {

struct RouterLoad {
  bool ready = false;
  // Sequences that run or wait there, those of other gateways as of late.
  uint32_t active_sequences = 0;
  bool excluded = false;  // has refused or lost this sequence
  // Of the prompt: what it has to compute, since it has not seen it before.
  uint64_t uncached_tokens = 0;
  // Share of its KV blocks that sequences hold.
  double kv_use = 0;
};

// So many tokens of a prompt are as much work as a sequence more: a cached
// prefix draws a conversation to its router until that one is so much busier.
inline constexpr double kTokensPerSequence = 256;
// A router with fewer free KV blocks would make its sequences wait or compute
// again: worth so many sequences.
inline constexpr double kMaxKvUse = 0.95;
inline constexpr double kFullKvCost = 8;

// The ready router with the least to do, this prompt included; of equals, the
// first at or after `turn`, so that an idle cluster is used evenly.
std::optional<size_t> ChooseRouter(absl::Span<const RouterLoad> routers,
                                   size_t turn);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_ROUTER_CHOICE_H_

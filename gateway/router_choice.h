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
  uint32_t active_sequences = 0;  // sent there by this gateway
  bool excluded = false;          // has refused or lost this sequence
};

// The ready router with the fewest active sequences; of equals, the first at
// or after `turn`, so that an idle cluster is used evenly.
std::optional<size_t> ChooseRouter(absl::Span<const RouterLoad> routers,
                                   size_t turn);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_ROUTER_CHOICE_H_

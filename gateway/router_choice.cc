#include "gateway/router_choice.h"

namespace troupe {

std::optional<size_t> ChooseRouter(absl::Span<const RouterLoad> routers,
                                   size_t turn) {
  std::optional<size_t> best;
  for (size_t i = 0; i < routers.size(); ++i) {
    const size_t index = (turn + i) % routers.size();
    const RouterLoad& router = routers[index];
    if (!router.ready || router.excluded) continue;
    if (!best || router.active_sequences < routers[*best].active_sequences) {
      best = index;
    }
  }
  return best;
}

}  // namespace troupe

#include "gateway/router_choice.h"

namespace troupe {
namespace {

double Cost(const RouterLoad& router) {
  return static_cast<double>(router.active_sequences) +
         static_cast<double>(router.uncached_tokens) / kTokensPerSequence +
         (router.kv_use > kMaxKvUse ? kFullKvCost : 0);
}

}  // namespace

std::optional<size_t> ChooseRouter(absl::Span<const RouterLoad> routers,
                                   size_t turn) {
  std::optional<size_t> best;
  for (size_t i = 0; i < routers.size(); ++i) {
    const size_t index = (turn + i) % routers.size();
    const RouterLoad& router = routers[index];
    if (!router.ready || router.excluded) continue;
    if (!best || Cost(router) < Cost(routers[*best])) {
      best = index;
    }
  }
  return best;
}

}  // namespace troupe

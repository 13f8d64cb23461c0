// Which expert computes each copy of a layer, and what became of it.
#ifndef TROUPE_ROUTER_SERVICE_DISPATCH_COPY_LEDGER_H_
#define TROUPE_ROUTER_SERVICE_DISPATCH_COPY_LEDGER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "router_service/gating/capacity.h"
#include "router_service/gating/gating.h"

namespace troupe {

// By slot, token * top_k + i. Kept and filled again.
struct CopyLedger {
  size_t top_k = 0;
  bool renormalized = false;
  std::vector<int32_t> own;  // [num_slots]: the gate's choice
  // The same, or stand-ins; -1: dropped. Filled only if some row is not exact.
  std::vector<int32_t> experts;
  // Empty: all are of first choice.
  std::vector<CopyFate> fates;
  // Of ApplyCapacity; 0: dropless.
  uint64_t capacity = 0;
  std::vector<uint32_t> load;  // [num_experts], with a capacity
  uint64_t salt = 0;

  void Begin(const RoutingDecision& decision, bool is_bounded) {
    top_k = decision.top_k;
    renormalized = decision.renormalized;
    own = decision.topk_idx;
    experts.clear();
    if (is_bounded) experts = decision.topk_idx;
    fates.clear();
    capacity = 0;
  }
  void Set(size_t slot, CopyFate fate) {
    if (fate == CopyFate::kFirstChoice) return;
    if (fates.empty()) fates.assign(own.size(), CopyFate::kFirstChoice);
    fates[slot] = std::max(fates[slot], fate);
  }
  std::span<const int32_t> RowOf(const std::vector<int32_t>& slots,
                                 size_t row) const {
    return std::span(slots).subspan(row * top_k, top_k);
  }
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_DISPATCH_COPY_LEDGER_H_

// Sums of v1::CopyUsage.
#ifndef TROUPE_CLUSTER_COPY_USAGE_H_
#define TROUPE_CLUSTER_COPY_USAGE_H_

#include <cstdint>

#include "protos/cluster.pb.h"

namespace troupe {

inline void AddCopies(const v1::CopyUsage& more, v1::CopyUsage& sum) {
  sum.set_first_choice(sum.first_choice() + more.first_choice());
  sum.set_by_replica(sum.by_replica() + more.by_replica());
  sum.set_after_wait(sum.after_wait() + more.after_wait());
  sum.set_other_version(sum.other_version() + more.other_version());
  sum.set_next_best(sum.next_best() + more.next_best());
  sum.set_dropped(sum.dropped() + more.dropped());
  sum.set_computed_tokens(sum.computed_tokens() + more.computed_tokens());
}

// Of all classes: computed_tokens * MoE layers * top_k.
inline uint64_t TotalCopies(const v1::CopyUsage& usage) {
  return usage.first_choice() + usage.by_replica() + usage.after_wait() +
         usage.other_version() + usage.next_best() + usage.dropped();
}

}  // namespace troupe

#endif  // TROUPE_CLUSTER_COPY_USAGE_H_

// Which replica of an expert gets a router's copies: pure functions.
#ifndef TROUPE_CLUSTER_REPLICA_CHOICE_H_
#define TROUPE_CLUSTER_REPLICA_CHOICE_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace troupe {

// What a router knows of a process that could take copies.
struct ReplicaLoad {
  // Rows that are at the process or on their way, and those that the router
  // has chosen it for and not sent yet.
  uint64_t rows_ahead = 0;
  uint64_t chosen_rows = 0;  // of them, the latter
  int64_t free_rows = 0;     // room in its queue, less what is on its way
  double us_per_row = 0;     // measured; 0: nothing is known yet
  uint64_t sent = 0;         // messages
};

// The index of the replica that has computed `rows` more rows first, in [0,
// replicas.size()). Replicas without room come last. A process that gets
// nothing else of this layer yet costs a message, so that experts which share
// processes also share a message unless splitting them saves more time than
// that. Of equals, the one with the fewest messages. Of more than two, two that
// `random` draws and those that get something anyway are looked at (the power
// of two choices): what several routers know of the queues is old, and all of
// them would run to the same one.
size_t ChooseReplica(absl::Span<const ReplicaLoad> replicas, uint64_t rows,
                     uint64_t random);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_REPLICA_CHOICE_H_

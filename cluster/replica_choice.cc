#include "cluster/replica_choice.h"

#include <tuple>

#include "common/check.h"

namespace troupe {
namespace {

// What a message costs, sender and receiver together; the hop's benchmark
// measures 20 to 60 us (docs/benchmarks.md).
constexpr double kMessageUs = 30;

}  // namespace

size_t ChooseReplica(absl::Span<const ReplicaLoad> replicas, uint64_t rows,
                     uint64_t random) {
  const size_t n = replicas.size();
  CHECK(n > 0);
  // One of which nothing is known is taken for as fast as the fastest, so that
  // it becomes known.
  double fastest = 0;
  for (const ReplicaLoad& replica : replicas) {
    if (replica.us_per_row > 0 &&
        (fastest == 0 || replica.us_per_row < fastest)) {
      fastest = replica.us_per_row;
    }
  }
  if (fastest == 0) fastest = 1;
  const size_t first = random % n;
  const size_t second = n > 1 ? (first + 1 + random / n % (n - 1)) % n : first;
  const auto rank = [&](size_t i) {
    const ReplicaLoad& replica = replicas[i];
    const double us_per_row =
        replica.us_per_row > 0 ? replica.us_per_row : fastest;
    const double us =
        us_per_row * static_cast<double>(replica.rows_ahead + rows) +
        (replica.chosen_rows > 0 ? 0 : kMessageUs);
    return std::tuple(replica.free_rows <= 0, us, replica.sent);
  };
  size_t best = first;
  for (size_t i = 0; i < n; ++i) {
    if (n > 2 && i != first && i != second && replicas[i].chosen_rows == 0) {
      continue;
    }
    if (rank(i) < rank(best)) best = i;
  }
  return best;
}

}  // namespace troupe

// What became of the copies of committed steps: by sequence, in all, and by
// expert.
#ifndef TROUPE_ROUTER_SERVICE_COPY_ACCOUNTS_H_
#define TROUPE_ROUTER_SERVICE_COPY_ACCOUNTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/config.h"
#include "protos/cluster.pb.h"
#include "router_service/dispatch/token_dispatcher.h"
#include "router_service/scheduler/scheduler.h"

namespace troupe {

// Not thread-safe: the serving loop's.
class CopyAccounts {
 public:
  struct OfLayer {
    // [num_experts] each, or empty: none. By fate of the gate's choice.
    std::array<std::vector<uint64_t>, kNumCopyFates> by_fate;
    std::vector<uint64_t> stand_ins, refused, over_capacity;
  };
  using ByExpert = std::vector<OfLayer>;  // [num_layers]

  explicit CopyAccounts(const ModelConfig& config);

  // A step was computed: its copies go to the usage of their sequences and to
  // `totals`. Sequences whose quality has suffered publish no prefix from here
  // on: what they have computed is not what an exact one would have. Before the
  // scheduler commits. `dispatcher` null: a dense model.
  void Add(const std::vector<Chunk>& chunks, const TokenDispatcher* dispatcher,
           v1::RouterStats& totals);

  // Whether by_expert() has changed since the last call.
  bool TakeNews(const TokenDispatcher* dispatcher);
  const ByExpert& by_expert() const { return by_expert_; }
  // Into the lists of a layer, whose number is set.
  static void Fill(const ByExpert& by_expert, v1::LayerLoad& load);

 private:
  void Count(const FatedCopy& copy);

  const size_t num_experts_;
  const uint64_t copies_per_token_;
  ByExpert by_expert_;
  bool has_news_ = false;
  uint64_t num_refused_ = 0;  // that by_expert_ knows, over capacity included
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_COPY_ACCOUNTS_H_

// One forward pass of the model over a batch.
#ifndef TROUPE_ROUTER_SERVICE_ENGINE_MODEL_RUNNER_H_
#define TROUPE_ROUTER_SERVICE_ENGINE_MODEL_RUNNER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/thread_pool.h"
#include "common/views.h"
#include "kernels/expert_ffn.h"
#include "kernels/workspace.h"
#include "model/checkpoint.h"
#include "router_service/attention/attention_layer.h"
#include "router_service/dispatch/token_dispatcher.h"
#include "router_service/gating/gating.h"
#include "router_service/kv_cache/kv_storage.h"

namespace troupe {

// The tokens of one step: consecutive rows belong to one sequence each.
struct Batch {
  std::vector<int32_t> token_ids;            // [num_rows]
  std::vector<int32_t> positions;            // [num_rows]
  std::vector<AttentionSequence> sequences;  // cover all rows, in order
  std::vector<size_t> logit_rows;            // rows whose logits are wanted
};

// Everything of the model but its experts. Owns its weights, does not own the
// KV storage and the pool of threads. Not thread-safe: the serving loop's.
class ModelRunner {
 public:
  // Sees the routing of every MoE layer: load counters, tests.
  using RoutingObserver =
      std::function<void(size_t layer, const RoutingDecision& decision)>;
  // Bytes done and in all while loading; an error ends the loading.
  using Progress = std::function<absl::Status(uint64_t done, uint64_t total)>;

  // max_positions: the longest context that will be asked for.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> Load(
      const Checkpoint& checkpoint, size_t max_positions, KvStorage& kv,
      ThreadPool& pool, const Progress& progress);

  void set_routing_observer(RoutingObserver observer) {
    observer_ = std::move(observer);
  }

  // Runs the batch; logits [batch.logit_rows.size(), vocab_size] are valid
  // until the next call. `dispatcher` may be null for a dense model. An error
  // is that of `check` (TokenDispatcher::Combine): the KV cache then holds the
  // batch's positions for some layers only; running the same rows again
  // overwrites them.
  absl::StatusOr<ConstFloatMatrix> Forward(const Batch& batch,
                                           TokenDispatcher* dispatcher,
                                           const TokenDispatcher::Check& check);

  const ModelConfig& config() const { return config_; }
  KvStorage& kv() { return kv_; }
  // Packed weights.
  uint64_t num_bytes() const { return num_bytes_; }

 private:
  struct Layer {
    AttentionLayer attention;
    std::vector<float> input_norm, post_attention_norm;
    PackedMatrix gate;    // empty in a dense layer
    GatedMlpWeights mlp;  // the dense MLP or the shared expert; may be empty
    PackedMatrix shared_gate;
  };

  ModelRunner(const ModelConfig& config, KvStorage& kv, ThreadPool& pool)
      : config_(config), kv_(kv), pool_(pool) {}
  absl::Status LoadLayer(const Checkpoint& checkpoint, size_t index,
                         Layer& layer);
  absl::Status RunMlp(size_t index, const Layer& layer, FloatMatrix hidden,
                      TokenDispatcher* dispatcher,
                      const TokenDispatcher::Check& check);

  const ModelConfig config_;
  KvStorage& kv_;
  ThreadPool& pool_;
  uint64_t num_bytes_ = 0;
  RopeTables rope_;
  MappedTensor embedding_;  // rows are read where they lie
  PackedMatrix lm_head_;
  std::vector<float> final_norm_;
  std::vector<Layer> layers_;
  RoutingObserver observer_;

  // Activations, grown to the largest step.
  Workspace workspace_;
  AttentionLayer::Scratch attention_scratch_;
  RoutingDecision decision_;
  std::vector<float> hidden_, normed_, block_, router_logits_, shared_gate_;
  std::vector<float> logits_;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_ENGINE_MODEL_RUNNER_H_

#include "router_service/engine/model_runner.h"

#include <cstring>
#include <span>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "router_service/attention/load_weights.h"

namespace troupe {
namespace {

FloatMatrix Resize(std::vector<float>& storage, size_t rows, size_t cols) {
  if (storage.size() < rows * cols) storage.resize(rows * cols);
  return FloatMatrix(storage.data(), rows, cols);
}

absl::StatusOr<GatedMlpWeights> LoadMlp(const Checkpoint& checkpoint,
                                        size_t layer, LayerTensor gate_name,
                                        LayerTensor up_name,
                                        LayerTensor down_name,
                                        ThreadPool& pool) {
  ABSL_ASSIGN_OR_RETURN(const MappedTensor gate,
                        checkpoint.MapLayer(layer, gate_name));
  ABSL_ASSIGN_OR_RETURN(const MappedTensor up,
                        checkpoint.MapLayer(layer, up_name));
  GatedMlpWeights weights;
  weights.gate_up = PackedMatrix::PackGateUp(gate.matrix(), up.matrix(), pool);
  ABSL_ASSIGN_OR_RETURN(weights.down,
                        LoadMatrix(checkpoint, layer, down_name, pool));
  return weights;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Load(
    const Checkpoint& checkpoint, size_t max_positions, KvStorage& kv,
    ThreadPool& pool, const Progress& progress) {
  const ModelConfig& config = checkpoint.config();
  auto runner = std::unique_ptr<ModelRunner>(new ModelRunner(config, kv, pool));
  runner->rope_ = MakeRopeTables(config, max_positions);
  const uint64_t total = checkpoint.router_bytes();
  for (size_t i = 0; i < config.num_layers; ++i) {
    ABSL_RETURN_IF_ERROR(
        runner->LoadLayer(checkpoint, i, runner->layers_.emplace_back()));
    ABSL_RETURN_IF_ERROR(progress(runner->num_bytes_, total));
  }
  ABSL_ASSIGN_OR_RETURN(const MappedTensor norm,
                        checkpoint.MapModel(ModelTensor::kFinalNorm));
  runner->final_norm_.resize(norm.num_elements());
  CopyToFloat(norm, runner->final_norm_.data());
  ABSL_ASSIGN_OR_RETURN(const MappedTensor head,
                        checkpoint.MapModel(ModelTensor::kLmHead));
  runner->lm_head_ = PackedMatrix::Pack(head.matrix(), pool);
  head.DropPages();
  ABSL_ASSIGN_OR_RETURN(runner->embedding_,
                        checkpoint.MapModel(ModelTensor::kEmbedding));
  runner->num_bytes_ += runner->lm_head_.num_bytes();
  ABSL_RETURN_IF_ERROR(progress(total, total));
  return runner;
}

absl::Status ModelRunner::LoadLayer(const Checkpoint& checkpoint, size_t index,
                                    Layer& layer) {
  ABSL_ASSIGN_OR_RETURN(layer.attention,
                        AttentionLayer::Load(checkpoint, index, pool_));
  ABSL_ASSIGN_OR_RETURN(layer.input_norm,
                        LoadVector(checkpoint, index, LayerTensor::kInputNorm));
  ABSL_ASSIGN_OR_RETURN(
      layer.post_attention_norm,
      LoadVector(checkpoint, index, LayerTensor::kPostAttentionNorm));
  if (!config_.is_moe_layer[index]) {
    ABSL_ASSIGN_OR_RETURN(
        layer.mlp,
        LoadMlp(checkpoint, index, LayerTensor::kDenseGate,
                LayerTensor::kDenseUp, LayerTensor::kDenseDown, pool_));
  } else {
    ABSL_ASSIGN_OR_RETURN(
        layer.gate, LoadMatrix(checkpoint, index, LayerTensor::kGate, pool_));
    if (config_.shared_expert_intermediate_size > 0) {
      ABSL_ASSIGN_OR_RETURN(
          layer.mlp,
          LoadMlp(checkpoint, index, LayerTensor::kSharedGate,
                  LayerTensor::kSharedUp, LayerTensor::kSharedDown, pool_));
      ABSL_ASSIGN_OR_RETURN(
          layer.shared_gate,
          LoadMatrix(checkpoint, index, LayerTensor::kSharedExpertGate, pool_));
    }
  }
  num_bytes_ += layer.attention.num_bytes();
  for (const PackedMatrix* matrix :
       {&layer.gate, &layer.mlp.gate_up, &layer.mlp.down, &layer.shared_gate}) {
    if (!matrix->empty()) num_bytes_ += matrix->num_bytes();
  }
  return absl::OkStatus();
}

absl::StatusOr<ConstFloatMatrix> ModelRunner::Forward(
    const Batch& batch, TokenDispatcher* dispatcher,
    const TokenDispatcher::Check& check) {
  const size_t rows = batch.token_ids.size();
  const size_t hidden_size = config_.hidden_size;
  FloatMatrix hidden = Resize(hidden_, rows, hidden_size);
  FloatMatrix normed = Resize(normed_, rows, hidden_size);
  FloatMatrix block = Resize(block_, rows, hidden_size);
  const ConstFloatMatrix cosines(rope_.cosines.data(), rope_.num_positions,
                                 rope_.half_dim);
  const ConstFloatMatrix sines(rope_.sines.data(), rope_.num_positions,
                               rope_.half_dim);
  const AttentionBatch attention_batch = {batch.positions, batch.sequences};

  EmbedTokens(batch.token_ids, embedding_.matrix(), hidden, pool_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    RmsNorm(hidden, layer.input_norm.data(), config_.rms_norm_eps, normed,
            pool_);
    layer.attention.Run(normed, attention_batch, cosines, sines, kv_.layer(i),
                        block, attention_scratch_, workspace_, pool_);
    AddInPlace(hidden, block, pool_);
    ABSL_RETURN_IF_ERROR(RunMlp(i, layer, hidden, dispatcher, check));
  }

  const size_t num_wanted = batch.logit_rows.size();
  for (size_t i = 0; i < num_wanted; ++i) {
    std::memcpy(block.row(i), hidden.row(batch.logit_rows[i]),
                hidden_size * sizeof(float));
  }
  const FloatMatrix wanted = block.Rows(0, num_wanted);
  FloatMatrix logits = Resize(logits_, num_wanted, config_.vocab_size);
  RmsNorm(wanted, final_norm_.data(), config_.rms_norm_eps, wanted, pool_);
  Gemm(wanted, lm_head_, nullptr, logits, workspace_, pool_);
  return ConstFloatMatrix(logits);
}

absl::Status ModelRunner::RunMlp(size_t index, const Layer& layer,
                                 FloatMatrix hidden,
                                 TokenDispatcher* dispatcher,
                                 const TokenDispatcher::Check& check) {
  FloatMatrix normed(normed_.data(), hidden.rows, hidden.cols);
  FloatMatrix block(block_.data(), hidden.rows, hidden.cols);
  RmsNorm(hidden, layer.post_attention_norm.data(), config_.rms_norm_eps,
          normed, pool_);
  if (layer.gate.empty()) {
    GatedMlp(normed, layer.mlp, block, workspace_, pool_);
    AddInPlace(hidden, block, pool_);
    return absl::OkStatus();
  }

  CHECK(dispatcher != nullptr);
  FloatMatrix router_logits =
      Resize(router_logits_, hidden.rows, config_.num_experts);
  Gemm(normed, layer.gate, nullptr, router_logits, workspace_, pool_);
  SoftmaxRows(router_logits, pool_);
  ChooseTopK(router_logits, config_.top_k, config_.norm_topk_prob, decision_);
  if (observer_) observer_(index, decision_);
  DispatchHandle handle =
      dispatcher->Dispatch(index, normed, decision_, router_logits);

  // The shared expert runs here while the routed ones run elsewhere.
  const bool has_shared = !layer.shared_gate.empty();
  FloatMatrix shared_gate = Resize(shared_gate_, hidden.rows, 1);
  if (has_shared) {
    GatedMlp(normed, layer.mlp, block, workspace_, pool_);
    Gemm(normed, layer.shared_gate, nullptr, shared_gate, workspace_, pool_);
  }
  ABSL_RETURN_IF_ERROR(
      dispatcher->Combine(std::move(handle), check, hidden, pool_));
  if (has_shared) {
    AddSigmoidGated(hidden, std::span(shared_gate_.data(), hidden.rows), block,
                    pool_);
  }
  return absl::OkStatus();
}

}  // namespace troupe

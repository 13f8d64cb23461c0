#include "router_service/attention/attention_layer.h"

#include "common/status_macros.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "router_service/attention/load_weights.h"

namespace troupe {
namespace {

const float* OrNull(const std::vector<float>& bias) {
  return bias.empty() ? nullptr : bias.data();
}

FloatMatrix Resize(std::vector<float>& storage, size_t rows, size_t cols) {
  if (storage.size() < rows * cols) storage.resize(rows * cols);
  return FloatMatrix(storage.data(), rows, cols);
}

}  // namespace

absl::StatusOr<AttentionLayer> AttentionLayer::Load(
    const Checkpoint& checkpoint, size_t layer, ThreadPool& pool) {
  AttentionLayer loaded;
  loaded.config_ = checkpoint.config();
  loaded.window_ = checkpoint.config().sliding_window[layer];
  const auto matrix = [&](LayerTensor which) {
    return LoadMatrix(checkpoint, layer, which, pool);
  };
  const auto vector = [&](LayerTensor which) {
    return LoadVector(checkpoint, layer, which);
  };
  ABSL_ASSIGN_OR_RETURN(loaded.q_, matrix(LayerTensor::kQ));
  ABSL_ASSIGN_OR_RETURN(loaded.k_, matrix(LayerTensor::kK));
  ABSL_ASSIGN_OR_RETURN(loaded.v_, matrix(LayerTensor::kV));
  ABSL_ASSIGN_OR_RETURN(loaded.o_, matrix(LayerTensor::kO));
  ABSL_ASSIGN_OR_RETURN(loaded.q_bias_, vector(LayerTensor::kQBias));
  ABSL_ASSIGN_OR_RETURN(loaded.k_bias_, vector(LayerTensor::kKBias));
  ABSL_ASSIGN_OR_RETURN(loaded.v_bias_, vector(LayerTensor::kVBias));
  ABSL_ASSIGN_OR_RETURN(loaded.o_bias_, vector(LayerTensor::kOBias));
  ABSL_ASSIGN_OR_RETURN(loaded.q_norm_, vector(LayerTensor::kQNorm));
  ABSL_ASSIGN_OR_RETURN(loaded.k_norm_, vector(LayerTensor::kKNorm));
  return loaded;
}

void AttentionLayer::Run(ConstFloatMatrix input, const AttentionBatch& batch,
                         ConstFloatMatrix cosines, ConstFloatMatrix sines,
                         const KvCacheView& cache, FloatMatrix output,
                         Scratch& scratch, Workspace& workspace,
                         ThreadPool& pool) const {
  const ModelConfig& config = config_;
  const size_t rows = input.rows;
  FloatMatrix queries = Resize(scratch.queries, rows, q_.n());
  FloatMatrix keys = Resize(scratch.keys, rows, k_.n());
  FloatMatrix values = Resize(scratch.values, rows, v_.n());
  FloatMatrix attended = Resize(scratch.attended, rows, q_.n());

  Gemm(input, q_, OrNull(q_bias_), queries, workspace, pool);
  Gemm(input, k_, OrNull(k_bias_), keys, workspace, pool);
  Gemm(input, v_, OrNull(v_bias_), values, workspace, pool);

  switch (config.qk_norm) {
    case QkNorm::kNone:
      break;
    case QkNorm::kPerHead:
      RmsNormPerHead(queries, config.num_heads, q_norm_.data(),
                     config.rms_norm_eps, pool);
      RmsNormPerHead(keys, config.num_kv_heads, k_norm_.data(),
                     config.rms_norm_eps, pool);
      break;
    case QkNorm::kFull:
      RmsNorm(queries, q_norm_.data(), config.rms_norm_eps, queries, pool);
      RmsNorm(keys, k_norm_.data(), config.rms_norm_eps, keys, pool);
      break;
  }
  if (config.clip_qkv > 0.0f) {
    Clamp(queries, config.clip_qkv, pool);
    Clamp(keys, config.clip_qkv, pool);
    Clamp(values, config.clip_qkv, pool);
  }

  ApplyRope(queries, config.num_heads, batch.positions, cosines, sines, pool);
  ApplyRope(keys, config.num_kv_heads, batch.positions, cosines, sines, pool);
  WriteKvCache(keys, values, batch.sequences, cache, pool);
  PagedAttention(queries, config.num_heads, config.attention_scale, window_,
                 batch.sequences, cache, attended, workspace, pool);
  Gemm(attended, o_, OrNull(o_bias_), output, workspace, pool);
}

uint64_t AttentionLayer::num_bytes() const {
  return q_.num_bytes() + k_.num_bytes() + v_.num_bytes() + o_.num_bytes();
}

}  // namespace troupe

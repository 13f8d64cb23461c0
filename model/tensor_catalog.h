// Which tensors a model consists of: canonical slots, their names in the files
// and their shapes. The only place, with model/families/, that knows names.
#ifndef TROUPE_MODEL_TENSOR_CATALOG_H_
#define TROUPE_MODEL_TENSOR_CATALOG_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/config.h"

namespace troupe {

// Scales and zero points of a quantised matrix: its own name and one of these.
inline constexpr char kScaleSuffix[] = "_scale";
inline constexpr char kZeroPointSuffix[] = "_zero_point";
// How many inputs may share a scale.
inline constexpr size_t kGroupSizes[] = {32, 64};

// One per model.
enum class ModelTensor {
  kEmbedding,  // [vocab_size, hidden_size]
  kFinalNorm,  // [hidden_size]
  kLmHead,     // [vocab_size, hidden_size]; the embedding when tied
};

// One per layer, held by the router service. q_size = num_heads * head_dim,
// kv_size = num_kv_heads * head_dim.
enum class LayerTensor {
  kInputNorm,          // [hidden_size]
  kPostAttentionNorm,  // [hidden_size]
  kQ,                  // [q_size, hidden_size]
  kK,                  // [kv_size, hidden_size]
  kV,                  // [kv_size, hidden_size]
  kO,                  // [hidden_size, q_size]
  kQBias,              // [q_size]
  kKBias,              // [kv_size]
  kVBias,              // [kv_size]
  kOBias,              // [hidden_size]
  kQNorm,              // [head_dim], or [q_size] with QkNorm::kFull
  kKNorm,              // [head_dim], or [kv_size] with QkNorm::kFull
  kGate,               // router: [num_experts, hidden_size]
  kSharedGate,         // [shared_expert_intermediate_size, hidden_size]
  kSharedUp,           // [shared_expert_intermediate_size, hidden_size]
  kSharedDown,         // [hidden_size, shared_expert_intermediate_size]
  kSharedExpertGate,   // [1, hidden_size]
  kDenseGate,          // [dense_intermediate_size, hidden_size]
  kDenseUp,            // [dense_intermediate_size, hidden_size]
  kDenseDown,          // [hidden_size, dense_intermediate_size]
};
inline constexpr LayerTensor kLastLayerTensor = LayerTensor::kDenseDown;

// One per expert and MoE layer, held by expert services.
enum class ExpertTensor {
  kGateProj,  // [expert_intermediate_size, hidden_size]
  kUpProj,    // [expert_intermediate_size, hidden_size]
  kDownProj,  // [hidden_size, expert_intermediate_size]
};
inline constexpr ExpertTensor kExpertTensors[] = {
    ExpertTensor::kGateProj, ExpertTensor::kUpProj, ExpertTensor::kDownProj};

enum class TensorOwner { kRouter, kExpert };

// What may be stored in which format (docs/quantisation.md). Only kSmall is
// always stored as floats.
enum class TensorClass {
  kExpert,     // projections of the experts
  kRouter,     // attention, dense MLP and shared expert
  kHead,       // output matrix that is not the embedding
  kEmbedding,  // and head, when they are tied
  kSmall,      // norms, biases, router matrix, gate of the shared expert
};
inline constexpr TensorClass kTensorClasses[] = {
    TensorClass::kExpert, TensorClass::kRouter, TensorClass::kHead,
    TensorClass::kEmbedding, TensorClass::kSmall};
// "experts", "router", "head", "embedding", "small".
const char* Name(TensorClass tensor_class);

struct TensorSpec {
  std::string name;
  std::vector<size_t> shape;
  TensorOwner owner = TensorOwner::kRouter;
  TensorClass tensor_class = TensorClass::kSmall;
  size_t layer = 0;   // 0 for model tensors
  size_t expert = 0;  // for kExpert
  // Norms, biases and the router matrix are also accepted as F32 in a bf16 or
  // f16 model, as some publishers store them.
  bool may_be_f32 = false;
};

// Whether the model has that tensor, by its config alone.
bool HasTensor(const ModelConfig& config, size_t layer, LayerTensor which);

// CHECKs that the model has it.
TensorSpec SpecOf(const ModelConfig& config, ModelTensor which);
TensorSpec SpecOf(const ModelConfig& config, size_t layer, LayerTensor which);
TensorSpec SpecOf(const ModelConfig& config, size_t layer, size_t expert,
                  ExpertTensor which);

// Visits all tensors of the model until the first error, which it returns. The
// router's of a layer come before its experts'; a tied head once, as embedding.
absl::Status ForEachTensor(
    const ModelConfig& config,
    const std::function<absl::Status(const TensorSpec&)>& visit);

uint64_t NumElements(const TensorSpec& spec);

}  // namespace troupe

#endif  // TROUPE_MODEL_TENSOR_CATALOG_H_

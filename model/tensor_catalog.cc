#include "model/tensor_catalog.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/families/family.h"

namespace troupe {
namespace {

struct SlotName {
  LayerTensor which;
  const char* name;  // after "model.layers.{layer}."; null: the family's router
};

// The same in all families so far; what is in FamilyOf(...) differs.
constexpr SlotName kSlots[] = {
    {LayerTensor::kInputNorm, "input_layernorm.weight"},
    {LayerTensor::kPostAttentionNorm, "post_attention_layernorm.weight"},
    {LayerTensor::kQ, "self_attn.q_proj.weight"},
    {LayerTensor::kK, "self_attn.k_proj.weight"},
    {LayerTensor::kV, "self_attn.v_proj.weight"},
    {LayerTensor::kO, "self_attn.o_proj.weight"},
    {LayerTensor::kQBias, "self_attn.q_proj.bias"},
    {LayerTensor::kKBias, "self_attn.k_proj.bias"},
    {LayerTensor::kVBias, "self_attn.v_proj.bias"},
    {LayerTensor::kOBias, "self_attn.o_proj.bias"},
    {LayerTensor::kQNorm, "self_attn.q_norm.weight"},
    {LayerTensor::kKNorm, "self_attn.k_norm.weight"},
    {LayerTensor::kGate, nullptr},
    {LayerTensor::kSharedGate, "mlp.shared_expert.gate_proj.weight"},
    {LayerTensor::kSharedUp, "mlp.shared_expert.up_proj.weight"},
    {LayerTensor::kSharedDown, "mlp.shared_expert.down_proj.weight"},
    {LayerTensor::kSharedExpertGate, "mlp.shared_expert_gate.weight"},
    {LayerTensor::kDenseGate, "mlp.gate_proj.weight"},
    {LayerTensor::kDenseUp, "mlp.up_proj.weight"},
    {LayerTensor::kDenseDown, "mlp.down_proj.weight"},
};

std::vector<size_t> ShapeOf(const ModelConfig& c, LayerTensor which) {
  const size_t q_size = c.num_heads * c.head_dim;
  const size_t kv_size = c.num_kv_heads * c.head_dim;
  const bool full = c.qk_norm == QkNorm::kFull;
  switch (which) {
    case LayerTensor::kInputNorm:
    case LayerTensor::kPostAttentionNorm:
    case LayerTensor::kOBias:
      return {c.hidden_size};
    case LayerTensor::kQ:
      return {q_size, c.hidden_size};
    case LayerTensor::kK:
    case LayerTensor::kV:
      return {kv_size, c.hidden_size};
    case LayerTensor::kO:
      return {c.hidden_size, q_size};
    case LayerTensor::kQBias:
      return {q_size};
    case LayerTensor::kKBias:
    case LayerTensor::kVBias:
      return {kv_size};
    case LayerTensor::kQNorm:
      return {full ? q_size : c.head_dim};
    case LayerTensor::kKNorm:
      return {full ? kv_size : c.head_dim};
    case LayerTensor::kGate:
      return {c.num_experts, c.hidden_size};
    case LayerTensor::kSharedGate:
    case LayerTensor::kSharedUp:
      return {c.shared_expert_intermediate_size, c.hidden_size};
    case LayerTensor::kSharedDown:
      return {c.hidden_size, c.shared_expert_intermediate_size};
    case LayerTensor::kSharedExpertGate:
      return {1, c.hidden_size};
    case LayerTensor::kDenseGate:
    case LayerTensor::kDenseUp:
      return {c.dense_intermediate_size, c.hidden_size};
    case LayerTensor::kDenseDown:
      return {c.hidden_size, c.dense_intermediate_size};
  }
  CHECK(false && "unknown layer tensor");
  return {};
}

std::string LayerPrefix(size_t layer) {
  return absl::StrCat("model.layers.", layer, ".");
}

}  // namespace

const char* Name(TensorClass tensor_class) {
  switch (tensor_class) {
    case TensorClass::kExpert:
      return "experts";
    case TensorClass::kRouter:
      return "router";
    case TensorClass::kHead:
      return "head";
    case TensorClass::kEmbedding:
      return "embedding";
    case TensorClass::kSmall:
      return "small";
  }
  return "?";
}

bool HasTensor(const ModelConfig& config, size_t layer, LayerTensor which) {
  if (layer >= config.num_layers) return false;
  const bool moe = config.is_moe_layer[layer];
  switch (which) {
    case LayerTensor::kInputNorm:
    case LayerTensor::kPostAttentionNorm:
    case LayerTensor::kQ:
    case LayerTensor::kK:
    case LayerTensor::kV:
    case LayerTensor::kO:
      return true;
    case LayerTensor::kQBias:
    case LayerTensor::kKBias:
    case LayerTensor::kVBias:
      return config.qkv_bias;
    case LayerTensor::kOBias:
      return config.o_bias;
    case LayerTensor::kQNorm:
    case LayerTensor::kKNorm:
      return config.qk_norm != QkNorm::kNone;
    case LayerTensor::kGate:
      return moe;
    case LayerTensor::kSharedGate:
    case LayerTensor::kSharedUp:
    case LayerTensor::kSharedDown:
    case LayerTensor::kSharedExpertGate:
      return moe && config.shared_expert_intermediate_size > 0;
    case LayerTensor::kDenseGate:
    case LayerTensor::kDenseUp:
    case LayerTensor::kDenseDown:
      return !moe;
  }
  return false;
}

TensorSpec SpecOf(const ModelConfig& config, ModelTensor which) {
  TensorSpec spec;
  spec.shape = {config.vocab_size, config.hidden_size};
  switch (which) {
    case ModelTensor::kEmbedding:
      spec.name = "model.embed_tokens.weight";
      spec.tensor_class = TensorClass::kEmbedding;
      break;
    case ModelTensor::kFinalNorm:
      spec.name = "model.norm.weight";
      spec.shape = {config.hidden_size};
      spec.may_be_f32 = true;
      break;
    case ModelTensor::kLmHead:
      if (config.tie_word_embeddings) {
        return SpecOf(config, ModelTensor::kEmbedding);
      }
      spec.name = "lm_head.weight";
      spec.tensor_class = TensorClass::kHead;
      break;
  }
  return spec;
}

TensorSpec SpecOf(const ModelConfig& config, size_t layer, LayerTensor which) {
  CHECK(HasTensor(config, layer, which));
  TensorSpec spec;
  spec.layer = layer;
  spec.shape = ShapeOf(config, which);
  spec.may_be_f32 = spec.shape.size() == 1 || which == LayerTensor::kGate ||
                    which == LayerTensor::kSharedExpertGate;
  if (!spec.may_be_f32) spec.tensor_class = TensorClass::kRouter;
  for (const SlotName& slot : kSlots) {
    if (slot.which != which) continue;
    if (slot.name == nullptr) {
      spec.name = absl::StrCat(LayerPrefix(layer),
                               FamilyOf(config.architecture).router, ".weight");
    } else {
      spec.name = absl::StrCat(LayerPrefix(layer), slot.name);
    }
  }
  CHECK(!spec.name.empty());
  return spec;
}

TensorSpec SpecOf(const ModelConfig& config, size_t layer, size_t expert,
                  ExpertTensor which) {
  CHECK_LT(layer, config.num_layers);
  CHECK(config.is_moe_layer[layer]);
  CHECK_LT(expert, config.num_experts);
  const Family& family = FamilyOf(config.architecture);
  TensorSpec spec;
  spec.owner = TensorOwner::kExpert;
  spec.tensor_class = TensorClass::kExpert;
  spec.layer = layer;
  spec.expert = expert;
  spec.shape = {config.expert_intermediate_size, config.hidden_size};
  const char* projection = family.expert_gate;
  if (which == ExpertTensor::kUpProj) projection = family.expert_up;
  if (which == ExpertTensor::kDownProj) {
    projection = family.expert_down;
    std::swap(spec.shape[0], spec.shape[1]);
  }
  spec.name = absl::StrCat(LayerPrefix(layer), family.expert_prefix, expert,
                           ".", projection, ".weight");
  return spec;
}

absl::Status ForEachTensor(
    const ModelConfig& config,
    const std::function<absl::Status(const TensorSpec&)>& visit) {
  ABSL_RETURN_IF_ERROR(visit(SpecOf(config, ModelTensor::kEmbedding)));
  for (size_t layer = 0; layer < config.num_layers; ++layer) {
    for (const SlotName& slot : kSlots) {
      if (!HasTensor(config, layer, slot.which)) continue;
      ABSL_RETURN_IF_ERROR(visit(SpecOf(config, layer, slot.which)));
    }
    if (!config.is_moe_layer[layer]) continue;
    for (size_t expert = 0; expert < config.num_experts; ++expert) {
      for (const ExpertTensor which : kExpertTensors) {
        ABSL_RETURN_IF_ERROR(visit(SpecOf(config, layer, expert, which)));
      }
    }
  }
  ABSL_RETURN_IF_ERROR(visit(SpecOf(config, ModelTensor::kFinalNorm)));
  if (config.tie_word_embeddings) return absl::OkStatus();
  return visit(SpecOf(config, ModelTensor::kLmHead));
}

uint64_t NumElements(const TensorSpec& spec) {
  uint64_t count = 1;
  for (const size_t dimension : spec.shape) count *= dimension;
  return count;
}

}  // namespace troupe

// Random checkpoints of any family and shape, for tests and benchmarks.
#ifndef TROUPE_TOOLS_CLI_MAKE_MODEL_H_
#define TROUPE_TOOLS_CLI_MAKE_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/dtype.h"
#include "model/config.h"

namespace troupe {

struct MakeModelOptions {
  std::string output_dir;  // made if needed; must not hold a config.json yet
  std::string family = "mixtral";  // model_type: llama, mixtral, qwen2_moe, ...
  DataType dtype = DataType::kBF16;
  // The same seed and shape give the same bytes, however they are sharded.
  uint64_t seed = 0;

  // All in values, tokens or counts as in ModelConfig.
  size_t hidden_size = 256;
  size_t num_layers = 4;
  size_t num_heads = 8;
  size_t num_kv_heads = 2;
  size_t head_dim = 0;  // 0: hidden_size / num_heads
  // At least 258: the bytes, begin and end of text.
  size_t vocab_size = 4096;
  size_t max_position_embeddings = 4096;
  size_t num_experts = 8;  // not for llama
  size_t top_k = 2;
  size_t expert_intermediate_size = 512;
  size_t shared_expert_intermediate_size = 512;  // qwen2_moe alone
  size_t dense_intermediate_size = 1024;         // llama alone
  bool tie_word_embeddings = false;

  // Files are closed before they exceed this; one tensor is never cut.
  uint64_t max_shard_bytes = uint64_t{2} << 30;
  // Called after every few megabytes, if set.
  std::function<void(uint64_t bytes_done, uint64_t bytes_total)> progress;
};

// The config that MakeModel writes, checked as a config.json from elsewhere is.
absl::StatusOr<ModelConfig> MakeModelConfig(const MakeModelOptions& options);

// Writes config.json, generation_config.json, weights in safetensors and a
// tokenizer.json of bytes: id i < 256 is the byte i, 256 <|begin|>, 257
// <|end|>, the rest words that no text is encoded to, so that any text can be
// encoded and anything that is sampled is readable. config.json comes last: a
// directory without it is incomplete. Needs a few megabytes of memory.
//
// Values are uniform: matrices with variance 1 / columns, smaller by
// sqrt(2 num_layers) where they feed the residual stream, embedding with
// variance 1, head so that logits have a standard deviation of about 2. So
// hidden states, router logits and attention scores stay around 1 at any depth.
absl::Status MakeModel(const MakeModelOptions& options);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_MAKE_MODEL_H_

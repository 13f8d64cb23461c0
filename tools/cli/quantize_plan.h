// Which tensor of a checkpoint is quantised how, and into which file it goes.
#ifndef TROUPE_TOOLS_CLI_QUANTIZE_PLAN_H_
#define TROUPE_TOOLS_CLI_QUANTIZE_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/expert_range.h"
#include "common/stored_matrix.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"

namespace troupe {

// A quantised format, or nothing: the numbers stay as they are.
using FormatChoice = std::optional<WeightFormat>;

// "int8", "int4", "int4-zero" or "keep".
absl::StatusOr<FormatChoice> ParseFormatChoice(const std::string& text);

// What is asked for.
struct QuantizeRequest {
  FormatChoice experts = WeightFormat::kInt8;
  FormatChoice router = WeightFormat::kInt8;  // attention, dense, shared expert
  // Without value: as the embedding where they are tied, else int8.
  std::optional<FormatChoice> head;
  FormatChoice embedding = WeightFormat::kInt8;
  size_t group_size = 32;  // or 64; inputs per scale
  // "[LAYERS:]EXPERTS[/gate-up|/down]=FORMAT", LAYERS and EXPERTS like "0-3,6"
  // or "*"; of several that name the same matrix the last one counts.
  std::vector<std::string> expert_overrides;
};

// For config.json and the files' metadata.
nlohmann::ordered_json ToJson(const QuantizeRequest& request);

struct ExpertOverride {
  std::vector<HalfOpenRange> layers;
  std::vector<HalfOpenRange> experts;
  bool gate_up = true;  // concerns these two projections
  bool down = true;
  FormatChoice format;

  bool Covers(size_t layer, size_t expert) const;
};
// InvalidArgument that names the part which is wrong, or layers and experts
// that the model does not have.
absl::StatusOr<ExpertOverride> ParseExpertOverride(const std::string& text,
                                                   const ModelConfig& config);

struct PlannedTensor {
  TensorSpec spec;
  FormatChoice format;
  size_t group_size = 0;  // 0 when kept
  uint64_t source_bytes = 0;
  // As stored: numbers, then scales, then zero points.
  std::vector<TensorInfo> parts;
  uint64_t num_bytes = 0;
};

struct PlannedShard {
  std::string name;  // of the file
  std::vector<PlannedTensor> tensors;
  uint64_t num_bytes = 0;

  std::vector<TensorInfo> Infos() const;
};

// In the order of ForEachTensor; a new file begins before one is larger than
// max_shard_bytes. InvalidArgument when a matrix cannot be quantised as asked:
// its inputs are no multiple of the group, or head and embedding are one matrix
// and shall differ; FailedPrecondition when the checkpoint is quantised
// already.
absl::StatusOr<std::vector<PlannedShard>> PlanQuantization(
    const Checkpoint& checkpoint, const QuantizeRequest& request,
    uint64_t max_shard_bytes);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_QUANTIZE_PLAN_H_

// What a model needs: parameters, memory, arithmetic, as a cluster of services
// and beside a dense model that computes as much.
#ifndef TROUPE_TOOLS_CLI_INSPECT_H_
#define TROUPE_TOOLS_CLI_INSPECT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/stored_matrix.h"
#include "model/config.h"

namespace troupe {

// Formats that a model could be stored in. f32 and bf16 hold every weight in 4
// and 2 bytes. int8 and int4 hold matrices in 8 and 4 bits and one 16-bit scale
// per 32 values of a row, vectors in f32.
inline constexpr std::array<WeightFormat, 4> kSizedFormats = {
    WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8,
    WeightFormat::kInt4};

// Parameters of a part of the model and the bytes they take.
struct PartSize {
  uint64_t num_parameters = 0;
  std::array<uint64_t, kSizedFormats.size()> num_bytes = {};  // by format
};

// The experts [first, last] of all layers, in one process.
struct ExpertGroup {
  size_t first = 0;
  size_t last = 0;
  PartSize size;
};

struct ModelSizes {
  PartSize total;
  PartSize router;  // all but routed experts
  PartSize expert;  // one expert in all MoE layers
  std::vector<ExpertGroup> groups;

  size_t num_moe_layers = 0;
  // Parameters that one token uses: the router's and top_k experts'.
  uint64_t active_parameters = 0;
  // Multiplications and additions of one generated token: in matrices, and in
  // attention over context_tokens.
  uint64_t matrix_flops_per_token = 0;
  uint64_t attention_flops_per_token = 0;
  size_t context_tokens = 0;
  // Keys and values of one token in all layers, in bytes.
  uint64_t kv_bytes_per_token_f32 = 0;
  uint64_t kv_bytes_per_token_bf16 = 0;

  // The same model with one MLP per layer as wide as what a token uses here
  // (top_k experts and the shared one): same arithmetic, no choice.
  PartSize dense;
  uint64_t dense_matrix_flops_per_token = 0;
};

struct InspectOptions {
  // Experts are dealt to so many processes in ranges of (nearly) equal length.
  size_t num_expert_processes = 4;
  size_t context_tokens = 1024;  // for the arithmetic of attention
  bool json = false;
};

// InvalidArgument when there are more processes than experts (a dense model has
// no groups and takes any number), or none.
absl::StatusOr<ModelSizes> ComputeSizes(const ModelConfig& config,
                                        const InspectOptions& options);

// Opens and checks the checkpoint, and describes it: as text of at most 80
// columns, or as JSON.
absl::StatusOr<std::string> Inspect(const std::string& model_dir,
                                    const InspectOptions& options);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_INSPECT_H_

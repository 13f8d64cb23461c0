#include "tools/cli/experts_extract.h"

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/expert_range.h"
#include "common/status_macros.h"
#include "model/checkpoint.h"
#include "model/safetensors_writer.h"

namespace troupe {
namespace {

absl::StatusOr<std::vector<HalfOpenRange>> Ranges(const std::string& text,
                                                  size_t limit) {
  if (text.empty()) return std::vector<HalfOpenRange>{{0, limit}};
  return ParseRanges(text, limit);
}

}  // namespace

absl::StatusOr<std::string> ExtractExperts(const ExtractOptions& options) {
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                        Checkpoint::Open(options.model_dir));
  const ModelConfig& config = checkpoint->config();
  ABSL_ASSIGN_OR_RETURN(const std::vector<HalfOpenRange> layers,
                        Ranges(options.layers, config.num_layers));
  ABSL_ASSIGN_OR_RETURN(const std::vector<HalfOpenRange> experts,
                        Ranges(options.experts, config.num_experts));
  std::vector<Checkpoint::StoredPart> parts;
  std::map<std::string, std::string> hashes;
  for (const HalfOpenRange& layer_range : layers) {
    for (size_t layer = layer_range.begin; layer < layer_range.end; ++layer) {
      if (!config.is_moe_layer[layer]) continue;
      for (const HalfOpenRange& range : experts) {
        for (size_t e = range.begin; e < range.end; ++e) {
          ABSL_ASSIGN_OR_RETURN(hashes[Checkpoint::ContentHashKey(layer, e)],
                                checkpoint->ExpertContentHash(layer, e));
          for (const ExpertTensor which : kExpertTensors) {
            ABSL_ASSIGN_OR_RETURN(
                const std::vector<Checkpoint::StoredPart> own,
                checkpoint->StoredParts(SpecOf(config, layer, e, which).name));
            parts.insert(parts.end(), own.begin(), own.end());
          }
        }
      }
    }
  }
  if (hashes.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.model_dir, ": the given layers have no experts"));
  }
  std::vector<TensorInfo> tensors;
  for (const Checkpoint::StoredPart& part : parts) {
    tensors.push_back(*part.tensor);
  }
  ABSL_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(options.file, tensors, hashes));
  for (const Checkpoint::StoredPart& part : parts) {
    ABSL_ASSIGN_OR_RETURN(const std::string bytes,
                          part.file->Read(*part.tensor));
    ABSL_RETURN_IF_ERROR(writer.Append(bytes.data(), bytes.size()));
  }
  ABSL_RETURN_IF_ERROR(writer.Finish());
  return absl::StrCat(options.file, ": ", hashes.size(), " experts, ",
                      tensors.size(), " tensors\n");
}

}  // namespace troupe

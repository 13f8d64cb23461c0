#include "tools/cli/quantize_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/quantizer.h"
#include "model/strict_json.h"

namespace troupe {
namespace {

std::string Text(const FormatChoice& choice) {
  return choice.has_value() ? Name(*choice) : "keep";
}

bool Contains(const std::vector<HalfOpenRange>& ranges, size_t value) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const HalfOpenRange& range) {
                       return range.begin <= value && value < range.end;
                     });
}

absl::StatusOr<std::vector<HalfOpenRange>> RangesOrAll(const std::string& text,
                                                       size_t limit) {
  if (text == "*") return std::vector<HalfOpenRange>{{0, limit}};
  return ParseRanges(text, limit);
}

// The option that decides about a class, for messages.
const char* OptionOf(TensorClass tensor_class) {
  switch (tensor_class) {
    case TensorClass::kExpert:
      return "--experts";
    case TensorClass::kRouter:
      return "--router";
    case TensorClass::kHead:
      return "--head";
    default:
      return "--embedding";
  }
}

FormatChoice ChoiceFor(const ModelConfig& config, const TensorSpec& spec,
                       const QuantizeRequest& request,
                       const std::vector<ExpertOverride>& overrides) {
  switch (spec.tensor_class) {
    case TensorClass::kSmall:
      return std::nullopt;
    case TensorClass::kRouter:
      return request.router;
    case TensorClass::kHead:
      return request.head.value_or(WeightFormat::kInt8);
    case TensorClass::kEmbedding:
      return request.embedding;
    case TensorClass::kExpert:
      break;
  }
  const bool is_down =
      spec.name ==
      SpecOf(config, spec.layer, spec.expert, ExpertTensor::kDownProj).name;
  FormatChoice choice = request.experts;
  for (const ExpertOverride& override : overrides) {
    if ((is_down ? override.down : override.gate_up) &&
        override.Covers(spec.layer, spec.expert)) {
      choice = override.format;
    }
  }
  return choice;
}

PlannedTensor PlanTensor(const Checkpoint& checkpoint, const TensorSpec& spec,
                         FormatChoice choice, size_t group_size) {
  const Checkpoint::Storage storage = checkpoint.StorageOf(spec);
  PlannedTensor tensor;
  tensor.spec = spec;
  tensor.format = choice;
  tensor.source_bytes = storage.num_bytes;
  const auto add = [&](const std::string& name, SafetensorsType type,
                       std::vector<size_t> shape) {
    uint64_t num_bytes = SizeOf(type);
    for (const size_t dimension : shape) num_bytes *= dimension;
    TensorInfo info;
    info.name = name;
    info.type = type;
    info.shape = std::move(shape);
    tensor.parts.push_back(std::move(info));
    tensor.num_bytes += num_bytes;
  };
  if (!choice.has_value()) {
    add(spec.name, SafetensorsTypeOf(static_cast<DataType>(storage.format)),
        spec.shape);
    return tensor;
  }
  tensor.group_size = group_size;
  const size_t n = spec.shape[0];
  const size_t k = spec.shape[1];
  add(spec.name, IsInt4(*choice) ? SafetensorsType::kU8 : SafetensorsType::kI8,
      {n, NumberBytes(*choice, k)});
  add(spec.name + kScaleSuffix, SafetensorsType::kF16, {n, k / group_size});
  if (choice == WeightFormat::kInt4Zero) {
    add(spec.name + kZeroPointSuffix, SafetensorsType::kU8,
        {n, k / group_size});
  }
  return tensor;
}

}  // namespace

absl::StatusOr<FormatChoice> ParseFormatChoice(const std::string& text) {
  if (text == "keep") return FormatChoice();
  for (const WeightFormat format :
       {WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kInt4Zero}) {
    if (text == Name(format)) return FormatChoice(format);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "\"", Printable(text), "\" is none of int8, int4, int4-zero, keep"));
}

nlohmann::ordered_json ToJson(const QuantizeRequest& request) {
  nlohmann::ordered_json object = {{"quant_method", kQuantMethod},
                                   {"version", kQuantVersion},
                                   {"group_size", request.group_size},
                                   {"experts", Text(request.experts)},
                                   {"router", Text(request.router)},
                                   {"embedding", Text(request.embedding)}};
  if (request.head.has_value()) object["head"] = Text(*request.head);
  object["expert_overrides"] = request.expert_overrides;
  return object;
}

bool ExpertOverride::Covers(size_t layer, size_t expert) const {
  return Contains(layers, layer) && Contains(experts, expert);
}

absl::StatusOr<ExpertOverride> ParseExpertOverride(const std::string& text,
                                                   const ModelConfig& config) {
  const auto invalid = [&](const auto& why) {
    return absl::InvalidArgumentError(
        absl::StrCat("--expert \"", Printable(text), "\": ", why));
  };
  const std::vector<std::string> sides = absl::StrSplit(text, '=');
  if (sides.size() != 2) {
    return invalid("must be [LAYERS:]EXPERTS[/gate-up|/down]=FORMAT");
  }
  ExpertOverride result;
  absl::StatusOr<FormatChoice> format = ParseFormatChoice(sides[1]);
  if (!format.ok()) return invalid(format.status().message());
  result.format = *format;

  std::string who = sides[0];
  if (const size_t slash = who.find('/'); slash != std::string::npos) {
    const std::string part = who.substr(slash + 1);
    if (part != "gate-up" && part != "down") {
      return invalid(absl::StrCat("\"", Printable(part),
                                  "\" is neither gate-up nor down"));
    }
    result.gate_up = part == "gate-up";
    result.down = part == "down";
    who.resize(slash);
  }
  std::string layers = "*";
  if (const size_t colon = who.find(':'); colon != std::string::npos) {
    layers = who.substr(0, colon);
    who = who.substr(colon + 1);
  }
  absl::StatusOr<std::vector<HalfOpenRange>> ranges =
      RangesOrAll(layers, config.num_layers);
  if (!ranges.ok()) {
    return invalid(absl::StrCat("layers: ", ranges.status().message()));
  }
  result.layers = *std::move(ranges);
  ranges = RangesOrAll(who, config.num_experts);
  if (!ranges.ok()) {
    return invalid(absl::StrCat("experts: ", ranges.status().message()));
  }
  result.experts = *std::move(ranges);
  return result;
}

std::vector<TensorInfo> PlannedShard::Infos() const {
  std::vector<TensorInfo> infos;
  for (const PlannedTensor& tensor : tensors) {
    infos.insert(infos.end(), tensor.parts.begin(), tensor.parts.end());
  }
  return infos;
}

absl::StatusOr<std::vector<PlannedShard>> PlanQuantization(
    const Checkpoint& checkpoint, const QuantizeRequest& request,
    uint64_t max_shard_bytes) {
  const ModelConfig& config = checkpoint.config();
  if (config.quantized) {
    return absl::FailedPreconditionError(
        absl::StrCat(checkpoint.model_dir(),
                     ": is quantised already; start from the floats"));
  }
  if (config.tie_word_embeddings && request.head.has_value() &&
      *request.head != request.embedding) {
    return absl::InvalidArgumentError(
        absl::StrCat("--head ", Text(*request.head),
                     ": the head of this model is its "
                     "embedding, which becomes ",
                     Text(request.embedding)));
  }
  std::vector<ExpertOverride> overrides;
  for (const std::string& text : request.expert_overrides) {
    ABSL_ASSIGN_OR_RETURN(overrides.emplace_back(),
                          ParseExpertOverride(text, config));
  }
  std::vector<PlannedShard> shards(1);
  ABSL_RETURN_IF_ERROR(
      ForEachTensor(config, [&](const TensorSpec& spec) -> absl::Status {
        const FormatChoice choice = ChoiceFor(config, spec, request, overrides);
        if (choice.has_value() && spec.shape[1] % request.group_size != 0) {
          return absl::InvalidArgumentError(absl::StrCat(
              "tensor ", spec.name, ": its ", spec.shape[1],
              " inputs are no multiple of the group size ", request.group_size,
              "; choose another --group-size or ", OptionOf(spec.tensor_class),
              " keep"));
        }
        PlannedTensor tensor =
            PlanTensor(checkpoint, spec, choice, request.group_size);
        if (shards.back().num_bytes > 0 &&
            shards.back().num_bytes + tensor.num_bytes > max_shard_bytes) {
          shards.emplace_back();
        }
        shards.back().num_bytes += tensor.num_bytes;
        shards.back().tensors.push_back(std::move(tensor));
        return absl::OkStatus();
      }));
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].name = shards.size() == 1
                         ? "model.safetensors"
                         : absl::StrFormat("model-%05d-of-%05d.safetensors",
                                           i + 1, shards.size());
  }
  return shards;
}

}  // namespace troupe

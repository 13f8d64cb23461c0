#include "tools/cli/inspect.h"

#include <algorithm>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/checkpoint.h"
#include "model/tensor_catalog.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

using nlohmann::ordered_json;

constexpr size_t kScaleGroup = 32;  // values that share a scale
constexpr size_t kScaleBytes = 2;

const char* ShortName(WeightFormat format) {
  if (format == WeightFormat::kF32) return "f32";
  if (format == WeightFormat::kBF16) return "bf16";
  if (format == WeightFormat::kF16) return "f16";
  return Name(format);
}

uint64_t BytesIn(const TensorSpec& spec, WeightFormat format) {
  const uint64_t count = NumElements(spec);
  const bool vector = spec.shape.size() < 2;
  switch (format) {
    case WeightFormat::kF32:
      return 4 * count;
    case WeightFormat::kBF16:
      return 2 * count;
    case WeightFormat::kInt8:
    case WeightFormat::kInt4: {
      if (vector) return 4 * count;
      const uint64_t rows = spec.shape[0];
      const uint64_t cols = spec.shape[1];
      const uint64_t groups = (cols + kScaleGroup - 1) / kScaleGroup;
      const uint64_t row_bytes =
          format == WeightFormat::kInt8 ? cols : (cols + 1) / 2;
      return rows * (row_bytes + groups * kScaleBytes);
    }
    default:
      break;
  }
  CHECK(false && "not one of kSizedFormats");
  return 0;
}

void Add(const TensorSpec& spec, PartSize& part) {
  part.num_parameters += NumElements(spec);
  for (size_t i = 0; i < kSizedFormats.size(); ++i) {
    part.num_bytes[i] += BytesIn(spec, kSizedFormats[i]);
  }
}

void Add(const PartSize& more, uint64_t times, PartSize& part) {
  part.num_parameters += times * more.num_parameters;
  for (size_t i = 0; i < kSizedFormats.size(); ++i) {
    part.num_bytes[i] += times * more.num_bytes[i];
  }
}

// Multiplications and additions of a token with all matrices of a part. The
// embedding is looked up; as head it is multiplied.
uint64_t MatrixFlops(const TensorSpec& spec, const ModelConfig& config) {
  if (spec.shape.size() < 2) return 0;
  const bool is_embedding =
      spec.name == SpecOf(config, ModelTensor::kEmbedding).name;
  if (is_embedding && !config.tie_word_embeddings) return 0;
  return 2 * NumElements(spec);
}

struct Sum {
  PartSize router;
  PartSize expert;  // number 0, in all MoE layers
  uint64_t router_flops = 0;
  uint64_t expert_flops = 0;
};

// One expert is as large as another, so that only the first is visited.
Sum SumOf(const ModelConfig& config) {
  ModelConfig one = config;
  if (one.num_experts > 0) one.num_experts = 1;
  Sum sum;
  const absl::Status status =
      ForEachTensor(one, [&](const TensorSpec& visited) {
        TensorSpec spec = visited;
        if (spec.owner == TensorOwner::kExpert) {
          Add(spec, sum.expert);
          sum.expert_flops += MatrixFlops(spec, config);
          return absl::OkStatus();
        }
        // The router matrix has a row per expert.
        if (config.is_moe_layer[spec.layer] &&
            spec.name == SpecOf(config, spec.layer, LayerTensor::kGate).name) {
          spec.shape[0] = config.num_experts;
        }
        Add(spec, sum.router);
        sum.router_flops += MatrixFlops(spec, config);
        return absl::OkStatus();
      });
  CHECK(status.ok());
  return sum;
}

// The dense model that computes as much per token.
ModelConfig DenseTwin(const ModelConfig& config) {
  ModelConfig dense = config;
  dense.is_moe_layer.assign(config.num_layers, false);
  dense.num_experts = 0;
  dense.top_k = 0;
  dense.shared_expert_intermediate_size = 0;
  return dense;
}

std::string Count(uint64_t value) {
  const double number = static_cast<double>(value);
  if (number >= 1e12) return absl::StrFormat("%.2f T", number / 1e12);
  if (number >= 1e9) return absl::StrFormat("%.2f B", number / 1e9);
  if (number >= 1e6) return absl::StrFormat("%.2f M", number / 1e6);
  if (number >= 1e3) return absl::StrFormat("%.2f K", number / 1e3);
  return absl::StrCat(value);
}

std::string Bytes(uint64_t value) {
  const double number = static_cast<double>(value);
  if (number >= 0x1p40) return absl::StrFormat("%.2f TiB", number / 0x1p40);
  if (number >= 0x1p30) return absl::StrFormat("%.2f GiB", number / 0x1p30);
  if (number >= 0x1p20) return absl::StrFormat("%.2f MiB", number / 0x1p20);
  if (number >= 0x1p10) return absl::StrFormat("%.2f KiB", number / 0x1p10);
  return absl::StrCat(value, " B");
}

std::string Flops(uint64_t value) {
  const double number = static_cast<double>(value);
  if (number >= 1e12) return absl::StrFormat("%.2f TFLOP", number / 1e12);
  if (number >= 1e9) return absl::StrFormat("%.2f GFLOP", number / 1e9);
  return absl::StrFormat("%.2f MFLOP", number / 1e6);
}

std::string MemoryRow(const std::string& name, const PartSize& part) {
  std::string row =
      absl::StrFormat("  %-18s %10s", name, Count(part.num_parameters));
  for (const uint64_t num_bytes : part.num_bytes) {
    absl::StrAppendFormat(&row, " %11s", Bytes(num_bytes));
  }
  return absl::StrCat(row, "\n");
}

// How the files store the tensors of one class.
struct StoredClass {
  uint64_t num_weights = 0;
  uint64_t num_bytes = 0;
  std::map<std::string, uint64_t> weights_of;  // by format
};

std::array<StoredClass, std::size(kTensorClasses)> StoredClasses(
    const Checkpoint& checkpoint) {
  std::array<StoredClass, std::size(kTensorClasses)> classes;
  const absl::Status status =
      ForEachTensor(checkpoint.config(), [&](const TensorSpec& spec) {
        const Checkpoint::Storage storage = checkpoint.StorageOf(spec);
        StoredClass& part = classes[static_cast<size_t>(spec.tensor_class)];
        std::string format = ShortName(storage.format);
        if (storage.group_size > 0) {
          absl::StrAppend(&format, "/", storage.group_size);
        }
        part.num_weights += NumElements(spec);
        part.num_bytes += storage.num_bytes;
        part.weights_of[format] += NumElements(spec);
        return absl::OkStatus();
      });
  CHECK(status.ok());
  return classes;
}

std::string StoredText(const Checkpoint& checkpoint) {
  std::string text =
      absl::StrFormat("  %-10s %11s %12s  %s\n", "On disk", "bytes",
                      "bits/weight", "formats, by weights");
  const auto classes = StoredClasses(checkpoint);
  for (const TensorClass tensor_class : kTensorClasses) {
    const StoredClass& part = classes[static_cast<size_t>(tensor_class)];
    if (part.num_weights == 0) continue;
    std::vector<std::string> formats;
    for (const auto& [format, count] : part.weights_of) {
      formats.push_back(
          absl::StrFormat("%s %.0f %%", format,
                          100.0 * static_cast<double>(count) /
                              static_cast<double>(part.num_weights)));
    }
    absl::StrAppendFormat(&text, "  %-10s %11s %12.2f  %s\n",
                          Name(tensor_class), Bytes(part.num_bytes),
                          8.0 * static_cast<double>(part.num_bytes) /
                              static_cast<double>(part.num_weights),
                          absl::StrJoin(formats, ", "));
  }
  return text;
}

ordered_json StoredJson(const Checkpoint& checkpoint) {
  ordered_json object = ordered_json::object();
  const auto classes = StoredClasses(checkpoint);
  for (const TensorClass tensor_class : kTensorClasses) {
    const StoredClass& part = classes[static_cast<size_t>(tensor_class)];
    if (part.num_weights == 0) continue;
    object[Name(tensor_class)] = {{"parameters", part.num_weights},
                                  {"bytes", part.num_bytes},
                                  {"parameters_by_format", part.weights_of}};
  }
  return object;
}

std::string GroupName(const ExpertGroup& group) {
  return group.first == group.last
             ? absl::StrCat("expert ", group.first)
             : absl::StrCat("experts ", group.first, "-", group.last);
}

std::string Text(const Checkpoint& checkpoint, const ModelSizes& sizes) {
  const ModelConfig& c = checkpoint.config();
  std::string text = absl::StrFormat(
      "%s\n"
      "  family         %s, weights in %s%s, %s on disk\n"
      "  layers         %d, of them %d with experts\n"
      "  hidden         %d, vocabulary %d%s\n"
      "  attention      %d heads, %d for keys and values, %d values each\n"
      "  context        %d tokens\n",
      checkpoint.model_dir(), c.model_type, Name(c.dtype),
      c.quantized ? " and integers" : "", Bytes(checkpoint.total_bytes()),
      c.num_layers, sizes.num_moe_layers, c.hidden_size, c.vocab_size,
      c.tie_word_embeddings ? ", head tied to the embedding" : "", c.num_heads,
      c.num_kv_heads, c.head_dim, c.max_position_embeddings);
  if (c.num_experts > 0) {
    absl::StrAppendFormat(&text,
                          "  experts        %d per layer, %d per token, width "
                          "%d\n",
                          c.num_experts, c.top_k, c.expert_intermediate_size);
    if (c.shared_expert_intermediate_size > 0) {
      absl::StrAppendFormat(&text, "  shared expert  width %d\n",
                            c.shared_expert_intermediate_size);
    }
  }
  absl::StrAppendFormat(&text, "  fingerprint    %s\n\n",
                        checkpoint.fingerprint());

  absl::StrAppendFormat(
      &text, "Parameters: %s, active per token: %s (%.1f %%)\n",
      Count(sizes.total.num_parameters), Count(sizes.active_parameters),
      100.0 * static_cast<double>(sizes.active_parameters) /
          static_cast<double>(sizes.total.num_parameters));
  if (c.num_experts > 0) {
    absl::StrAppendFormat(
        &text, "Sparsity k/N: %d/%d = %.1f %% of the experts per token\n",
        c.top_k, c.num_experts,
        100.0 * static_cast<double>(c.top_k) /
            static_cast<double>(c.num_experts));
  }
  absl::StrAppendFormat(&text,
                        "Arithmetic per token: %s in matrices,\n"
                        "  %s in attention over %d tokens\n"
                        "KV cache per token: %s in f32, %s in bf16\n\n",
                        Flops(sizes.matrix_flops_per_token),
                        Flops(sizes.attention_flops_per_token),
                        sizes.context_tokens,
                        Bytes(sizes.kv_bytes_per_token_f32),
                        Bytes(sizes.kv_bytes_per_token_bf16));

  absl::StrAppend(&text, StoredText(checkpoint), "\n");
  absl::StrAppendFormat(&text, "  %-18s %10s", "Weights", "parameters");
  for (const WeightFormat format : kSizedFormats) {
    absl::StrAppendFormat(&text, " %11s", ShortName(format));
  }
  absl::StrAppend(&text, "\n", MemoryRow("router service", sizes.router));
  for (const ExpertGroup& group : sizes.groups) {
    absl::StrAppend(&text, MemoryRow(GroupName(group), group.size));
  }
  absl::StrAppend(&text, MemoryRow("all", sizes.total));
  if (c.num_experts > 0) {
    absl::StrAppendFormat(
        &text,
        "\nBeside a dense model of the same active size\n"
        "  %-22s %14s %14s\n  %-22s %14s %14s\n  %-22s %14s %14s\n"
        "  %-22s %14s %14s\n  %-22s %14s %14s\n",
        "", "this model", "dense", "parameters",
        Count(sizes.total.num_parameters), Count(sizes.dense.num_parameters),
        "active per token", Count(sizes.active_parameters),
        Count(sizes.dense.num_parameters), "weights in bf16",
        Bytes(sizes.total.num_bytes[1]), Bytes(sizes.dense.num_bytes[1]),
        "matrices per token", Flops(sizes.matrix_flops_per_token),
        Flops(sizes.dense_matrix_flops_per_token));
  }
  absl::StrAppend(&text,
                  "\nint8 and int4: a 16-bit scale per 32 values, vectors in "
                  "f32.\n");
  for (const std::string& warning : checkpoint.warnings()) {
    absl::StrAppend(&text, "warning: ", warning, "\n");
  }
  return text;
}

ordered_json PartJson(const PartSize& part) {
  ordered_json bytes;
  for (size_t i = 0; i < kSizedFormats.size(); ++i) {
    bytes[ShortName(kSizedFormats[i])] = part.num_bytes[i];
  }
  return {{"parameters", part.num_parameters}, {"bytes", bytes}};
}

std::string Json(const Checkpoint& checkpoint, const ModelSizes& sizes) {
  const ModelConfig& c = checkpoint.config();
  ordered_json groups = ordered_json::array();
  for (const ExpertGroup& group : sizes.groups) {
    ordered_json entry = PartJson(group.size);
    entry["first_expert"] = group.first;
    entry["last_expert"] = group.last;
    groups.push_back(entry);
  }
  const ordered_json object = {
      {"model_dir", checkpoint.model_dir()},
      {"model_type", c.model_type},
      {"dtype", Name(c.dtype)},
      {"file_bytes", checkpoint.total_bytes()},
      {"quantized", c.quantized},
      {"stored", StoredJson(checkpoint)},
      {"fingerprint", checkpoint.fingerprint()},
      {"num_layers", c.num_layers},
      {"num_moe_layers", sizes.num_moe_layers},
      {"hidden_size", c.hidden_size},
      {"num_heads", c.num_heads},
      {"num_kv_heads", c.num_kv_heads},
      {"head_dim", c.head_dim},
      {"vocab_size", c.vocab_size},
      {"max_position_embeddings", c.max_position_embeddings},
      {"num_experts", c.num_experts},
      {"top_k", c.top_k},
      {"expert_intermediate_size", c.expert_intermediate_size},
      {"shared_expert_intermediate_size", c.shared_expert_intermediate_size},
      {"active_parameters", sizes.active_parameters},
      {"matrix_flops_per_token", sizes.matrix_flops_per_token},
      {"attention_flops_per_token", sizes.attention_flops_per_token},
      {"context_tokens", sizes.context_tokens},
      {"kv_bytes_per_token",
       {{"f32", sizes.kv_bytes_per_token_f32},
        {"bf16", sizes.kv_bytes_per_token_bf16}}},
      {"total", PartJson(sizes.total)},
      {"router", PartJson(sizes.router)},
      {"expert", PartJson(sizes.expert)},
      {"expert_groups", groups},
      {"dense_of_same_active_size",
       {{"parameters", sizes.dense.num_parameters},
        {"bytes", PartJson(sizes.dense)["bytes"]},
        {"matrix_flops_per_token", sizes.dense_matrix_flops_per_token}}},
      {"warnings", checkpoint.warnings()}};
  return object.dump(2, ' ', false, ordered_json::error_handler_t::replace) +
         "\n";
}

}  // namespace

absl::StatusOr<ModelSizes> ComputeSizes(const ModelConfig& config,
                                        const InspectOptions& options) {
  const size_t num_groups = options.num_expert_processes;
  if (num_groups == 0 ||
      (config.num_experts > 0 && num_groups > config.num_experts)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_expert_processes: must be from 1 to ", config.num_experts,
        " (the number of experts), is ", num_groups));
  }
  const Sum sum = SumOf(config);
  ModelSizes sizes;
  sizes.router = sum.router;
  sizes.expert = sum.expert;
  sizes.total = sum.router;
  Add(sum.expert, config.num_experts, sizes.total);
  if (config.num_experts > 0) {
    for (size_t i = 0; i < num_groups; ++i) {
      ExpertGroup group;
      group.first = config.num_experts * i / num_groups;
      group.last = config.num_experts * (i + 1) / num_groups - 1;
      Add(sum.expert, group.last - group.first + 1, group.size);
      sizes.groups.push_back(group);
    }
  }
  sizes.num_moe_layers = static_cast<size_t>(
      std::count(config.is_moe_layer.begin(), config.is_moe_layer.end(), true));
  sizes.active_parameters =
      sum.router.num_parameters + config.top_k * sum.expert.num_parameters;
  sizes.matrix_flops_per_token =
      sum.router_flops + config.top_k * sum.expert_flops;
  sizes.context_tokens =
      std::min(options.context_tokens, config.max_position_embeddings);
  for (const size_t window : config.sliding_window) {
    const size_t keys = window == 0 ? sizes.context_tokens
                                    : std::min(window, sizes.context_tokens);
    // A multiply-add per value for the score, and one for the weighted sum.
    sizes.attention_flops_per_token +=
        4 * uint64_t{config.num_heads} * config.head_dim * keys;
  }
  const uint64_t kv_values =
      2 * uint64_t{config.num_layers} * config.num_kv_heads * config.head_dim;
  sizes.kv_bytes_per_token_f32 = 4 * kv_values;
  sizes.kv_bytes_per_token_bf16 = 2 * kv_values;

  // Layers that are dense here keep their width.
  ModelConfig dense = DenseTwin(config);
  Sum dense_sum;
  for (const bool moe : {false, true}) {
    const size_t count =
        moe ? sizes.num_moe_layers : config.num_layers - sizes.num_moe_layers;
    ModelConfig layers = dense;
    layers.num_layers = count;
    layers.is_moe_layer.assign(count, false);
    layers.sliding_window.assign(count, 0);
    layers.dense_intermediate_size =
        moe ? config.top_k * config.expert_intermediate_size +
                  config.shared_expert_intermediate_size
            : config.dense_intermediate_size;
    const absl::Status status =
        ForEachTensor(layers, [&](const TensorSpec& spec) {
          // Embedding, final norm and head once.
          if (moe && spec.name.rfind("model.layers.", 0) != 0) {
            return absl::OkStatus();
          }
          Add(spec, dense_sum.router);
          dense_sum.router_flops += MatrixFlops(spec, config);
          return absl::OkStatus();
        });
    CHECK(status.ok());
  }
  sizes.dense = dense_sum.router;
  sizes.dense_matrix_flops_per_token = dense_sum.router_flops;
  return sizes;
}

absl::StatusOr<std::string> Inspect(const std::string& model_dir,
                                    const InspectOptions& options) {
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                        Checkpoint::Open(model_dir));
  ABSL_ASSIGN_OR_RETURN(const ModelSizes sizes,
                        ComputeSizes(checkpoint->config(), options));
  return options.json ? Json(*checkpoint, sizes) : Text(*checkpoint, sizes);
}

}  // namespace troupe

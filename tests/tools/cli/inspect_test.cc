#include "tools/cli/inspect.h"

#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"
#include "tests/fakes/checkpoint_builder.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

ModelConfig Published(const std::string& json) {
  absl::StatusOr<ModelConfig> config = ParseModelConfig(json, "");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

TEST(InspectTest, ParametersOfPublishedModels) {
  // The totals are those of the models' pages (46.7 B, 30.5 B, 14.3 B, 6.92 B);
  // the active ones are less by the experts that a token does not visit:
  // 6 of 8 * 32 layers * 3 * 4096 * 14336, and so on.
  struct Row {
    const char* json;
    uint64_t total;
    uint64_t active;
  };
  const Row rows[] = {
      {R"({"model_type": "mixtral", "hidden_size": 4096,
           "intermediate_size": 14336, "max_position_embeddings": 32768,
           "num_attention_heads": 32, "num_key_value_heads": 8,
           "num_experts_per_tok": 2, "num_hidden_layers": 32,
           "num_local_experts": 8, "vocab_size": 32000})",
       46702792704, 12879925248},
      {R"({"model_type": "qwen3_moe", "head_dim": 128, "hidden_size": 2048,
           "max_position_embeddings": 40960, "moe_intermediate_size": 768,
           "num_attention_heads": 32, "num_experts": 128,
           "num_experts_per_tok": 8, "num_hidden_layers": 48,
           "num_key_value_heads": 4, "vocab_size": 151936})",
       30532122624, 3353032704},
      {R"({"model_type": "qwen2_moe", "hidden_size": 2048,
           "max_position_embeddings": 8192, "moe_intermediate_size": 1408,
           "num_attention_heads": 16, "num_experts": 60,
           "num_experts_per_tok": 4, "num_hidden_layers": 24,
           "num_key_value_heads": 16, "shared_expert_intermediate_size": 5632,
           "vocab_size": 151936})",
       14315784192, 2689173504},
      {R"({"model_type": "olmoe", "hidden_size": 2048,
           "intermediate_size": 1024, "max_position_embeddings": 4096,
           "num_attention_heads": 16, "num_experts": 64,
           "num_experts_per_tok": 8, "num_hidden_layers": 16,
           "vocab_size": 50304})",
       6919161856, 1282017280},
  };
  for (const Row& row : rows) {
    const ModelConfig config = Published(row.json);
    const absl::StatusOr<ModelSizes> sizes = ComputeSizes(config, {});
    ASSERT_TRUE(sizes.ok()) << sizes.status();
    EXPECT_EQ(sizes->total.num_parameters, row.total) << config.model_type;
    EXPECT_EQ(sizes->active_parameters, row.active) << config.model_type;
  }
}

TEST(InspectTest, AgreesWithTheFiles) {
  for (const Architecture architecture : kAllArchitectures) {
    for (const DataType dtype : {DataType::kF32, DataType::kBF16}) {
      const TempDir dir;
      CheckpointBuilder builder(TinyConfig(architecture, dtype));
      builder.Write(dir.path());
      const auto checkpoint = Checkpoint::Open(dir.path());
      ASSERT_TRUE(checkpoint.ok());
      const ModelSizes sizes = *ComputeSizes((*checkpoint)->config(), {});
      const size_t format = dtype == DataType::kF32 ? 0 : 1;
      EXPECT_EQ(sizes.total.num_bytes[format], (*checkpoint)->total_bytes());
      EXPECT_EQ(sizes.router.num_bytes[format], (*checkpoint)->router_bytes());
      EXPECT_EQ(
          sizes.expert.num_bytes[format] * (*checkpoint)->config().num_experts,
          (*checkpoint)->total_bytes() - (*checkpoint)->router_bytes());
    }
  }
}

TEST(InspectTest, SaysHowEachClassIsStored) {
  const TempDir dir;
  ModelConfig config = TinyConfig(Architecture::kMixtral, DataType::kBF16);
  config.expert_intermediate_size = 64;
  CheckpointBuilder builder(config);
  for (const char* projection : {"w1", "w3"}) {  // [64, 32]
    builder.Quantize("model.layers.1.block_sparse_moe.experts.2." +
                         std::string(projection) + ".weight",
                     WeightFormat::kInt4, 32);
  }
  builder.Quantize("lm_head.weight", WeightFormat::kInt8, 32);
  builder.Write(dir.path());
  const auto text = Inspect(dir.path(), {});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, HasSubstr("weights in bfloat16 and integers"));
  EXPECT_THAT(*text, HasSubstr("bf16 96 %, int4/32 4 %"));
  EXPECT_THAT(*text, HasSubstr("8.50  int8/32 100 %"));
  const auto json = nlohmann::json::parse(*Inspect(dir.path(), {.json = true}));
  EXPECT_EQ(json["quantized"], true);
  EXPECT_EQ(json["stored"]["head"]["bytes"], 264 * 34);
  EXPECT_EQ(json["stored"]["experts"]["parameters_by_format"]["int4/32"],
            2 * 64 * 32);
  uint64_t bytes = 0;
  for (const auto& part : json["stored"])
    bytes += part["bytes"].get<uint64_t>();
  EXPECT_EQ(json["file_bytes"], bytes);
}

TEST(InspectTest, GroupsHoldAllExpertsOnce) {
  const ModelConfig config = TinyConfig(Architecture::kQwen2Moe);
  for (size_t num_groups = 1; num_groups <= 5; ++num_groups) {
    const ModelSizes sizes =
        *ComputeSizes(config, {.num_expert_processes = num_groups});
    ASSERT_EQ(sizes.groups.size(), num_groups);
    size_t next = 0;
    uint64_t num_parameters = sizes.router.num_parameters;
    for (const ExpertGroup& group : sizes.groups) {
      EXPECT_EQ(group.first, next);
      EXPECT_GE(group.last, group.first);
      EXPECT_LE(group.last - group.first, 5 / num_groups);
      EXPECT_EQ(group.size.num_parameters,
                (group.last - group.first + 1) * sizes.expert.num_parameters);
      next = group.last + 1;
      num_parameters += group.size.num_parameters;
    }
    EXPECT_EQ(next, 5u);
    EXPECT_EQ(num_parameters, sizes.total.num_parameters);
  }
  for (const size_t bad : {0, 6}) {
    const absl::Status status =
        ComputeSizes(config, {.num_expert_processes = bad}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("num_expert_processes"));
  }
}

TEST(InspectTest, BytesOfQuantisedFormats) {
  // One expert: 2 MoE layers of [20, 32] twice and [32, 20].
  const ModelSizes sizes =
      *ComputeSizes(TinyConfig(Architecture::kQwen2Moe), {});
  EXPECT_EQ(sizes.expert.num_parameters, 2u * 3 * 640);
  EXPECT_EQ(sizes.expert.num_bytes[0], 2u * 3 * 640 * 4);
  EXPECT_EQ(sizes.expert.num_bytes[1], 2u * 3 * 640 * 2);
  // Rows of 32 and of 20 have one scale each.
  EXPECT_EQ(sizes.expert.num_bytes[2],
            2u * (2 * 20 * (32 + 2) + 32 * (20 + 2)));
  EXPECT_EQ(sizes.expert.num_bytes[3],
            2u * (2 * 20 * (16 + 2) + 32 * (10 + 2)));
}

TEST(InspectTest, ArithmeticAndCache) {
  // Qwen2-MoE: hidden 32, 3 layers, the middle one dense; 6 heads, 2 for keys
  // and values, of 8; window 12 in layer 0.
  const ModelConfig config = TinyConfig(Architecture::kQwen2Moe);
  const ModelSizes sizes = *ComputeSizes(config, {.context_tokens = 100});
  const uint64_t attention = 32 * (48 + 16 + 16 + 48);
  const uint64_t moe = 5 * 32 + 2 * 3 * 20 * 32 + 3 * 28 * 32 + 32;
  const uint64_t dense_layer = 3 * 44 * 32;
  const uint64_t head = 264 * 32;
  EXPECT_EQ(sizes.num_moe_layers, 2u);
  EXPECT_EQ(sizes.matrix_flops_per_token,
            2 * (3 * attention + 2 * moe + dense_layer + head));
  EXPECT_EQ(sizes.attention_flops_per_token, 4u * 6 * 8 * (12 + 100 + 100));
  EXPECT_EQ(sizes.kv_bytes_per_token_f32, 4u * 2 * 3 * 2 * 8);
  EXPECT_EQ(sizes.kv_bytes_per_token_bf16, 2u * 2 * 3 * 2 * 8);
  // The dense twin: MLPs of 2 * 20 + 28, no router matrix, no shared gate.
  EXPECT_EQ(
      sizes.dense_matrix_flops_per_token,
      2 * (3 * attention + 2 * 3 * (2 * 20 + 28) * 32 + dense_layer + head));
  EXPECT_EQ(sizes.dense.num_parameters,
            sizes.active_parameters - 2 * (5 * 32 + 32));
  // The context is cut to what the model can hold.
  EXPECT_EQ(ComputeSizes(config, {.context_tokens = 1000})->context_tokens,
            128u);
}

TEST(InspectTest, TiedHeadIsMultipliedToo) {
  ModelConfig config = TinyConfig(Architecture::kMixtral);
  const ModelSizes untied = *ComputeSizes(config, {});
  config.tie_word_embeddings = true;
  const ModelSizes tied = *ComputeSizes(config, {});
  EXPECT_EQ(tied.matrix_flops_per_token, untied.matrix_flops_per_token);
  EXPECT_EQ(tied.total.num_parameters + 264 * 32, untied.total.num_parameters);
}

TEST(InspectTest, DenseModel) {
  const ModelConfig config = TinyConfig(Architecture::kLlama);
  const ModelSizes sizes = *ComputeSizes(config, {.num_expert_processes = 9});
  EXPECT_TRUE(sizes.groups.empty());
  EXPECT_EQ(sizes.active_parameters, sizes.total.num_parameters);
  EXPECT_EQ(sizes.dense.num_parameters, sizes.total.num_parameters);
  EXPECT_EQ(sizes.expert.num_parameters, 0u);
}

TEST(InspectTest, TextFitsATerminal) {
  for (const Architecture architecture : kAllArchitectures) {
    const TempDir dir;
    CheckpointBuilder(TinyConfig(architecture)).Write(dir.path());
    const absl::StatusOr<std::string> text =
        Inspect(dir.path(), {.num_expert_processes = 2});
    ASSERT_TRUE(text.ok()) << text.status();
    std::istringstream lines(*text);
    for (std::string line; std::getline(lines, line);) {
      EXPECT_LE(line.size(), 80u) << line;
    }
    EXPECT_THAT(*text, HasSubstr("router service"));
    EXPECT_THAT(*text, HasSubstr(TinyConfig(architecture).model_type));
    if (architecture == Architecture::kLlama) continue;
    EXPECT_THAT(*text, HasSubstr("Sparsity k/N: 2/5 = 40.0 %"));
    EXPECT_THAT(*text, HasSubstr("experts 0-1"));
    EXPECT_THAT(*text, HasSubstr("experts 2-4"));
    EXPECT_THAT(*text, HasSubstr("dense model of the same active size"));
  }
}

TEST(InspectTest, JsonSaysTheSame) {
  const TempDir dir;
  const ModelConfig config = TinyConfig(Architecture::kQwen3Moe);
  CheckpointBuilder builder(config);
  builder.AddExtra("extra", 1);
  builder.Write(dir.path());
  InspectOptions options;
  options.num_expert_processes = 3;
  options.json = true;
  const absl::StatusOr<std::string> text = Inspect(dir.path(), options);
  ASSERT_TRUE(text.ok()) << text.status();
  const nlohmann::json object = nlohmann::json::parse(*text);
  const ModelSizes sizes = *ComputeSizes(config, options);
  EXPECT_EQ(object["total"]["parameters"], sizes.total.num_parameters);
  EXPECT_EQ(object["active_parameters"], sizes.active_parameters);
  EXPECT_EQ(object["expert_groups"].size(), 3u);
  EXPECT_EQ(object["expert_groups"][2]["last_expert"], 4);
  EXPECT_EQ(object["expert_groups"][2]["bytes"]["int4"],
            sizes.groups[2].size.num_bytes[3]);
  EXPECT_EQ(object["warnings"].size(), 1u);
}

TEST(InspectTest, PassesOnWhatIsWrong) {
  const TempDir dir;
  EXPECT_EQ(Inspect(dir.path(), {}).status().code(),
            absl::StatusCode::kNotFound);
  CheckpointBuilder builder(TinyConfig(Architecture::kMixtral));
  builder.Remove("lm_head.weight");
  builder.Write(dir.path());
  EXPECT_THAT(std::string(Inspect(dir.path(), {}).status().message()),
              HasSubstr("lm_head.weight"));
}

}  // namespace
}  // namespace troupe

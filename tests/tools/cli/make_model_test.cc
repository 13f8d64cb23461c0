#include "tools/cli/make_model.h"

#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/tokenizer/tokenizer.h"
#include "nlohmann/json.hpp"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

MakeModelOptions Small(const std::string& dir, const std::string& family) {
  MakeModelOptions options;
  options.output_dir = dir;
  options.family = family;
  options.hidden_size = 128;
  options.num_layers = 2;
  options.num_heads = 8;
  options.num_kv_heads = 2;
  options.vocab_size = 300;
  options.num_experts = 4;
  options.expert_intermediate_size = 96;
  options.shared_expert_intermediate_size = 80;
  options.dense_intermediate_size = 224;
  return options;
}

std::unique_ptr<Checkpoint> MustOpen(const std::string& dir) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(dir);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

std::vector<float> Values(const Checkpoint& checkpoint,
                          const TensorSpec& spec) {
  const MappedTensor tensor = *checkpoint.Map(spec.name);
  std::vector<float> values(tensor.num_elements());
  CopyToFloat(tensor, values.data());
  return values;
}

double Deviation(const std::vector<float>& values) {
  double sum = 0.0, squares = 0.0;
  for (const float value : values) {
    sum += value;
    squares += double{value} * value;
  }
  const double n = static_cast<double>(values.size());
  EXPECT_NEAR(sum / n, 0.0, 5.0 * std::sqrt(squares) / n);
  return std::sqrt(squares / n);
}

class MakeModelFamilyTest : public ::testing::TestWithParam<const char*> {};

TEST_P(MakeModelFamilyTest, WritesACheckpointThatOpens) {
  for (const DataType dtype :
       {DataType::kF32, DataType::kBF16, DataType::kF16}) {
    for (const bool tied : {false, true}) {
      const TempDir dir;
      MakeModelOptions options = Small(dir.path(), GetParam());
      options.dtype = dtype;
      options.tie_word_embeddings = tied;
      const absl::Status status = MakeModel(options);
      ASSERT_TRUE(status.ok()) << status;
      const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
      ASSERT_NE(checkpoint, nullptr);
      EXPECT_THAT(checkpoint->warnings(), IsEmpty());
      EXPECT_EQ(checkpoint->config(), *MakeModelConfig(options));
      EXPECT_EQ(checkpoint->config().dtype, dtype);
      EXPECT_EQ(checkpoint->config().eos_token_ids,
                std::vector<int32_t>({257}));
    }
  }
}

TEST_P(MakeModelFamilyTest, ScalesKeepActivationsAroundOne) {
  const TempDir dir;
  ASSERT_TRUE(MakeModel(Small(dir.path(), GetParam())).ok());
  const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  const ModelConfig& config = checkpoint->config();
  const auto check = [&](const TensorSpec& spec) {
    const std::vector<float> values = Values(*checkpoint, spec);
    if (spec.shape.size() == 1) {
      const bool bias = spec.name.find("bias") != std::string::npos;
      for (const float value : values) {
        EXPECT_NEAR(value, bias ? 0.0f : 1.0f, bias ? 0.0505f : 0.102f);
      }
      return absl::OkStatus();
    }
    double expected = 1.0 / std::sqrt(static_cast<double>(spec.shape[1]));
    const bool to_residual = spec.name.find("down_proj") != std::string::npos ||
                             spec.name.find("w2") != std::string::npos ||
                             spec.name.find("o_proj") != std::string::npos;
    if (to_residual) expected /= 2.0;  // sqrt(2 * 2 layers)
    if (spec.name == "model.embed_tokens.weight") expected = 1.0;
    if (spec.name == "lm_head.weight") expected *= 2.0;
    const double n = static_cast<double>(values.size());
    EXPECT_NEAR(Deviation(values) / expected, 1.0, 3.0 / std::sqrt(n) + 0.005)
        << spec.name;
    return absl::OkStatus();
  };
  ASSERT_TRUE(ForEachTensor(config, check).ok());
}

TEST_P(MakeModelFamilyTest, BytesDependOnTheSeedAlone) {
  const TempDir one, sharded, other;
  MakeModelOptions options = Small(one.path(), GetParam());
  ASSERT_TRUE(MakeModel(options).ok());
  options.output_dir = sharded.path();
  options.max_shard_bytes = 100'000;
  ASSERT_TRUE(MakeModel(options).ok());
  options.output_dir = other.path();
  options.seed = 1;
  ASSERT_TRUE(MakeModel(options).ok());
  const auto a = MustOpen(one.path()), b = MustOpen(sharded.path()),
             c = MustOpen(other.path());
  ASSERT_TRUE(a != nullptr && b != nullptr && c != nullptr);
  std::set<std::string> contents;
  const auto compare = [&](const TensorSpec& spec) {
    const MappedTensor x = *a->Map(spec.name), y = *b->Map(spec.name),
                       z = *c->Map(spec.name);
    const auto bytes = [](const MappedTensor& t) {
      return std::string(static_cast<const char*>(t.data()), t.num_bytes());
    };
    EXPECT_EQ(bytes(x), bytes(y)) << spec.name;
    EXPECT_NE(bytes(x), bytes(z)) << spec.name;
    EXPECT_TRUE(contents.insert(bytes(x)).second)
        << spec.name << " is equal to another tensor";
    return absl::OkStatus();
  };
  ASSERT_TRUE(ForEachTensor(a->config(), compare).ok());

  // Shards: none is over the limit, and they are numbered.
  size_t num_shards = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(sharded.path())) {
    if (entry.path().extension() != ".safetensors") continue;
    ++num_shards;
    absl::StatusOr<SafetensorsFile> file =
        SafetensorsFile::Open(entry.path().string());
    ASSERT_TRUE(file.ok());
    uint64_t num_bytes = 0;
    for (const TensorInfo& tensor : file->tensors()) {
      num_bytes += tensor.num_bytes;
    }
    EXPECT_LE(num_bytes, 100'000u);
  }
  EXPECT_GT(num_shards, 3u);
  const nlohmann::json index = nlohmann::json::parse(
      ReadFile(sharded.File("model.safetensors.index.json")));
  EXPECT_EQ(index["metadata"]["total_size"], a->total_bytes());
}

INSTANTIATE_TEST_SUITE_P(Families, MakeModelFamilyTest,
                         ::testing::Values("llama", "mixtral", "qwen2_moe",
                                           "qwen3_moe", "olmoe"),
                         [](const auto& test) {
                           return std::string(test.param);
                         });

TEST(MakeModelTest, TokenizerTakesAnyText) {
  const TempDir dir;
  ASSERT_TRUE(MakeModel(Small(dir.path(), "mixtral")).ok());
  const absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer =
      Tokenizer::Load(dir.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 300);
  std::string text =
      "w299 <|end|> Gr\xc3\xbc\xc3\x9f"
      "e \xf0\x9f\x99\x82\n\t";
  for (char c = 1; c < 127; ++c) text.push_back(c);
  const absl::StatusOr<std::vector<int32_t>> ids =
      (*tokenizer)->Encode(text, Tokenizer::EncodeOptions());
  ASSERT_TRUE(ids.ok()) << ids.status();
  ASSERT_EQ(ids->size(), text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    EXPECT_EQ((*ids)[i], static_cast<unsigned char>(text[i]));
  }
  EXPECT_EQ((*tokenizer)
                ->Decode({72, 105, 299, 257}, Tokenizer::DecodeOptions())
                .value(),
            "Hi w299");
}

TEST(MakeModelTest, ReportsProgressUpToTheTotal) {
  const TempDir dir;
  MakeModelOptions options = Small(dir.path(), "mixtral");
  uint64_t last = 0, total = 0;
  options.progress = [&](uint64_t done, uint64_t all) {
    EXPECT_GT(done, last);
    last = done;
    total = all;
  };
  ASSERT_TRUE(MakeModel(options).ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, MustOpen(dir.path())->total_bytes());
}

TEST(MakeModelTest, NeedsLittleMemory) {
  const TempDir dir;
  MakeModelOptions options = Small(dir.path(), "mixtral");
  options.hidden_size = 1024;
  options.expert_intermediate_size = 2048;
  options.num_layers = 1;
  options.dtype = DataType::kF32;
  options.max_shard_bytes = 50 << 20;
  rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  ASSERT_TRUE(MakeModel(options).ok());
  getrusage(RUSAGE_SELF, &after);
  EXPECT_GT(MustOpen(dir.path())->total_bytes(), uint64_t{100} << 20);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 32 * 1024);  // KiB
}

TEST(MakeModelTest, RefusesADirectoryWithAModel) {
  const TempDir dir;
  ASSERT_TRUE(MakeModel(Small(dir.path(), "mixtral")).ok());
  const std::string before = ReadFile(dir.File("model.safetensors"));
  MakeModelOptions options = Small(dir.path(), "llama");
  EXPECT_EQ(MakeModel(options).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadFile(dir.File("model.safetensors")), before);
  options.output_dir = dir.File("model.safetensors/below");
  EXPECT_EQ(MakeModel(options).code(), absl::StatusCode::kInvalidArgument);
}

TEST(MakeModelTest, RefusesImpossibleShapes) {
  const TempDir dir;
  const std::pair<const char*, std::function<void(MakeModelOptions&)>> cases[] =
      {
          {"family", [](auto& o) { o.family = "gpt5"; }},
          {"vocab_size", [](auto& o) { o.vocab_size = 257; }},
          {"hidden_size", [](auto& o) { o.hidden_size = 0; }},
          {"num_hidden_layers", [](auto& o) { o.num_layers = 0; }},
          {"num_layers", [](auto& o) { o.num_layers = ~size_t{0}; }},
          {"num_attention_heads", [](auto& o) { o.num_heads = 0; }},
          {"num_key_value_heads", [](auto& o) { o.num_kv_heads = 3; }},
          {"head_dim", [](auto& o) { o.head_dim = 7; }},
          {"num_local_experts", [](auto& o) { o.num_experts = 0; }},
          {"num_experts_per_tok", [](auto& o) { o.top_k = 5; }},
          {"intermediate_size",
           [](auto& o) { o.expert_intermediate_size = size_t{1} << 40; }},
      };
  for (const auto& [key, edit] : cases) {
    MakeModelOptions options = Small(dir.File("new"), "mixtral");
    edit(options);
    const absl::Status status = MakeModel(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key;
    EXPECT_THAT(std::string(status.message()), HasSubstr(key));
    EXPECT_FALSE(std::filesystem::exists(dir.File("new"))) << key;
  }
}

}  // namespace
}  // namespace troupe

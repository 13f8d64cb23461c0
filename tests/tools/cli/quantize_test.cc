#include "tools/cli/quantize.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/process_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"
#include "tests/fakes/checkpoint_builder.h"
#include "tests/fakes/temp_dir.h"
#include "tools/cli/make_model.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Code = absl::StatusCode;

// Widths that groups of 64 divide.
ModelConfig QuantizableConfig(Architecture architecture,
                              DataType dtype = DataType::kBF16) {
  ModelConfig config = TinyConfig(architecture, dtype);
  config.hidden_size = 64;
  config.num_heads = 8;
  config.head_dim = architecture == Architecture::kOlmoe ? 8 : 16;
  if (config.num_experts > 0) config.expert_intermediate_size = 128;
  if (config.dense_intermediate_size > 0) config.dense_intermediate_size = 192;
  if (config.shared_expert_intermediate_size > 0) {
    config.shared_expert_intermediate_size = 64;
  }
  config.attention_scale =
      1.0f / std::sqrt(static_cast<float>(config.head_dim));
  return config;
}

QuantizeOptions Options(const TempDir& from, const TempDir& to) {
  QuantizeOptions options;
  options.model_dir = from.path();
  options.output_dir = to.File("out");
  options.num_threads = 2;
  return options;
}

std::unique_ptr<Checkpoint> MustOpen(const std::string& dir) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(dir);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

std::vector<float> Floats(const Checkpoint& checkpoint,
                          const std::string& name) {
  const absl::StatusOr<MappedTensor> tensor = checkpoint.Map(name);
  EXPECT_TRUE(tensor.ok()) << tensor.status();
  std::vector<float> values(tensor->num_elements());
  CopyToFloat(*tensor, values.data());
  return values;
}

double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error +=
        (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    sum += static_cast<double>(a[i]) * a[i];
  }
  return std::sqrt(error / sum);
}

// All weights of a folder, name by name, byte by byte.
std::map<std::string, std::string> AllTensors(const std::string& dir) {
  std::map<std::string, std::string> tensors;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    if (entry.path().extension() != ".safetensors") continue;
    const auto file = SafetensorsFile::Open(entry.path().string());
    EXPECT_TRUE(file.ok()) << file.status();
    for (const TensorInfo& tensor : file->tensors()) {
      tensors[tensor.name] = *file->Read(tensor);
    }
  }
  return tensors;
}

class QuantizeFamilyTest : public testing::TestWithParam<Architecture> {};

TEST_P(QuantizeFamilyTest, EveryClassInEveryFormat) {
  const WeightFormat formats[] = {WeightFormat::kInt8, WeightFormat::kInt4,
                                  WeightFormat::kInt4Zero};
  for (const WeightFormat format : formats) {
    for (const size_t group_size : {32, 64}) {
      SCOPED_TRACE(testing::Message() << Name(format) << " " << group_size);
      const TempDir from, to;
      CheckpointBuilder builder(QuantizableConfig(GetParam()));
      builder.Write(from.path(), 2);
      QuantizeOptions options = Options(from, to);
      options.request.experts = options.request.router =
          options.request.embedding = format;
      options.request.head = format;
      options.request.group_size = group_size;
      const absl::StatusOr<QuantizeReport> report = Quantize(options);
      ASSERT_TRUE(report.ok()) << report.status();

      const auto before = MustOpen(from.path());
      const auto after = MustOpen(options.output_dir);
      ASSERT_TRUE(before != nullptr && after != nullptr);
      EXPECT_THAT(after->warnings(), IsEmpty());
      ModelConfig config = before->config();
      config.quantized = true;
      EXPECT_EQ(after->config(), config);
      const double bound = format == WeightFormat::kInt8 ? 0.007 : 0.11;
      const absl::Status all =
          ForEachTensor(config, [&](const TensorSpec& spec) {
            const Checkpoint::Storage storage = after->StorageOf(spec);
            const auto a = Floats(*before, spec.name);
            const auto b = Floats(*after, spec.name);
            if (spec.tensor_class == TensorClass::kSmall) {
              EXPECT_EQ(storage.format, WeightFormat::kBF16) << spec.name;
              EXPECT_EQ(a, b) << spec.name;
            } else {
              EXPECT_EQ(storage.format, format) << spec.name;
              EXPECT_EQ(storage.group_size, group_size) << spec.name;
              EXPECT_LT(RelativeError(a, b), bound) << spec.name;
            }
            return absl::OkStatus();
          });
      ASSERT_TRUE(all.ok());
      uint64_t bytes = 0;
      for (const QuantizedClass& part : report->classes) {
        bytes += part.bytes_after;
        if (part.squared_sum == 0) continue;
        EXPECT_LT(std::sqrt(part.squared_error / part.squared_sum), bound);
        EXPECT_GT(part.squared_error, 0);
      }
      EXPECT_EQ(bytes, after->total_bytes());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, QuantizeFamilyTest,
                         testing::ValuesIn(kAllArchitectures),
                         [](const auto& param) {
                           return TinyConfig(param.param).model_type;
                         });

TEST(QuantizeTest, FloatsOfEveryTypeGiveTheSameNumbers) {
  // Values of float16 and bfloat16 alike: small integers over 64.
  std::vector<std::map<std::string, std::string>> results;
  for (const DataType dtype :
       {DataType::kF32, DataType::kBF16, DataType::kF16}) {
    const TempDir from, to;
    CheckpointBuilder builder(QuantizableConfig(Architecture::kMixtral, dtype));
    for (CheckpointBuilder::Tensor& tensor : builder.tensors()) {
      const size_t count = tensor.bytes.size() / SizeOf(dtype);
      for (size_t i = 0; i < count; ++i) {
        const float value =
            static_cast<float>(static_cast<int>((i * 37) % 127) - 63) / 64;
        const uint16_t half =
            dtype == DataType::kBF16 ? BF16FromF32(value) : F16FromF32(value);
        if (dtype == DataType::kF32) {
          std::memcpy(&tensor.bytes[4 * i], &value, 4);
        } else {
          std::memcpy(&tensor.bytes[2 * i], &half, 2);
        }
      }
    }
    builder.Write(from.path());
    QuantizeOptions options = Options(from, to);
    options.request.router = WeightFormat::kInt4Zero;
    options.request.experts = WeightFormat::kInt4;
    ASSERT_TRUE(Quantize(options).ok());
    auto tensors = AllTensors(options.output_dir);
    std::erase_if(tensors, [](const auto& entry) {
      return !entry.first.ends_with("proj.weight") &&
             !entry.first.ends_with("_scale") &&
             !entry.first.ends_with("_zero_point") &&
             !entry.first.ends_with("w2.weight");
    });
    ASSERT_GT(tensors.size(), 50u);
    results.push_back(std::move(tensors));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(QuantizeTest, ThreadsAndFilesDoNotMatter) {
  const TempDir from;
  CheckpointBuilder(QuantizableConfig(Architecture::kQwen2Moe))
      .Write(from.path());
  std::map<std::string, std::string> expected;
  for (const size_t threads : {1, 3}) {
    for (const uint64_t shard_bytes : {1, 20000, 1 << 30}) {
      const TempDir to;
      QuantizeOptions options = Options(from, to);
      options.request.experts = WeightFormat::kInt4;
      options.num_threads = threads;
      options.max_shard_bytes = shard_bytes;
      ASSERT_TRUE(Quantize(options).ok());
      ASSERT_NE(MustOpen(options.output_dir), nullptr);
      const auto tensors = AllTensors(options.output_dir);
      if (expected.empty()) expected = tensors;
      EXPECT_EQ(tensors, expected);
    }
  }
}

TEST(QuantizeTest, OverridesOfExperts) {
  const TempDir from, to;
  CheckpointBuilder(QuantizableConfig(Architecture::kMixtral))
      .Write(from.path());
  QuantizeOptions options = Options(from, to);
  options.request.experts = WeightFormat::kInt4;
  options.request.router = std::nullopt;
  options.request.head = FormatChoice();
  options.request.expert_overrides = {"*/down=int8", "3=int4-zero",
                                      "1:0-1,4=keep", "1:1/gate-up=int8"};
  ASSERT_TRUE(Quantize(options).ok());
  const auto checkpoint = MustOpen(options.output_dir);
  ASSERT_NE(checkpoint, nullptr);
  const ModelConfig& config = checkpoint->config();
  for (size_t layer = 0; layer < 3; ++layer) {
    for (size_t expert = 0; expert < 5; ++expert) {
      for (const ExpertTensor which : kExpertTensors) {
        const bool down = which == ExpertTensor::kDownProj;
        WeightFormat expected =
            down ? WeightFormat::kInt8 : WeightFormat::kInt4;
        if (expert == 3) expected = WeightFormat::kInt4Zero;
        if (layer == 1 && (expert < 2 || expert == 4)) {
          expected = WeightFormat::kBF16;
          if (expert == 1 && !down) expected = WeightFormat::kInt8;
        }
        EXPECT_EQ(
            checkpoint->StorageOf(SpecOf(config, layer, expert, which)).format,
            expected)
            << layer << " " << expert << " " << static_cast<int>(which);
      }
    }
  }
  EXPECT_EQ(checkpoint->StorageOf(SpecOf(config, 0, LayerTensor::kQ)).format,
            WeightFormat::kBF16);
  EXPECT_EQ(checkpoint->StorageOf(SpecOf(config, ModelTensor::kLmHead)).format,
            WeightFormat::kBF16);
  EXPECT_EQ(
      checkpoint->StorageOf(SpecOf(config, ModelTensor::kEmbedding)).format,
      WeightFormat::kInt8);
}

TEST(QuantizeTest, OverridesThatMakeNoSense) {
  const ModelConfig config = QuantizableConfig(Architecture::kMixtral);
  const std::pair<const char*, const char*> faults[] = {
      {"", "must be"},
      {"3", "must be"},
      {"3=int8=int4", "must be"},
      {"3=int5", "\"int5\" is none of"},
      {"3=", "is none of"},
      {"=int8", "experts: "},
      {"5=int8", "experts: "},
      {"3:1=int8", "layers: "},
      {":1=int8", "layers: "},
      {"0:=int8", "experts: "},
      {"0:1:2=int8", "experts: "},
      {"1/up=int8", "\"up\" is neither"},
      {"1/=int8", "\"\" is neither"},
      {"**=int8", "experts: "},
  };
  for (const auto& [text, message] : faults) {
    const absl::Status status = ParseExpertOverride(text, config).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message)) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--expert")) << text;
  }
}

TEST(QuantizeTest, WhatCannotBeQuantized) {
  // Inputs of 20, which no group divides.
  const TempDir from, to;
  CheckpointBuilder(TinyConfig(Architecture::kMixtral)).Write(from.path());
  QuantizeOptions options = Options(from, to);
  absl::Status status = Quantize(options).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("its 48 inputs are no multiple of the group size 32; "
                        "choose another --group-size or --router keep"));
  EXPECT_FALSE(std::filesystem::exists(options.output_dir));
  options.request.router = std::nullopt;
  status = Quantize(options).status();
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("experts.0.w2.weight: its 20 inputs"));
  options.request.expert_overrides = {"*/down=keep"};
  EXPECT_TRUE(Quantize(options).ok());

  options.request.group_size = 48;
  EXPECT_EQ(Quantize(options).status().code(), Code::kInvalidArgument);
}

TEST(QuantizeTest, TwiceIsRefused) {
  const TempDir from, to, again;
  CheckpointBuilder(QuantizableConfig(Architecture::kMixtral))
      .Write(from.path());
  QuantizeOptions options = Options(from, to);
  ASSERT_TRUE(Quantize(options).ok());
  options.model_dir = options.output_dir;
  options.output_dir = again.File("out");
  const absl::Status status = Quantize(options).status();
  EXPECT_EQ(status.code(), Code::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("quantised already"));
  // Into itself either.
  options.model_dir = options.output_dir = from.path();
  EXPECT_THAT(std::string(Quantize(options).status().message()),
              HasSubstr("is the source itself"));
}

TEST(QuantizeTest, TiedHeadFollowsTheEmbedding) {
  const TempDir from, to, other;
  ModelConfig config = QuantizableConfig(Architecture::kMixtral);
  config.tie_word_embeddings = true;
  CheckpointBuilder(config).Write(from.path());
  QuantizeOptions options = Options(from, to);
  options.request.embedding = WeightFormat::kInt4;
  ASSERT_TRUE(Quantize(options).ok());
  const auto checkpoint = MustOpen(options.output_dir);
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->MapModel(ModelTensor::kLmHead)->format(),
            WeightFormat::kInt4);
  options.output_dir = other.path();
  options.request.head = WeightFormat::kInt8;
  const absl::Status status = Quantize(options).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--head int8"));
}

TEST(QuantizeTest, NanInfinityAndHugeNumbersNameTheirTensor) {
  const std::string name = "model.layers.1.self_attn.o_proj.weight";
  for (const float value : {std::numeric_limits<float>::quiet_NaN(),
                            -std::numeric_limits<float>::infinity(), 1e30f}) {
    const TempDir from, to;
    CheckpointBuilder builder(
        QuantizableConfig(Architecture::kMixtral, DataType::kF32));
    std::memcpy(&builder.Find(name).bytes[4 * (7 * 128 + 70)], &value, 4);
    builder.Write(from.path());
    const QuantizeOptions options = Options(from, to);
    const absl::Status status = Quantize(options).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(from.path() + ": tensor " + name + ": row 7, column"))
        << value;
    // Nothing that looks complete is left behind.
    EXPECT_THAT(AllTensors(options.output_dir), IsEmpty());
    EXPECT_FALSE(std::filesystem::exists(options.output_dir + "/config.json"));
  }
}

TEST(QuantizeTest, ConfigAndSmallFilesComeAlong) {
  const TempDir from, to;
  CheckpointBuilder(QuantizableConfig(Architecture::kMixtral))
      .Write(from.path(), 3);
  WriteFile(from.File("tokenizer.json"), "{\"a\": 1}");
  WriteFile(from.File("LICENSE"), "do what you like");
  WriteFile(from.File("pytorch_model.bin"), "old weights");
  WriteFile(from.File(".hidden"), "");
  const QuantizeOptions options = Options(from, to);
  ASSERT_TRUE(Quantize(options).ok());
  std::set<std::string> names;
  for (const auto& entry :
       std::filesystem::directory_iterator(options.output_dir)) {
    names.insert(entry.path().filename().string());
  }
  EXPECT_THAT(names,
              ElementsAre("LICENSE", "config.json", "generation_config.json",
                          "model.safetensors", "tokenizer.json"));
  EXPECT_EQ(ReadFile(options.output_dir + "/tokenizer.json"), "{\"a\": 1}");
  const auto config =
      nlohmann::json::parse(ReadFile(options.output_dir + "/config.json"));
  const auto& quantization = config["quantization_config"];
  EXPECT_EQ(quantization["quant_method"], "troupe");
  EXPECT_EQ(quantization["group_size"], 32);
  EXPECT_EQ(quantization["experts"], "int8");
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  const auto file =
      SafetensorsFile::Open(options.output_dir + "/model.safetensors");
  EXPECT_EQ(nlohmann::json::parse(file->metadata().at("troupe.quantization")),
            quantization);
  EXPECT_EQ(file->metadata().at("format"), "pt");
}

// Going on ----------------------------------------------------------------

class QuantizeResumeTest : public testing::Test {
 protected:
  QuantizeResumeTest() {
    CheckpointBuilder(QuantizableConfig(Architecture::kMixtral))
        .Write(from_.path());
    options_ = Options(from_, to_);
    options_.max_shard_bytes = 50000;
    // The uninterrupted run, for comparison.
    QuantizeOptions whole = options_;
    whole.output_dir = to_.File("whole");
    const auto report = Quantize(whole);
    EXPECT_TRUE(report.ok()) << report.status();
    EXPECT_GT(report->num_shards, 5u);
    expected_ = AllTensors(whole.output_dir);
    whole_ = *report;
  }

  // Ends a child's run in the middle, as a kill would.
  void Interrupt(size_t after_files) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      options_.progress = [&](uint64_t, uint64_t) {
        if (AllFiles() == after_files) _exit(7);
      };
      (void)Quantize(options_);
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_EQ(WEXITSTATUS(status), 7);
    ASSERT_EQ(AllFiles(), after_files);
  }

  size_t AllFiles() const {
    size_t count = 0;
    for (const auto& entry :
         std::filesystem::directory_iterator(options_.output_dir)) {
      count += entry.path().extension() == ".safetensors";
    }
    return count;
  }

  TempDir from_, to_;
  QuantizeOptions options_;
  QuantizeReport whole_;
  std::map<std::string, std::string> expected_;
};

TEST_F(QuantizeResumeTest, GoesOnWhereItWasInterrupted) {
  Interrupt(2);
  const auto first = std::filesystem::last_write_time(
      options_.output_dir + "/" + "model-00001-of-" +
      (whole_.num_shards < 10 ? "0000" : "000") +
      std::to_string(whole_.num_shards) + ".safetensors");
  ASSERT_FALSE(std::filesystem::exists(options_.output_dir + "/config.json"));
  const auto report = Quantize(options_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->num_shards_found, 2u);
  EXPECT_EQ(AllTensors(options_.output_dir), expected_);
  EXPECT_EQ(std::filesystem::last_write_time(
                options_.output_dir + "/" + "model-00001-of-" +
                (whole_.num_shards < 10 ? "0000" : "000") +
                std::to_string(whole_.num_shards) + ".safetensors"),
            first);
  // The report is of all files.
  for (size_t i = 0; i < whole_.classes.size(); ++i) {
    EXPECT_EQ(report->classes[i].bytes_after, whole_.classes[i].bytes_after);
    EXPECT_NEAR(report->classes[i].squared_error,
                whole_.classes[i].squared_error,
                1e-9 * whole_.classes[i].squared_error);
  }
  // And once more changes nothing.
  const auto again = Quantize(options_);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->num_shards_found, again->num_shards);
  EXPECT_EQ(AllTensors(options_.output_dir), expected_);
}

TEST_F(QuantizeResumeTest, RefusesOtherOptionsSourcesAndFolders) {
  Interrupt(2);
  QuantizeOptions other = options_;
  other.request.experts = WeightFormat::kInt4;
  absl::Status status = Quantize(other).status();
  EXPECT_EQ(status.code(), Code::kAlreadyExists) << status;
  other = options_;
  other.request.group_size = 64;
  EXPECT_EQ(Quantize(other).status().code(), Code::kAlreadyExists);
  other = options_;
  other.request.expert_overrides = {"3=int8"};
  status = Quantize(other).status();
  EXPECT_EQ(status.code(), Code::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("was made with other options"));
  other = options_;
  other.max_shard_bytes = 1 << 30;
  EXPECT_EQ(Quantize(other).status().code(), Code::kAlreadyExists);

  // The same shapes with other numbers in them.
  const TempDir elsewhere;
  CheckpointBuilder(QuantizableConfig(Architecture::kMixtral), 2)
      .Write(elsewhere.path());
  other = options_;
  other.model_dir = elsewhere.path();
  status = Quantize(other).status();
  EXPECT_EQ(status.code(), Code::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("was made from another source"));

  // A folder that holds a checkpoint of floats.
  const TempDir floats;
  CheckpointBuilder(QuantizableConfig(Architecture::kMixtral))
      .Write(floats.path());
  other = options_;
  other.output_dir = floats.path();
  EXPECT_EQ(Quantize(other).status().code(), Code::kAlreadyExists);
  // None of that touched what is there.
  EXPECT_TRUE(Quantize(options_).ok());
  EXPECT_EQ(AllTensors(options_.output_dir), expected_);
}

TEST_F(QuantizeResumeTest, FinishedFolderWithOtherOptions) {
  ASSERT_TRUE(Quantize(options_).ok());
  options_.request.router = WeightFormat::kInt4;
  const absl::Status status = Quantize(options_).status();
  EXPECT_EQ(status.code(), Code::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
}

TEST_F(QuantizeResumeTest, DamagedFileIsNamed) {
  Interrupt(2);
  for (const auto& entry :
       std::filesystem::directory_iterator(options_.output_dir)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::filesystem::resize_file(entry.path(), 100);
    const absl::Status status = Quantize(options_).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(entry.path().string()));
    break;
  }
}

TEST_F(QuantizeResumeTest, OneProcessAtATime) {
  std::filesystem::create_directories(options_.output_dir);
  const int fd = open(options_.output_dir.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(flock(fd, LOCK_EX | LOCK_NB), 0);
  const absl::Status status = Quantize(options_).status();
  EXPECT_EQ(status.code(), Code::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another process"));
  close(fd);
  EXPECT_TRUE(Quantize(options_).ok());
}

// 300 MB of weights, an embedding of 128 MB among them: what a run holds is
// blocks of rows and the scales of one tensor. The child does not share the
// parent's peak.
TEST(QuantizeTest, MemoryIsBounded) {
  const TempDir from, to;
  MakeModelOptions model;
  model.output_dir = from.File("model");
  model.hidden_size = 1024;
  model.num_layers = 1;
  model.num_heads = 8;
  model.vocab_size = 65536;
  model.num_experts = 2;
  model.expert_intermediate_size = 4096;
  ASSERT_TRUE(MakeModel(model).ok());
  QuantizeOptions options = Options(from, to);
  options.model_dir = model.output_dir;
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const uint64_t before = ResidentBytes();
    uint64_t peak = before;
    options.progress = [&](uint64_t, uint64_t) {
      peak = std::max(peak, ResidentBytes());
    };
    const uint64_t more = Quantize(options).ok() ? peak - before : ~0ull;
    if (write(pipe_fds[1], &more, sizeof(more)) != sizeof(more)) _exit(1);
    _exit(0);
  }
  uint64_t more = 0;
  ASSERT_EQ(read(pipe_fds[0], &more, sizeof(more)), ssize_t{sizeof(more)});
  close(pipe_fds[0]);
  close(pipe_fds[1]);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_LT(more, 24u << 20) << "bytes";
}

TEST(QuantizeTest, ReportAsText) {
  QuantizeReport report;
  report.classes[0] = {.num_weights = 1000,
                       .bytes_before = 2000,
                       .bytes_after = 1063,
                       .squared_error = 0.25,
                       .squared_sum = 10000};
  report.classes[4] = {
      .num_weights = 10, .bytes_before = 20, .bytes_after = 20};
  const std::string text = report.ToText();
  EXPECT_THAT(text, HasSubstr("experts"));
  EXPECT_THAT(text, HasSubstr("8.50"));
  EXPECT_THAT(text, HasSubstr("0.500 %"));
  EXPECT_THAT(text, testing::Not(HasSubstr("router")));
  EXPECT_THAT(text, HasSubstr("1010"));
}

}  // namespace
}  // namespace troupe

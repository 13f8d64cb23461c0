#include "model/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/safetensors_writer.h"
#include "nlohmann/json.hpp"
#include "tests/fakes/checkpoint_builder.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Code = absl::StatusCode;

std::unique_ptr<Checkpoint> MustOpen(const std::string& dir) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(dir);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

std::string BytesOf(const absl::StatusOr<MappedTensor>& tensor) {
  EXPECT_TRUE(tensor.ok()) << tensor.status();
  if (!tensor.ok()) return "";
  return std::string(static_cast<const char*>(tensor->data()),
                     tensor->num_bytes());
}

// Every tensor through its slot: the bytes, shape and dtype that were written.
void ExpectSame(const Checkpoint& checkpoint, CheckpointBuilder& builder) {
  const ModelConfig& config = checkpoint.config();
  const auto expect = [&](const absl::StatusOr<MappedTensor>& tensor,
                          const TensorSpec& spec) {
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_EQ(tensor->shape(), spec.shape);
    EXPECT_EQ(tensor->dtype(), config.dtype);
    EXPECT_EQ(BytesOf(tensor), builder.Find(spec.name).bytes) << spec.name;
    EXPECT_EQ(BytesOf(checkpoint.Map(spec.name)), BytesOf(tensor));
  };
  for (const ModelTensor which :
       {ModelTensor::kEmbedding, ModelTensor::kFinalNorm,
        ModelTensor::kLmHead}) {
    expect(checkpoint.MapModel(which), SpecOf(config, which));
  }
  for (size_t layer = 0; layer < config.num_layers; ++layer) {
    for (int i = 0; i <= static_cast<int>(kLastLayerTensor); ++i) {
      const LayerTensor which = static_cast<LayerTensor>(i);
      const absl::StatusOr<MappedTensor> tensor =
          checkpoint.MapLayer(layer, which);
      if (HasTensor(config, layer, which)) {
        expect(tensor, SpecOf(config, layer, which));
      } else {
        EXPECT_EQ(tensor.status().code(), Code::kInvalidArgument);
      }
    }
    for (size_t expert = 0; expert < config.num_experts; ++expert) {
      for (const ExpertTensor which : kExpertTensors) {
        const absl::StatusOr<MappedTensor> tensor =
            checkpoint.MapExpert(layer, expert, which);
        if (config.is_moe_layer[layer]) {
          expect(tensor, SpecOf(config, layer, expert, which));
        } else {
          EXPECT_EQ(tensor.status().code(), Code::kInvalidArgument);
        }
      }
    }
  }
}

class CheckpointFamilyTest : public ::testing::TestWithParam<Architecture> {};

TEST_P(CheckpointFamilyTest, MapsEveryTensor) {
  for (const DataType dtype :
       {DataType::kF32, DataType::kBF16, DataType::kF16}) {
    for (const size_t num_shards : {1, 3}) {
      SCOPED_TRACE(num_shards);
      const TempDir dir;
      CheckpointBuilder builder(TinyConfig(GetParam(), dtype));
      builder.Write(dir.path(), num_shards);
      const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
      ASSERT_NE(checkpoint, nullptr);
      EXPECT_EQ(checkpoint->config(), builder.config());
      EXPECT_THAT(checkpoint->warnings(), IsEmpty());
      ExpectSame(*checkpoint, builder);
    }
  }
}

TEST_P(CheckpointFamilyTest, EveryTensorIsNeeded) {
  CheckpointBuilder complete(TinyConfig(GetParam()));
  for (size_t i = 0; i < complete.tensors().size(); ++i) {
    const std::string name = complete.tensors()[i].info.name;
    const TempDir dir;
    CheckpointBuilder builder(TinyConfig(GetParam()));
    builder.Remove(name);
    builder.Write(dir.path());
    const absl::Status status = Checkpoint::Open(dir.path()).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_EQ(status.message(),
              dir.File("model.safetensors") + ": tensor " + name + ": missing");
  }
}

TEST_P(CheckpointFamilyTest, EveryShapeAndDtypeIsChecked) {
  CheckpointBuilder complete(TinyConfig(GetParam(), DataType::kBF16));
  for (size_t i = 0; i < complete.tensors().size(); ++i) {
    const TensorInfo& info = complete.tensors()[i].info;
    for (int fault = 0; fault < 3; ++fault) {
      const TempDir dir;
      CheckpointBuilder builder(TinyConfig(GetParam(), DataType::kBF16));
      TensorInfo& broken = builder.tensors()[i].info;
      if (fault == 0) {  // transposed, or of other dimensions
        std::vector<size_t>& shape = broken.shape;
        if (shape.size() == 1) {
          shape.insert(shape.begin(), 1);
        } else if (shape[0] == shape[1]) {
          shape = {2 * shape[0], shape[1] / 2};
        } else {
          std::swap(shape[0], shape[1]);
        }
      } else if (fault == 1) {
        broken.type = SafetensorsType::kI16;
      } else {
        broken.type = SafetensorsType::kF16;
      }
      builder.Write(dir.path());
      const absl::Status status = Checkpoint::Open(dir.path()).status();
      EXPECT_EQ(status.code(), Code::kInvalidArgument) << info.name;
      EXPECT_THAT(std::string(status.message()),
                  HasSubstr(dir.File("model.safetensors") + ": tensor " +
                            info.name + ": "));
      EXPECT_THAT(
          std::string(status.message()),
          HasSubstr(fault == 0 ? "has shape" : "config.json asks for BF16"));
    }
  }
}

std::string FamilyName(const ::testing::TestParamInfo<Architecture>& info) {
  return TinyConfig(info.param).model_type;
}
INSTANTIATE_TEST_SUITE_P(Families, CheckpointFamilyTest,
                         ::testing::ValuesIn(kAllArchitectures), FamilyName);

TEST(CheckpointTest, TiedHeadIsTheEmbedding) {
  const TempDir dir;
  ModelConfig config = TinyConfig(Architecture::kMixtral);
  config.tie_word_embeddings = true;
  CheckpointBuilder builder(config);
  builder.Write(dir.path());
  const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(BytesOf(checkpoint->MapModel(ModelTensor::kLmHead)),
            builder.Find("model.embed_tokens.weight").bytes);
}

TEST(CheckpointTest, NormsAndRouterMayBeFloat32) {
  const TempDir dir;
  CheckpointBuilder builder(
      TinyConfig(Architecture::kMixtral, DataType::kBF16));
  CheckpointBuilder exact(TinyConfig(Architecture::kMixtral, DataType::kF32));
  for (const char* name :
       {"model.norm.weight", "model.layers.0.input_layernorm.weight",
        "model.layers.1.block_sparse_moe.gate.weight"}) {
    builder.Find(name) = exact.Find(name);
  }
  builder.Write(dir.path());
  std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(checkpoint->MapModel(ModelTensor::kFinalNorm)->dtype(),
            DataType::kF32);
  EXPECT_EQ(checkpoint->MapLayer(1, LayerTensor::kGate)->dtype(),
            DataType::kF32);
  // But not a matrix.
  builder.Find("lm_head.weight") = exact.Find("lm_head.weight");
  builder.Write(dir.path());
  EXPECT_THAT(std::string(Checkpoint::Open(dir.path()).status().message()),
              HasSubstr("lm_head.weight: is F32"));
}

TEST(CheckpointTest, ExtraTensorsAreWarnings) {
  const TempDir dir;
  CheckpointBuilder builder(TinyConfig(Architecture::kLlama));
  builder.AddExtra("model.layers.0.self_attn.rotary_emb.inv_freq", 4);
  builder.Write(dir.path());
  std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  ASSERT_EQ(checkpoint->warnings().size(), 1u);
  EXPECT_THAT(checkpoint->warnings()[0], HasSubstr("inv_freq"));
  EXPECT_EQ(checkpoint->Map("model.layers.0.self_attn.rotary_emb.inv_freq")
                .status()
                .code(),
            Code::kInvalidArgument);  // no weights
  for (int i = 0; i < 1000; ++i) {
    builder.AddExtra("extra." + std::to_string(i), 1);
  }
  builder.Write(dir.path());
  checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  ASSERT_EQ(checkpoint->warnings().size(), 17u);
  EXPECT_THAT(checkpoint->warnings()[16], HasSubstr("985 more"));
}

TEST(CheckpointTest, UnalignedTensorsAreCopied) {
  const TempDir dir;
  CheckpointBuilder builder(TinyConfig(Architecture::kMixtral));
  CheckpointBuilder::Tensor odd;
  odd.info.name = "odd";
  odd.info.type = SafetensorsType::kU8;
  odd.info.shape = {3};
  odd.bytes = "abc";
  builder.tensors().insert(builder.tensors().begin(), odd);
  builder.Write(dir.path());
  const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  const absl::StatusOr<MappedTensor> tensor =
      checkpoint->MapExpert(1, 2, ExpertTensor::kUpProj);
  ASSERT_TRUE(tensor.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->data()) % 4, 0u);
  EXPECT_EQ(BytesOf(tensor),
            builder.Find("model.layers.1.block_sparse_moe.experts.2.w3.weight")
                .bytes);
  tensor->DropPages();  // must keep the bytes of a copy
  EXPECT_EQ(BytesOf(tensor),
            builder.Find("model.layers.1.block_sparse_moe.experts.2.w3.weight")
                .bytes);
}

TEST(CheckpointTest, MappedTensorOutlivesTheCheckpointAndTheFile) {
  const TempDir dir;
  CheckpointBuilder builder(TinyConfig(Architecture::kMixtral));
  builder.Write(dir.path());
  std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  MappedTensor tensor = *checkpoint->MapModel(ModelTensor::kEmbedding);
  checkpoint.reset();
  std::filesystem::remove(dir.File("model.safetensors"));
  MappedTensor moved = std::move(tensor);
  tensor = MappedTensor();
  moved.Prefetch();
  moved.DropPages();
  EXPECT_EQ(std::memcmp(moved.data(),
                        builder.Find("model.embed_tokens.weight").bytes.data(),
                        moved.num_bytes()),
            0);
  EXPECT_EQ(moved.rows(), 264u);
  EXPECT_EQ(moved.cols(), 32u);
  EXPECT_EQ(moved.num_elements(), 264u * 32u);
}

TEST(CheckpointTest, CopiesToFloatExactly) {
  for (const DataType dtype :
       {DataType::kF32, DataType::kBF16, DataType::kF16}) {
    const TempDir dir;
    CheckpointBuilder builder(TinyConfig(Architecture::kMixtral, dtype));
    builder.Write(dir.path());
    const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
    ASSERT_NE(checkpoint, nullptr);
    const MappedTensor tensor = *checkpoint->MapModel(ModelTensor::kEmbedding);
    std::vector<float> values(tensor.num_elements());
    CopyToFloat(tensor, values.data());
    const std::string& bytes = builder.Find("model.embed_tokens.weight").bytes;
    for (size_t i = 0; i < values.size(); ++i) {
      float expected;
      uint16_t half;
      if (dtype == DataType::kF32) {
        std::memcpy(&expected, &bytes[4 * i], 4);
      } else {
        std::memcpy(&half, &bytes[2 * i], 2);
        expected =
            dtype == DataType::kBF16 ? F32FromBF16(half) : F32FromF16(half);
      }
      ASSERT_EQ(values[i], expected);
    }
  }
}

TEST(CheckpointTest, CountsBytes) {
  const TempDir dir;
  CheckpointBuilder builder(
      TinyConfig(Architecture::kQwen2Moe, DataType::kF16));
  builder.AddExtra("extra", 100);
  builder.Write(dir.path(), 2);
  const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  uint64_t experts = 0, router = 0;
  for (const auto& tensor : builder.tensors()) {
    const std::string& name = tensor.info.name;
    if (name == "extra") continue;
    (name.find(".experts.") != std::string::npos ? experts : router) +=
        tensor.bytes.size();
  }
  uint64_t sum = 0;
  for (size_t layer = 0; layer < 3; ++layer) {
    for (size_t expert = 0; expert < 5; ++expert) {
      sum += checkpoint->expert_bytes(layer, expert);
    }
  }
  EXPECT_EQ(sum, experts);
  EXPECT_EQ(checkpoint->expert_bytes(1, 0), 0u);  // dense
  EXPECT_EQ(checkpoint->router_bytes(), router);
  EXPECT_EQ(checkpoint->total_bytes(), router + experts);
}

TEST(CheckpointTest, ContentHashIsOfTheExpertAlone) {
  const TempDir one, sharded, edited;
  CheckpointBuilder builder(TinyConfig(Architecture::kQwen2Moe));
  builder.Write(one.path());
  std::reverse(builder.tensors().begin(), builder.tensors().end());
  builder.Write(sharded.path(), 4);
  builder.Find("model.layers.2.mlp.experts.3.down_proj.weight").bytes[17] ^= 1;
  builder.Write(edited.path());
  const auto a = MustOpen(one.path()), b = MustOpen(sharded.path()),
             c = MustOpen(edited.path());
  ASSERT_TRUE(a != nullptr && b != nullptr && c != nullptr);

  std::set<std::string> hashes;
  for (size_t expert = 0; expert < 5; ++expert) {
    const std::string whole = a->ExpertContentHash(expert).value();
    EXPECT_EQ(whole.size(), 32u);
    EXPECT_TRUE(hashes.insert(whole).second);
    EXPECT_EQ(b->ExpertContentHash(expert).value(), whole);
    EXPECT_EQ(c->ExpertContentHash(expert).value() == whole, expert != 3);
    for (const size_t layer : {0, 2}) {
      const std::string hash = a->ExpertContentHash(layer, expert).value();
      EXPECT_TRUE(hashes.insert(hash).second);
      EXPECT_EQ(b->ExpertContentHash(layer, expert).value(), hash);
      EXPECT_EQ(c->ExpertContentHash(layer, expert).value() == hash,
                expert != 3 || layer != 2);
    }
  }
  EXPECT_FALSE(a->ExpertContentHash(1, 0).ok());  // a dense layer
  EXPECT_FALSE(a->ExpertContentHash(5).ok());
  // Contents do not matter to the fingerprint, shapes and dtype do.
  EXPECT_EQ(a->fingerprint(), b->fingerprint());
  EXPECT_EQ(a->fingerprint(), c->fingerprint());
  const TempDir half;
  CheckpointBuilder(TinyConfig(Architecture::kQwen2Moe, DataType::kBF16))
      .Write(half.path());
  EXPECT_NE(MustOpen(half.path())->fingerprint(), a->fingerprint());
}

// The kernel's account of the mappings of files below `dir`, in bytes.
struct Mapped {
  size_t resident = 0;
  size_t size = 0;
};
Mapped MappedBelow(const std::string& dir) {
  std::ifstream smaps("/proc/self/smaps");
  Mapped mapped;
  bool ours = false;
  for (std::string line; std::getline(smaps, line);) {
    std::istringstream words(line);
    std::string key;
    size_t kilobytes = 0;
    words >> key;
    if (key.find('-') != std::string::npos) {
      ours = line.find(dir) != std::string::npos;
    } else if (ours && words >> kilobytes) {
      if (key == "Rss:") mapped.resident += kilobytes * 1024;
      if (key == "Size:") mapped.size += kilobytes * 1024;
    }
  }
  return mapped;
}

uint64_t TouchAll(const MappedTensor& tensor) {
  const auto* bytes = static_cast<const unsigned char*>(tensor.data());
  uint64_t sum = 0;
  for (size_t i = 0; i < tensor.num_bytes(); i += 64) sum += bytes[i];
  return sum;
}

// Experts of 3 x 384 KiB in 4 layers, 8 of them: 36 MiB; the router's part has
// 7 MiB.
TEST(CheckpointTest, OnlyMappedTensorsAreResident) {
  const TempDir dir;
  ModelConfig config = TinyConfig(Architecture::kMixtral);
  config.hidden_size = 256;
  config.expert_intermediate_size = 384;
  config.num_experts = 8;
  config.num_layers = 4;
  config.vocab_size = 2048;
  config.num_heads = 16;
  config.num_kv_heads = 4;
  config.head_dim = 16;
  config.attention_scale = 0.25f;
  config.sliding_window.assign(4, 0);
  config.is_moe_layer.assign(4, true);
  CheckpointBuilder(config).Write(dir.path(), 2);
  const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_EQ(MappedBelow(dir.path()).size, 0u) << "opening maps nothing";

  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  uint64_t sum = 0;
  {
    // An expert process that owns experts 2 and 5 of all layers.
    std::vector<MappedTensor> owned;
    for (size_t layer = 0; layer < 4; ++layer) {
      for (const size_t expert : {2, 5}) {
        for (const ExpertTensor which : kExpertTensors) {
          owned.push_back(*checkpoint->MapExpert(layer, expert, which));
          sum += TouchAll(owned.back());
        }
      }
    }
    const size_t expected = 4 * 2 * checkpoint->expert_bytes(0, 0);
    const Mapped mapped = MappedBelow(dir.path());
    EXPECT_GE(mapped.resident, expected);
    // A tensor starts and ends within a page.
    EXPECT_LE(mapped.resident, expected + 2 * page * owned.size());
    EXPECT_LE(mapped.size, expected + 2 * page * owned.size());
    EXPECT_LT(mapped.resident, checkpoint->total_bytes() / 4);
    for (const MappedTensor& tensor : owned) tensor.DropPages();
    EXPECT_EQ(MappedBelow(dir.path()).resident, 0u);
  }
  EXPECT_EQ(MappedBelow(dir.path()).size, 0u);
  {
    // The router.
    std::vector<MappedTensor> owned;
    for (const ModelTensor which :
         {ModelTensor::kEmbedding, ModelTensor::kFinalNorm,
          ModelTensor::kLmHead}) {
      owned.push_back(*checkpoint->MapModel(which));
    }
    for (size_t layer = 0; layer < 4; ++layer) {
      for (int i = 0; i <= static_cast<int>(kLastLayerTensor); ++i) {
        const LayerTensor which = static_cast<LayerTensor>(i);
        if (!HasTensor(config, layer, which)) continue;
        owned.push_back(*checkpoint->MapLayer(layer, which));
      }
    }
    for (const MappedTensor& tensor : owned) sum += TouchAll(tensor);
    const Mapped mapped = MappedBelow(dir.path());
    EXPECT_GE(mapped.resident, checkpoint->router_bytes());
    EXPECT_LE(mapped.resident,
              checkpoint->router_bytes() + 2 * page * owned.size());
    EXPECT_LT(mapped.resident, checkpoint->total_bytes() / 4);
  }
  EXPECT_NE(sum, 0u);
}

class BrokenCheckpointTest : public ::testing::Test {
 protected:
  BrokenCheckpointTest() : builder_(TinyConfig(Architecture::kMixtral)) {}

  void ExpectRefused(const std::string& file, const std::string& tensor,
                     const std::string& why,
                     Code code = Code::kInvalidArgument) {
    const absl::Status status = Checkpoint::Open(dir_.path()).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(file.empty() ? dir_.path() : dir_.File(file)));
    EXPECT_THAT(std::string(status.message()), HasSubstr(tensor));
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  }

  nlohmann::json Index() {
    return nlohmann::json::parse(
        ReadFile(dir_.File("model.safetensors.index.json")));
  }
  void WriteIndex(const nlohmann::json& index) {
    WriteFile(dir_.File("model.safetensors.index.json"), index.dump());
  }

  TempDir dir_;
  CheckpointBuilder builder_;
};

TEST_F(BrokenCheckpointTest, NoFiles) {
  builder_.Write(dir_.path());
  std::filesystem::remove(dir_.File("model.safetensors"));
  ExpectRefused("", "", "neither model.safetensors nor", Code::kNotFound);
}

TEST_F(BrokenCheckpointTest, NoConfig) {
  builder_.Write(dir_.path());
  std::filesystem::remove(dir_.File("config.json"));
  ExpectRefused("config.json", "", "", Code::kNotFound);
}

TEST_F(BrokenCheckpointTest, ConfigIsADirectory) {
  builder_.Write(dir_.path());
  std::filesystem::remove(dir_.File("config.json"));
  std::filesystem::create_directory(dir_.File("config.json"));
  ExpectRefused("config.json", "", "not a regular file");
}

TEST_F(BrokenCheckpointTest, ConfigAsksForMore) {
  builder_.Write(dir_.path());
  nlohmann::json config =
      nlohmann::json::parse(ReadFile(dir_.File("config.json")));
  config["num_hidden_layers"] = 4;
  WriteFile(dir_.File("config.json"), config.dump());
  ExpectRefused("model.safetensors",
                "tensor model.layers.3.input_layernorm.weight: ", "missing");
}

TEST_F(BrokenCheckpointTest, BiasOfTheConfigIsMissing) {
  ModelConfig config = TinyConfig(Architecture::kQwen2Moe);
  CheckpointBuilder builder(config);
  builder.Remove("model.layers.1.self_attn.k_proj.bias");
  builder.Write(dir_.path());
  ExpectRefused("model.safetensors",
                "tensor model.layers.1.self_attn.k_proj.bias: ", "missing");
}

TEST_F(BrokenCheckpointTest, TruncatedFileAndShard) {
  builder_.Write(dir_.path());
  const std::string path = dir_.File("model.safetensors");
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  ExpectRefused("model.safetensors", "tensor lm_head.weight: ", "data_offsets");
  std::filesystem::remove(path);
  builder_.Write(dir_.path(), 3);
  std::filesystem::resize_file(dir_.File("model-00002-of-00003.safetensors"),
                               100);
  ExpectRefused("model-00002-of-00003.safetensors", "", "truncated");
}

TEST_F(BrokenCheckpointTest, MissingShard) {
  builder_.Write(dir_.path(), 3);
  std::filesystem::remove(dir_.File("model-00003-of-00003.safetensors"));
  ExpectRefused("model-00003-of-00003.safetensors", "", "cannot open",
                Code::kNotFound);
}

TEST_F(BrokenCheckpointTest, IndexWithoutATensor) {
  builder_.Write(dir_.path(), 3);
  nlohmann::json index = Index();
  index["weight_map"].erase("model.layers.1.self_attn.v_proj.weight");
  WriteIndex(index);
  ExpectRefused("model.safetensors.index.json",
                "tensor model.layers.1.self_attn.v_proj.weight: ", "missing");
}

TEST_F(BrokenCheckpointTest, IndexNamesTheWrongShard) {
  builder_.Write(dir_.path(), 3);
  nlohmann::json index = Index();
  index["weight_map"]["lm_head.weight"] =
      index["weight_map"]["lm_head.weight"] ==
              "model-00001-of-00003.safetensors"
          ? "model-00002-of-00003.safetensors"
          : "model-00001-of-00003.safetensors";
  WriteIndex(index);
  ExpectRefused("model-0000", "tensor lm_head.weight: ", "not in this file");
}

TEST_F(BrokenCheckpointTest, IndexPointsOutOfTheDirectory) {
  builder_.Write(dir_.path(), 3);
  const nlohmann::json good = Index();
  const nlohmann::json bad_names[] = {
      "../model.safetensors", "/etc/passwd", "a/b", "", ".", "..", 3, nullptr};
  for (const nlohmann::json& bad : bad_names) {
    nlohmann::json index = good;
    index["weight_map"]["lm_head.weight"] = bad;
    WriteIndex(index);
    ExpectRefused("model.safetensors.index.json",
                  "tensor lm_head.weight: ", "plain file name");
  }
}

TEST_F(BrokenCheckpointTest, IndexIsNoIndex) {
  builder_.Write(dir_.path(), 3);
  for (const std::string text :
       {"", "{", "[]", "{}", R"({"weight_map": []})", R"({"weight_map": 1})",
        R"({"weight_map": {"a": "b", "a": "b"}})"}) {
    WriteFile(dir_.File("model.safetensors.index.json"), text);
    ExpectRefused("model.safetensors.index.json", "", "");
  }
}

TEST_F(BrokenCheckpointTest, FileWrittenToAfterOpen) {
  builder_.Write(dir_.path());
  const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir_.path());
  ASSERT_NE(checkpoint, nullptr);
  const std::string path = dir_.File("model.safetensors");
  std::filesystem::resize_file(path, 1000);
  const absl::Status status =
      checkpoint->MapModel(ModelTensor::kEmbedding).status();
  EXPECT_EQ(status.code(), Code::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
}

// Any change of any of the files: either an error, or a checkpoint all of whose
// tensors can be read.
TEST_F(BrokenCheckpointTest, RandomEditsOfAllFiles) {
  std::vector<std::string> files = builder_.Write(dir_.path(), 2);
  files.insert(files.end(), {"config.json", "generation_config.json",
                             "model.safetensors.index.json"});
  std::mt19937_64 random(7);
  size_t accepted = 0;
  for (int round = 0; round < 1500; ++round) {
    const std::string path = dir_.File(files[random() % files.size()]);
    const std::string good = ReadFile(path);
    std::string bytes = good;
    for (size_t edit = 0; edit < 1 + random() % 3; ++edit) {
      // Within the first 4 KiB: headers, not weights.
      const size_t at = random() % std::min<size_t>(bytes.size(), 4096);
      switch (random() % 3) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
          break;
        case 1:
          bytes[at] = "0123456789-.eE\"[]{},:"[random() % 21];
          break;
        case 2:
          bytes.erase(at, 1 + random() % 4);
          break;
      }
    }
    WriteFile(path, bytes);
    const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
        Checkpoint::Open(dir_.path());
    if (checkpoint.ok()) {
      ++accepted;
      uint64_t sum = 0;
      const auto touch = [&](const TensorSpec& spec) -> absl::Status {
        const absl::StatusOr<MappedTensor> tensor =
            (*checkpoint)->Map(spec.name);
        if (!tensor.ok()) return tensor.status();
        sum += TouchAll(*tensor);
        return absl::OkStatus();
      };
      EXPECT_TRUE(ForEachTensor((*checkpoint)->config(), touch).ok());
      EXPECT_NE(sum, 0u);
    } else {
      EXPECT_THAT(std::string(checkpoint.status().message()),
                  HasSubstr(dir_.path()))
          << "round " << round;
    }
    WriteFile(path, good);
    if (HasFailure()) FAIL() << "round " << round << " " << path;
  }
  EXPECT_LT(accepted, 700u);
  EXPECT_GT(accepted, 0u);
}

// Checkpoints that transformers wrote.
TEST(GoldenCheckpointTest, AllOpen) {
  size_t num_found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(
           TROUPE_SOURCE_DIR "/tests/goldens")) {
    const std::string dir = entry.path().string();
    if (!std::filesystem::exists(dir + "/golden.safetensors") ||
        !std::filesystem::exists(dir + "/config.json")) {
      continue;
    }
    SCOPED_TRACE(dir);
    ++num_found;
    const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir);
    ASSERT_NE(checkpoint, nullptr);
    EXPECT_THAT(checkpoint->warnings(), IsEmpty());
    const ModelConfig& config = checkpoint->config();
    // The chosen experts of every MoE layer are there, and of no other.
    absl::StatusOr<SafetensorsFile> golden =
        SafetensorsFile::Open(dir + "/golden.safetensors");
    ASSERT_TRUE(golden.ok()) << golden.status();
    for (size_t layer = 0; layer < config.num_layers; ++layer) {
      const TensorInfo* idx =
          golden->Find("prompt0.layer" + std::to_string(layer) + ".topk_idx");
      EXPECT_EQ(idx != nullptr, config.is_moe_layer[layer]);
      if (idx != nullptr) {
        EXPECT_EQ(idx->type, SafetensorsType::kI32);
        EXPECT_EQ(idx->shape[1], config.top_k);
      }
    }
    EXPECT_EQ(golden->Find("prompt0.logits")->shape[1], config.vocab_size);
    EXPECT_FALSE(config.eos_token_ids.empty());
  }
  EXPECT_GE(num_found, 10u);
}

struct GoldenWindow {
  const char* name;
  std::vector<size_t> window;
  std::vector<bool> moe;
};

TEST(GoldenCheckpointTest, WindowsAndMoeLayers) {
  const GoldenWindow cases[] = {
      {"mixtral_window", {21, 21, 21}, {true, true, true}},
      {"qwen2_moe_sparse_step", {20, 0, 20, 0}, {false, true, false, true}},
      {"qwen3_moe_window", {16, 16, 16}, {true, true, true}},
      {"qwen3_moe_dense_first", {0, 0, 0}, {false, true, true}},
  };
  for (const GoldenWindow& test : cases) {
    SCOPED_TRACE(test.name);
    const absl::StatusOr<ModelConfig> config = LoadModelConfig(
        std::string(TROUPE_SOURCE_DIR "/tests/goldens/") + test.name);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->sliding_window, test.window);
    EXPECT_EQ(config->is_moe_layer, test.moe);
  }
}

// Quantised checkpoints -----------------------------------------------------

constexpr WeightFormat kQuantizedFormats[] = {
    WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kInt4Zero};

// Widths that groups of 64 divide.
ModelConfig QuantizableConfig() {
  ModelConfig config = TinyConfig(Architecture::kMixtral, DataType::kBF16);
  config.hidden_size = 64;
  config.expert_intermediate_size = 128;
  return config;
}

std::string ExpertName(size_t layer, size_t expert, const char* projection) {
  return "model.layers." + std::to_string(layer) +
         ".block_sparse_moe.experts." + std::to_string(expert) + "." +
         projection + ".weight";
}

TEST(QuantizedCheckpointTest, MapsEveryFormat) {
  for (const WeightFormat format : kQuantizedFormats) {
    for (const size_t group_size : {32, 64}) {
      for (const size_t num_shards : {1, 4}) {
        SCOPED_TRACE(testing::Message() << Name(format) << " " << group_size);
        const TempDir dir;
        CheckpointBuilder builder(QuantizableConfig());
        const std::string name = ExpertName(1, 2, "w2");  // [64, 128]
        const std::string floats = builder.Find(name).bytes;
        builder.Quantize(name, format, group_size);
        builder.Write(dir.path(), num_shards);
        const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
        ASSERT_NE(checkpoint, nullptr);
        EXPECT_THAT(checkpoint->warnings(), IsEmpty());
        const absl::StatusOr<MappedTensor> tensor =
            checkpoint->MapExpert(1, 2, ExpertTensor::kDownProj);
        ASSERT_TRUE(tensor.ok()) << tensor.status();
        EXPECT_EQ(tensor->format(), format);
        EXPECT_EQ(tensor->shape(), (std::vector<size_t>{64, 128}));
        const StoredMatrix& matrix = tensor->matrix();
        EXPECT_EQ(matrix.n, 64u);
        EXPECT_EQ(matrix.k, 128u);
        EXPECT_EQ(matrix.group_size, group_size);
        const std::string& numbers = builder.Find(name).bytes;
        EXPECT_EQ(std::memcmp(matrix.numbers, numbers.data(), numbers.size()),
                  0);
        const std::string& scales = builder.Find(name + "_scale").bytes;
        EXPECT_EQ(std::memcmp(matrix.scales, scales.data(), scales.size()), 0);
        size_t num_bytes = numbers.size() + scales.size();
        if (format == WeightFormat::kInt4Zero) {
          const std::string& zeros = builder.Find(name + "_zero_point").bytes;
          EXPECT_EQ(std::memcmp(matrix.zeros, zeros.data(), zeros.size()), 0);
          num_bytes += zeros.size();
        } else {
          EXPECT_EQ(matrix.zeros, nullptr);
        }
        EXPECT_EQ(tensor->num_bytes(), num_bytes);
        // Near the floats, by far more than by chance.
        std::vector<float> values(64 * 128);
        CopyToFloat(*tensor, values.data());
        double error = 0, square = 0;
        for (size_t i = 0; i < values.size(); ++i) {
          uint16_t half;
          std::memcpy(&half, &floats[2 * i], 2);
          const double value = F32FromBF16(half);
          error += (value - values[i]) * (value - values[i]);
          square += value * value;
        }
        EXPECT_LT(error, square * (IsInt4(format) ? 0.01 : 1e-4));
      }
    }
  }
}

TEST(QuantizedCheckpointTest, FormatsMayDifferEverywhere) {
  const TempDir dir;
  CheckpointBuilder builder(QuantizableConfig());
  uint64_t plain = 0;
  for (const char* projection : {"w1", "w2", "w3"}) {
    plain += builder.Find(ExpertName(0, 0, projection)).bytes.size();
  }
  for (const char* projection : {"w1", "w3"}) {
    builder.Quantize(ExpertName(0, 1, projection), WeightFormat::kInt8, 32);
    builder.Quantize(ExpertName(0, 2, projection), WeightFormat::kInt4, 64);
    builder.Quantize(ExpertName(2, 1, projection), WeightFormat::kInt4Zero, 32);
  }
  builder.Quantize(ExpertName(0, 2, "w2"), WeightFormat::kInt8, 32);
  builder.Quantize("model.embed_tokens.weight", WeightFormat::kInt8, 32);
  builder.Quantize("lm_head.weight", WeightFormat::kInt4, 64);
  builder.Quantize("model.layers.1.self_attn.k_proj.weight",
                   WeightFormat::kInt4Zero, 64);
  builder.Write(dir.path(), 3);
  const std::unique_ptr<Checkpoint> checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  const auto format = [&](size_t layer, size_t expert, ExpertTensor which) {
    const auto tensor = checkpoint->MapExpert(layer, expert, which);
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    return tensor->format();
  };
  EXPECT_EQ(format(0, 0, ExpertTensor::kUpProj), WeightFormat::kBF16);
  EXPECT_EQ(format(0, 1, ExpertTensor::kUpProj), WeightFormat::kInt8);
  EXPECT_EQ(format(0, 1, ExpertTensor::kDownProj), WeightFormat::kBF16);
  EXPECT_EQ(format(0, 2, ExpertTensor::kGateProj), WeightFormat::kInt4);
  EXPECT_EQ(format(0, 2, ExpertTensor::kDownProj), WeightFormat::kInt8);
  EXPECT_EQ(format(2, 1, ExpertTensor::kUpProj), WeightFormat::kInt4Zero);
  EXPECT_EQ(checkpoint->MapModel(ModelTensor::kEmbedding)->format(),
            WeightFormat::kInt8);
  EXPECT_EQ(checkpoint->MapModel(ModelTensor::kLmHead)->format(),
            WeightFormat::kInt4);
  EXPECT_EQ(checkpoint->MapLayer(1, LayerTensor::kK)->format(),
            WeightFormat::kInt4Zero);

  const uint64_t matrix = 64 * 128;
  EXPECT_EQ(checkpoint->expert_bytes(0, 0), plain);
  EXPECT_EQ(checkpoint->expert_bytes(0, 1),
            2 * (matrix + matrix / 16) + 2 * matrix);
  EXPECT_EQ(checkpoint->expert_bytes(0, 2),
            2 * (matrix / 2 + matrix / 32) + matrix + matrix / 16);
  EXPECT_EQ(checkpoint->expert_bytes(2, 1),
            2 * (matrix / 2 + matrix / 16 + matrix / 32) + 2 * matrix);
  uint64_t total = 0;
  for (const auto& tensor : builder.tensors()) total += tensor.bytes.size();
  EXPECT_EQ(checkpoint->total_bytes(), total);
}

TEST(QuantizedCheckpointTest, FingerprintAndHashFollowTheFormat) {
  const auto open = [](const TempDir& dir, WeightFormat format,
                       size_t group_size) {
    CheckpointBuilder builder(QuantizableConfig());
    if (IsQuantized(format)) {
      builder.Quantize(ExpertName(1, 2, "w2"), format, group_size);
    }
    builder.Write(dir.path());
    return MustOpen(dir.path());
  };
  std::set<std::string> fingerprints, hashes;
  std::string other;
  size_t count = 0;
  for (const auto& [format, group_size] :
       {std::pair(WeightFormat::kBF16, 0), std::pair(WeightFormat::kInt8, 32),
        std::pair(WeightFormat::kInt8, 64), std::pair(WeightFormat::kInt4, 32),
        std::pair(WeightFormat::kInt4Zero, 32)}) {
    const TempDir dir;
    const auto checkpoint = open(dir, format, static_cast<size_t>(group_size));
    ASSERT_NE(checkpoint, nullptr);
    fingerprints.insert(checkpoint->fingerprint());
    hashes.insert(checkpoint->ExpertContentHash(1, 2).value());
    const std::string unchanged = checkpoint->ExpertContentHash(1, 3).value();
    if (count++ > 0) {
      EXPECT_EQ(unchanged, other);
    }
    other = unchanged;
  }
  EXPECT_EQ(fingerprints.size(), 5u);
  EXPECT_EQ(hashes.size(), 5u);
}

TEST(QuantizedCheckpointTest, HashCoversScalesAndZeroPoints) {
  const std::string name = ExpertName(1, 2, "w2");
  std::set<std::string> hashes;
  for (const char* part : {"", "_scale", "_zero_point"}) {
    const TempDir dir;
    CheckpointBuilder builder(QuantizableConfig());
    builder.Quantize(name, WeightFormat::kInt4Zero, 32);
    hashes.insert([&] {
      builder.Write(dir.path());
      return MustOpen(dir.path())->ExpertContentHash(1, 2).value();
    }());
    builder.Find(name + part).bytes[8] ^= 1;
    builder.Write(dir.path());
    hashes.insert(MustOpen(dir.path())->ExpertContentHash(1, 2).value());
  }
  EXPECT_EQ(hashes.size(), 4u);
}

// A fault, what the message must say, and whether opening already finds it.
struct QuantizedFault {
  const char* what;
  WeightFormat format;
  std::function<void(CheckpointBuilder&, const std::string& name)> edit;
  const char* message;
  bool when_mapped = false;
};

TEST(QuantizedCheckpointTest, RefusesWhatIsMalformed) {
  using Builder = CheckpointBuilder;
  using Text = const std::string&;
  const auto set_half = [](Builder::Tensor& tensor, size_t index,
                           uint16_t half) {
    std::memcpy(&tensor.bytes[2 * index], &half, 2);
  };
  const QuantizedFault faults[] = {
      {"no scales", WeightFormat::kInt8,
       [](Builder& b, Text name) { b.Remove(name + "_scale"); },
       "w2.weight_scale: missing"},
      {"no scales of int4", WeightFormat::kInt4Zero,
       [](Builder& b, Text name) { b.Remove(name + "_scale"); },
       "w2.weight_scale: missing"},
      {"scales of bfloat16", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         b.Find(name + "_scale").info.type = SafetensorsType::kBF16;
       },
       "w2.weight_scale: is BF16, must be F16"},
      {"scales of another number of rows", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         b.Find(name + "_scale").info.shape = {128, 2};
       },
       "w2.weight_scale: has shape [128, 2]"},
      {"scales as a vector", WeightFormat::kInt4,
       [](Builder& b, Text name) {
         b.Find(name + "_scale").info.shape = {256};
       },
       "w2.weight_scale: has shape [256]"},
      {"scales as a scalar", WeightFormat::kInt4,
       [](Builder& b, Text name) {
         b.Find(name + "_scale").info.shape = {};
         b.Find(name + "_scale").bytes.resize(2);
       },
       "w2.weight_scale: has shape []"},
      {"groups of 128", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         b.Find(name + "_scale").info.shape = {64, 1};
         b.Find(name + "_scale").bytes.resize(128);
       },
       "w2.weight_scale: has shape [64, 1]"},
      {"groups of 16", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         b.Find(name + "_scale").info.shape = {64, 8};
         b.Find(name + "_scale").bytes.resize(1024);
       },
       "w2.weight_scale: has shape [64, 8]"},
      {"no groups at all", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         b.Find(name + "_scale").info.shape = {64, 0};
         b.Find(name + "_scale").bytes.resize(0);
       },
       "w2.weight_scale: has shape [64, 0]"},
      {"numbers as a vector", WeightFormat::kInt8,
       [](Builder& b, Text name) { b.Find(name).info.shape = {64 * 128}; },
       "w2.weight: is I8 of shape [8192], must be a matrix"},
      {"numbers of another shape", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         b.Find(name).info.shape = {128, 64};
         b.Find(name + "_scale").info.shape = {128, 2};
       },
       "w2.weight: is int8 of shape [128, 64], config.json asks for [64, 128]"},
      {"int4 that are not packed", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         b.Find(name).info.type = SafetensorsType::kU8;
         b.Find(name + "_scale").info.shape = {64, 8};
         b.Find(name + "_scale").bytes.resize(1024);
       },
       "w2.weight: is int4 of shape [64, 256], config.json asks for [64, 128]"},
      {"zero points of int8", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         Builder::Tensor zeros = b.Find(name + "_scale");
         zeros.info.name = name + "_zero_point";
         b.tensors().push_back(zeros);
       },
       "w2.weight_zero_point: numbers that are I8 have no zero point"},
      {"zero points of int8_t", WeightFormat::kInt4Zero,
       [](Builder& b, Text name) {
         b.Find(name + "_zero_point").info.type = SafetensorsType::kI8;
       },
       "w2.weight_zero_point: is I8, must be U8"},
      {"zero points of another shape", WeightFormat::kInt4Zero,
       [](Builder& b, Text name) {
         b.Find(name + "_zero_point").info.shape = {128, 2};
       },
       "w2.weight_zero_point: has shape [128, 2], the scales have [64, 4]"},
      {"other integers", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         b.Find(name).info.type = SafetensorsType::kI16;
         b.Find(name).info.shape = {64, 64};
       },
       "w2.weight: has shape [64, 64]"},
      {"floats beside a scale", WeightFormat::kInt8,
       [](Builder& b, Text name) {
         Builder fresh(QuantizableConfig());
         b.Find(name) = fresh.Find(name);
       },
       "w2.weight: is BF16, but there is a"},
      {"gate int8, up not", WeightFormat::kInt8,
       [](Builder& b, Text) {
         b.Quantize(ExpertName(1, 2, "w1"), WeightFormat::kInt8, 32);
       },
       "w3.weight: is bfloat16, but"},
      {"gate in groups of 32, up of 64", WeightFormat::kInt8,
       [](Builder& b, Text) {
         b.Quantize(ExpertName(1, 2, "w1"), WeightFormat::kInt8, 32);
         b.Quantize(ExpertName(1, 2, "w3"), WeightFormat::kInt8, 64);
       },
       "w3.weight: is int8 in groups of 64, but"},
      {"a quantised router matrix", WeightFormat::kInt8,
       [](Builder& b, Text) {
         b.Quantize("model.layers.1.block_sparse_moe.gate.weight",
                    WeightFormat::kInt8, 32);
       },
       "gate.weight: is I8, config.json asks for BF16"},
      {"config.json says nothing", WeightFormat::kInt8,
       [](Builder& b, Text) { b.config().quantized = false; },
       "w2.weight: is I8, config.json asks for BF16"},

      {"negative scale", WeightFormat::kInt8,
       [&](Builder& b, Text name) {
         set_half(b.Find(name + "_scale"), 13, 0xbc00);
       },
       "w2.weight: row 3, group 1: the scale is -1", true},
      {"infinite scale", WeightFormat::kInt4,
       [&](Builder& b, Text name) {
         set_half(b.Find(name + "_scale"), 0, 0x7c00);
       },
       "w2.weight: row 0, group 0: the scale is inf", true},
      {"NaN as the last scale", WeightFormat::kInt4Zero,
       [&](Builder& b, Text name) {
         set_half(b.Find(name + "_scale"), 255, 0x7e00);
       },
       "w2.weight: row 63, group 3: the scale is nan", true},
      {"zero point 16", WeightFormat::kInt4Zero,
       [](Builder& b, Text name) {
         b.Find(name + "_zero_point").bytes[6] = 16;
       },
       "w2.weight: row 1, group 2: the zero point is 16", true},
      {"the number -128", WeightFormat::kInt8,
       [](Builder& b, Text name) { b.Find(name).bytes[8191] = '\x80'; },
       "w2.weight: row 63, column 127: the number is -128", true},
  };
  const std::string name = ExpertName(1, 2, "w2");
  for (const QuantizedFault& fault : faults) {
    SCOPED_TRACE(fault.what);
    const TempDir dir;
    CheckpointBuilder builder(QuantizableConfig());
    builder.Quantize(name, fault.format, 32);
    fault.edit(builder, name);
    builder.Write(dir.path());
    const auto checkpoint = Checkpoint::Open(dir.path());
    absl::Status status = checkpoint.status();
    if (fault.when_mapped) {
      ASSERT_TRUE(status.ok()) << status;
      status = (*checkpoint)->MapExpert(1, 2, ExpertTensor::kDownProj).status();
      EXPECT_EQ((*checkpoint)->ExpertContentHash(1, 2).status(), status);
    }
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(dir.File("model.safetensors")));
    EXPECT_THAT(std::string(status.message()), HasSubstr(fault.message));
  }
}

TEST(QuantizedCheckpointTest, DropsPagesOfRows) {
  const TempDir dir;
  ModelConfig config = QuantizableConfig();
  config.vocab_size = 4096;
  CheckpointBuilder builder(config);
  builder.Write(dir.path());
  const auto checkpoint = MustOpen(dir.path());
  ASSERT_NE(checkpoint, nullptr);
  const MappedTensor tensor = *checkpoint->MapModel(ModelTensor::kEmbedding);
  tensor.Populate();
  for (size_t begin = 0; begin < 4096; begin += 500) {
    tensor.DropPages(begin, std::min<size_t>(begin + 500, 4096));
  }
  tensor.DropPages(7, 7);
  EXPECT_EQ(
      std::string(static_cast<const char*>(tensor.data()), tensor.num_bytes()),
      builder.Find("model.embed_tokens.weight").bytes);
}

}  // namespace
}  // namespace troupe

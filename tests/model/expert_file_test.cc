// Checkpoint::OpenExperts: files that hold experts alone, right and wrong ones.
#include "tests/fakes/expert_file.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/file_hash.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

bool SomeExperts(size_t layer, size_t expert) {
  return expert == 1 || (layer == 2 && expert == 3);
}

class ExpertFileTest : public testing::Test {
 protected:
  explicit ExpertFileTest(DataType dtype = DataType::kF32)
      : builder_(TinyConfig(Architecture::kMixtral, dtype)),
        newer_(builder_.config(), /*seed=*/2) {
    builder_.Write(dir_.path());
    model_ = *Checkpoint::Open(dir_.path());
  }

  std::string path() const { return dir_.File("new.safetensors"); }
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() {
    return Checkpoint::OpenExperts(*model_, path());
  }
  // Opens the file and maps all that it holds.
  absl::Status Read() {
    const auto file = Open();
    if (!file.ok()) return file.status();
    for (const auto& [layer, expert] : (*file)->experts()) {
      for (const ExpertTensor which : kExpertTensors) {
        const auto tensor = (*file)->MapExpert(layer, expert, which);
        if (!tensor.ok()) return tensor.status();
      }
    }
    return absl::OkStatus();
  }
  void ExpectRefused(const BuiltTensors& tensors, const char* tensor,
                     const char* why) {
    WriteTensorFile(path(), tensors);
    const absl::Status status = Read();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(path()), HasSubstr(tensor), HasSubstr(why)));
  }

  TempDir dir_;
  CheckpointBuilder builder_;
  CheckpointBuilder newer_;
  std::unique_ptr<Checkpoint> model_;
};

TEST_F(ExpertFileTest, HoldsWhatWasWritten) {
  WriteTensorFile(path(), ExpertTensors(newer_, SomeExperts));
  const auto file = Open();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->experts(),
              ElementsAre(ExpertOfLayer{0, 1}, ExpertOfLayer{1, 1},
                          ExpertOfLayer{2, 1}, ExpertOfLayer{2, 3}));
  EXPECT_EQ((*file)->expert_bytes(2, 3), model_->expert_bytes(2, 3));
  EXPECT_EQ((*file)->expert_bytes(0, 3), 0u);
  const std::string name =
      SpecOf(model_->config(), 2, 3, ExpertTensor::kDownProj).name;
  const auto tensor = (*file)->MapExpert(2, 3, ExpertTensor::kDownProj);
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  const std::string& bytes = newer_.Find(name).bytes;
  EXPECT_EQ(std::memcmp(tensor->data(), bytes.data(), bytes.size()), 0);
  EXPECT_NE(*(*file)->ExpertContentHash(2, 3),
            *model_->ExpertContentHash(2, 3));
  EXPECT_EQ(*(*file)->FileHash(), *FileHash(path()));
}

TEST_F(ExpertFileTest, IsReadIntoMemory) {
  WriteTensorFile(path(), ExpertTensors(newer_, SomeExperts));
  const auto file = Open();
  ASSERT_TRUE(file.ok());
  const auto before = (*file)->MapExpert(0, 1, ExpertTensor::kUpProj);
  ASSERT_TRUE(before.ok());
  const float first = *static_cast<const float*>(before->data());
  std::filesystem::resize_file(path(), 100);
  // What was read stays; what comes after is an error, not a signal.
  EXPECT_EQ(*static_cast<const float*>(before->data()), first);
  EXPECT_FALSE((*file)->MapExpert(1, 1, ExpertTensor::kUpProj).ok());
  EXPECT_FALSE((*file)->FileHash().ok());
}

TEST_F(ExpertFileTest, RefusesWhatDoesNotFit) {
  const BuiltTensors good = ExpertTensors(newer_, SomeExperts);
  const std::string first = good[0].info.name;
  struct Case {
    const char* name;
    std::function<void(BuiltTensors&)> spoil;
    std::string tensor;
    const char* why;
  };
  const Case cases[] = {
      {"shape",
       [](BuiltTensors& t) {
         std::swap(t[0].info.shape[0], t[0].info.shape[1]);
       },
       first, "has shape"},
      {"dtype",
       [](BuiltTensors& t) {
         t[0].info.type = SafetensorsType::kBF16;
         t[0].bytes.resize(t[0].bytes.size() / 2);
       },
       first, "is BF16, config.json asks for F32"},
      {"no weights",
       [](BuiltTensors& t) { t[0].info.type = SafetensorsType::kI32; }, first,
       "is I32"},
      {"missing tensor", [](BuiltTensors& t) { t.erase(t.begin()); }, first,
       "missing"},
      {"unknown expert",
       [](BuiltTensors& t) {
         t[0].info.name = "model.layers.0.block_sparse_moe.experts.5.w1.weight";
       },
       "experts.5.w1", "is not of an expert of this model, which has 5"},
      {"unknown layer",
       [](BuiltTensors& t) {
         t.push_back(t[0]);
         t.back().info.name =
             "model.layers.3.block_sparse_moe.experts.1.w1.weight";
       },
       "layers.3", "is not of an expert of this model"},
      {"another tensor of the model",
       [this](BuiltTensors& t) {
         t.push_back(newer_.Find("model.embed_tokens.weight"));
       },
       "model.embed_tokens.weight", "is not of an expert of this model"},
      {"a scale",
       [](BuiltTensors& t) {
         t.push_back(t[0]);
         t.back().info.name += kScaleSuffix;
       },
       first + kScaleSuffix, "is not of an expert"},
      {"NaN",
       [](BuiltTensors& t) {
         const float nan = std::numeric_limits<float>::quiet_NaN();
         std::memcpy(&t[1].bytes[4 * 33], &nan, 4);
       },
       good[1].info.name, "row 1, column 1: the number is NaN or infinite"},
      {"infinity",
       [](BuiltTensors& t) {
         const float infinity = -std::numeric_limits<float>::infinity();
         std::memcpy(&t[2].bytes[0], &infinity, 4);
       },
       good[2].info.name, "row 0, column 0: the number is NaN or infinite"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    BuiltTensors tensors = good;
    c.spoil(tensors);
    ExpectRefused(tensors, c.tensor.c_str(), c.why);
  }
  // The largest finite number is fine.
  BuiltTensors tensors = good;
  const float largest = std::numeric_limits<float>::max();
  std::memcpy(&tensors[0].bytes[0], &largest, 4);
  WriteTensorFile(path(), tensors);
  EXPECT_TRUE(Read().ok());
}

TEST_F(ExpertFileTest, RefusesEmptyCutAndMissingFiles) {
  WriteTensorFile(path(), {});
  EXPECT_THAT(std::string(Open().status().message()),
              HasSubstr("holds no expert"));
  WriteTensorFile(path(), ExpertTensors(newer_, SomeExperts));
  const auto size = std::filesystem::file_size(path());
  for (const size_t cut : {size - 1, size / 2, size_t{12}, size_t{3}}) {
    std::filesystem::resize_file(path(), cut);
    const absl::Status status = Read();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path()));
  }
  std::filesystem::remove(path());
  EXPECT_TRUE(absl::IsNotFound(Open().status()));
}

TEST_F(ExpertFileTest, ChecksTheHashesOfTheMetadata) {
  const BuiltTensors tensors = ExpertTensors(newer_, SomeExperts);
  WriteTensorFile(path(), tensors,
                  {{Checkpoint::ContentHashKey(2, 3), "0123"}});
  const auto file = Open();
  ASSERT_TRUE(file.ok());
  const std::string hash = *(*file)->ExpertContentHash(2, 3);
  const absl::Status wrong = (*file)->CheckContentHash(2, 3, hash);
  EXPECT_TRUE(absl::IsInvalidArgument(wrong));
  EXPECT_THAT(std::string(wrong.message()),
              HasSubstr("expert 3 of layer 2 have the hash " + hash +
                        ", the file says 0123"));
  EXPECT_TRUE((*file)->CheckContentHash(2, 3, "0123").ok());
  EXPECT_TRUE((*file)->CheckContentHash(0, 1, "anything").ok());
}

class ExpertFileBf16Test : public ExpertFileTest {
 protected:
  ExpertFileBf16Test() : ExpertFileTest(DataType::kBF16) {}
};

TEST_F(ExpertFileBf16Test, FindsInfinities) {
  BuiltTensors tensors = ExpertTensors(newer_, SomeExperts);
  WriteTensorFile(path(), tensors);
  EXPECT_TRUE(Read().ok());
  const uint16_t infinity = 0xff80;
  std::memcpy(&tensors[5].bytes[2 * 7], &infinity, 2);
  ExpectRefused(tensors, tensors[5].info.name.c_str(),
                "row 0, column 7: the number is NaN or infinite");
}

// The format is that of the model, also within what the family allows.
TEST_F(ExpertFileTest, TheFormatIsTheModels) {
  CheckpointBuilder quantized(builder_.config());
  for (size_t layer = 0; layer < 3; ++layer) {
    // Of the others the inputs are no multiple of a group.
    for (const ExpertTensor which :
         {ExpertTensor::kGateProj, ExpertTensor::kUpProj}) {
      quantized.Quantize(SpecOf(builder_.config(), layer, 1, which).name,
                         WeightFormat::kInt8, 32);
    }
  }
  TempDir other;
  quantized.Write(other.path());
  const auto model = Checkpoint::Open(other.path());
  ASSERT_TRUE(model.ok()) << model.status();
  const auto one = [](size_t layer, size_t expert) {
    return layer == 0 && expert == 1;
  };
  WriteTensorFile(path(), ExpertTensors(quantized, one));
  EXPECT_TRUE(Checkpoint::OpenExperts(**model, path()).ok());
  EXPECT_THAT(std::string(Open().status().message()),
              HasSubstr("is I8, config.json asks for F32"));
  WriteTensorFile(path(), ExpertTensors(newer_, one));
  const absl::Status status = Checkpoint::OpenExperts(**model, path()).status();
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("experts.1.w1.weight"),
                    HasSubstr("the model has it as int8 in groups of 32")));
}

}  // namespace
}  // namespace troupe

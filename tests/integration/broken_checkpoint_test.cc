// A broken checkpoint ends the process with an error that names file and
// tensor, before it listens. The library's own tests sweep many more cases.
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/child_process.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using testing::HasSubstr;

struct BrokenCase {
  const char* name;
  // Breaks the copy of the checkpoint in the folder.
  std::function<void(const std::string& dir)> damage;
  std::vector<std::string> want;  // in the message
};

void Edit(const std::string& path, const std::string& from,
          const std::string& to) {
  const std::string text = ReadFile(path);
  ASSERT_NE(text.find(from), std::string::npos);
  WriteFile(path, absl::StrReplaceAll(text, {{from, to}}));
}

std::vector<BrokenCase> Cases() {
  return {
      {"truncated",
       [](const std::string& dir) {
         const std::string path = dir + "/model.safetensors";
         WriteFile(path, ReadFile(path).substr(0, 200000));
       },
       {"model.safetensors"}},
      {"header_length",
       [](const std::string& dir) {
         const std::string path = dir + "/model.safetensors";
         std::string bytes = ReadFile(path);
         for (int i = 0; i < 8; ++i) bytes[i] = '\xff';
         WriteFile(path, bytes);
       },
       {"model.safetensors", "header"}},
      {"missing_tensor",
       [](const std::string& dir) {
         Edit(dir + "/model.safetensors", "layers.1.mlp.experts.3.up_proj",
              "layers.1.mlp.experts.3.xx_proj");
       },
       {"model.layers.1.mlp.experts.3.up_proj.weight"}},
      {"wrong_shape",
       [](const std::string& dir) {
         Edit(dir + "/config.json", "\"intermediate_size\": 28",
              "\"intermediate_size\": 32");
       },
       {"model.safetensors", "experts.0."}},
      {"missing_file",
       [](const std::string& dir) {
         std::filesystem::remove(dir + "/model.safetensors");
       },
       {"model.safetensors"}},
      {"invalid_json",
       [](const std::string& dir) {
         WriteFile(dir + "/config.json", "{\"model_type\": \"olmoe\", ");
       },
       {"config.json"}},
      {"unknown_architecture",
       [](const std::string& dir) {
         Edit(dir + "/config.json", "\"olmoe\"", "\"quantum_moe\"");
       },
       {"config.json", "quantum_moe"}},
  };
}

class BrokenCheckpointTest : public testing::TestWithParam<BrokenCase> {};

TEST_P(BrokenCheckpointTest, NoServiceStarts) {
  TempDir dir;
  const std::string model = dir.File("model");
  std::filesystem::copy(TROUPE_SOURCE_DIR "/tests/goldens/olmoe_clip", model);
  GetParam().damage(model);
  const std::string socket = dir.File("socket");
  for (const char* binary : {"/troupe-expert", "/troupe-router"}) {
    std::vector<std::string> arguments = {
        TROUPE_BINARY_DIR + std::string(binary), model, "--listen",
        "unix:" + socket};
    if (binary == std::string("/troupe-router")) {
      arguments.insert(arguments.end(), {"--experts", "unix:/nowhere"});
    }
    const std::string log = dir.File(absl::StrCat("log-", binary + 1));
    ChildProcess process(arguments, log);
    EXPECT_EQ(process.Wait(), 1) << binary;
    for (const std::string& want : GetParam().want) {
      EXPECT_THAT(ReadFile(log), HasSubstr(want)) << binary;
    }
    EXPECT_FALSE(std::filesystem::exists(socket)) << binary;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, BrokenCheckpointTest,
                         testing::ValuesIn(Cases()), [](const auto& param) {
                           return std::string(param.param.name);
                         });

}  // namespace
}  // namespace troupe

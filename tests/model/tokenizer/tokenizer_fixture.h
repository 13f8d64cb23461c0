// Checkpoint folders for the tests of tokenizers.
#ifndef TROUPE_TESTS_MODEL_TOKENIZER_TOKENIZER_FIXTURE_H_
#define TROUPE_TESTS_MODEL_TOKENIZER_TOKENIZER_FIXTURE_H_

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "model/tokenizer/tokenizer.h"
#include "nlohmann/json.hpp"

namespace troupe {

inline std::string GoldenDir(const std::string& name) {
  return std::string(TROUPE_SOURCE_DIR) + "/tests/goldens/tokenizers/" + name;
}

inline std::string ReadTestFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline nlohmann::json ReadTestJson(const std::string& path) {
  return nlohmann::json::parse(ReadTestFile(path));
}

// A checkpoint folder that is removed with this object.
class ModelDir {
 public:
  ModelDir() {
    std::string path = testing::TempDir() + "tokenizer_XXXXXX";
    EXPECT_NE(mkdtemp(path.data()), nullptr);
    path_ = path;
  }
  ~ModelDir() { std::filesystem::remove_all(path_); }
  ModelDir(const ModelDir&) = delete;
  ModelDir& operator=(const ModelDir&) = delete;

  ModelDir& Write(const std::string& name, const std::string& contents) {
    std::ofstream(path_ + "/" + name, std::ios::binary) << contents;
    return *this;
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::unique_ptr<const Tokenizer> LoadOrDie(const std::string& dir) {
  auto tokenizer = Tokenizer::Load(dir);
  if (!tokenizer.ok()) {
    ADD_FAILURE() << tokenizer.status();
    std::abort();
  }
  return *std::move(tokenizer);
}

inline std::vector<int32_t> EncodeOrDie(
    const Tokenizer& tokenizer, const std::string& text,
    const Tokenizer::EncodeOptions& options) {
  auto ids = tokenizer.Encode(text, options);
  if (!ids.ok()) {
    ADD_FAILURE() << ids.status();
    std::abort();
  }
  return *std::move(ids);
}

}  // namespace troupe

#endif  // TROUPE_TESTS_MODEL_TOKENIZER_TOKENIZER_FIXTURE_H_

// Tensors of a safetensors file as vectors, for tests.
#ifndef TROUPE_TESTS_FAKES_GOLDEN_FILE_H_
#define TROUPE_TESTS_FAKES_GOLDEN_FILE_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "model/safetensors.h"

namespace troupe {

class GoldenFile {
 public:
  explicit GoldenFile(const std::string& path)
      : file_(*SafetensorsFile::Open(path)) {}

  bool Has(const std::string& name) const {
    return file_.Find(name) != nullptr;
  }
  std::vector<float> Floats(const std::string& name) const {
    return Read<float>(name);
  }
  std::vector<int32_t> Ints(const std::string& name) const {
    return Read<int32_t>(name);
  }

 private:
  template <typename T>
  std::vector<T> Read(const std::string& name) const {
    const TensorInfo* tensor = file_.Find(name);
    CHECK(tensor != nullptr);
    const std::string bytes = *file_.Read(*tensor);
    CHECK_EQ(bytes.size() % sizeof(T), 0u);
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  SafetensorsFile file_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_GOLDEN_FILE_H_

// Typed access to the keys of config.json for the families' parsers.
#ifndef TROUPE_MODEL_CONFIG_READER_H_
#define TROUPE_MODEL_CONFIG_READER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace troupe {

// Bounds of every size in a config. They are far above any published model and
// so low that a product of two of them, and the bytes of one tensor, fit into
// 64 bits.
inline constexpr size_t kMaxHiddenSize = size_t{1} << 20;
inline constexpr size_t kMaxIntermediateSize = size_t{1} << 22;
inline constexpr size_t kMaxLayers = size_t{1} << 12;
inline constexpr size_t kMaxHeads = size_t{1} << 14;
inline constexpr size_t kMaxHeadDim = size_t{1} << 13;
inline constexpr size_t kMaxVocabSize = size_t{1} << 26;
inline constexpr size_t kMaxPositions = size_t{1} << 30;
inline constexpr size_t kMaxExperts = size_t{1} << 16;
// Of a whole model, in elements.
inline constexpr uint64_t kMaxParameters = uint64_t{1} << 50;

// The first error sticks: a getter that fails returns something harmless, and
// status() tells at the end. A key with the value null counts as absent. Not
// thread-safe; does not own the JSON value.
class ConfigReader {
 public:
  // `what` names the object in messages ("config.json"). A value that is no
  // object is an error.
  ConfigReader(const nlohmann::json& object, std::string what);

  const absl::Status& status() const { return status_; }
  void Fail(absl::Status status) { status_.Update(std::move(status)); }
  // "what: key: why"
  void FailKey(const std::string& key, const std::string& why);
  void FailUnsupported(const std::string& key, const std::string& why);

  bool Has(const std::string& key) const { return Get(key) != nullptr; }
  // nullptr when absent or null.
  const nlohmann::json* Get(const std::string& key) const;
  // The first of the keys that is there, else the first one.
  std::string FirstOf(const std::vector<std::string>& keys) const;

  size_t Size(const std::string& key, size_t min, size_t max);
  size_t Size(const std::string& key, size_t min, size_t max, size_t absent);
  double Number(const std::string& key, double min, double max);
  double Number(const std::string& key, double min, double max, double absent);
  bool Bool(const std::string& key, bool absent);
  std::string String(const std::string& key, const std::string& absent);
  std::vector<size_t> Sizes(const std::string& key, size_t max_value,
                            size_t max_count);
  std::vector<std::string> Strings(const std::string& key, size_t max_count);

  const std::string& what() const { return what_; }

 private:
  const nlohmann::json* object_;
  std::string what_;
  absl::Status status_;
};

}  // namespace troupe

#endif  // TROUPE_MODEL_CONFIG_READER_H_

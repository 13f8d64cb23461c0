// A JSON value that knows where it stands, so that errors can name the file
// and the path.
#ifndef TROUPE_MODEL_TOKENIZER_JSON_VALUE_H_
#define TROUPE_MODEL_TOKENIZER_JSON_VALUE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace troupe::tokenizer {

// A view of a value inside a JsonDocument, which must outlive it. Copyable.
class JsonValue {
 public:
  JsonValue(const nlohmann::json* value, std::string where)
      : value_(value), where_(std::move(where)) {}

  const nlohmann::json& json() const { return *value_; }
  // "models/m/tokenizer.json: $.model.vocab"
  const std::string& where() const { return where_; }

  // InvalidArgument, or Unimplemented, with the place and the message.
  absl::Status Error(absl::string_view message) const;
  absl::Status Unsupported(absl::string_view message) const;

  // Members of an object. A null counts as absent.
  std::optional<JsonValue> Find(const std::string& name) const;
  absl::StatusOr<JsonValue> Get(const std::string& name) const;
  absl::StatusOr<std::string> GetString(const std::string& name) const;
  absl::StatusOr<bool> GetBool(const std::string& name, bool fallback) const;
  absl::StatusOr<int64_t> GetInt(const std::string& name, int64_t min,
                                 int64_t max) const;
  // Array under `name`.
  absl::StatusOr<std::vector<JsonValue>> GetArray(
      const std::string& name) const;

  absl::StatusOr<std::string> AsString() const;

 private:
  JsonValue Member(const std::string& name, const nlohmann::json* value) const;

  const nlohmann::json* value_;
  std::string where_;
};

// A parsed JSON file (see model/strict_json.h). Owns its values.
class JsonDocument {
 public:
  static absl::StatusOr<JsonDocument> Load(const std::string& path,
                                           size_t max_bytes);

  JsonValue root() const { return JsonValue(json_.get(), path_ + ": $"); }

 private:
  JsonDocument(std::string path, nlohmann::json json)
      : path_(std::move(path)),
        json_(std::make_unique<nlohmann::json>(std::move(json))) {}

  std::string path_;
  std::unique_ptr<nlohmann::json> json_;  // views point at it
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_JSON_VALUE_H_

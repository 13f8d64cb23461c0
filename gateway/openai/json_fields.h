// The members of a JSON object that a client sent.
#ifndef TROUPE_GATEWAY_OPENAI_JSON_FIELDS_H_
#define TROUPE_GATEWAY_OPENAI_JSON_FIELDS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace troupe {

// Reads members by name; null is the same as absent, unknown ones do not
// matter. The first one of a wrong type or out of range is the error, whose
// param is its name; what is read after it has no meaning. Refers to the
// object. One thread at a time.
class JsonFields {
 public:
  // path: of the object, empty for the outermost.
  JsonFields(const nlohmann::json& object, std::string path);

  // Null when absent.
  const nlohmann::json* Find(absl::string_view name) const;

  std::optional<bool> Bool(absl::string_view name);
  std::optional<double> Number(absl::string_view name);
  // Whole numbers within [low, high]; 2.0 is one, too.
  std::optional<int64_t> Integer(absl::string_view name, int64_t low,
                                 int64_t high);
  std::optional<std::string> Text(absl::string_view name);
  // Token ids: at most max_size whole numbers below 2^32.
  std::vector<uint32_t> TokenIds(absl::string_view name,
                                 const nlohmann::json& array, size_t max_size);
  // The member that is an object itself, for another JsonFields.
  const nlohmann::json* Object(absl::string_view name);

  void Fail(absl::string_view name, absl::string_view message);
  // The error of an inner one.
  void Adopt(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }
  const absl::Status& status() const { return status_; }
  std::string PathOf(absl::string_view name) const;

 private:
  const nlohmann::json& object_;
  const std::string path_;
  absl::Status status_;
};

// "a string" and the like, for messages.
const char* KindOf(const nlohmann::json& value);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_OPENAI_JSON_FIELDS_H_

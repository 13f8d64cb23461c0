#include "gateway/openai/json_fields.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/openai/api_error.h"

namespace troupe {
namespace {

constexpr double kMaxExact = 9007199254740992.0;  // 2^53

// Whole numbers in any spelling.
std::optional<int64_t> WholeNumber(const nlohmann::json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const auto number = value.get<double>();
  if (std::floor(number) != number || std::abs(number) > kMaxExact) {
    return std::nullopt;
  }
  return static_cast<int64_t>(number);
}

}  // namespace

const char* KindOf(const nlohmann::json& value) {
  switch (value.type()) {
    case nlohmann::json::value_t::object:
      return "an object";
    case nlohmann::json::value_t::array:
      return "an array";
    case nlohmann::json::value_t::string:
      return "a string";
    case nlohmann::json::value_t::boolean:
      return "a boolean";
    case nlohmann::json::value_t::null:
      return "null";
    default:
      return "a number";
  }
}

JsonFields::JsonFields(const nlohmann::json& object, std::string path)
    : object_(object), path_(std::move(path)) {}

const nlohmann::json* JsonFields::Find(absl::string_view name) const {
  const auto entry = object_.find(std::string(name));
  if (entry == object_.end() || entry->is_null()) return nullptr;
  return &*entry;
}

std::string JsonFields::PathOf(absl::string_view name) const {
  return path_.empty() ? std::string(name) : absl::StrCat(path_, ".", name);
}

void JsonFields::Fail(absl::string_view name, absl::string_view message) {
  if (!status_.ok()) return;
  const std::string path = PathOf(name);
  status_ = InvalidParam(path, absl::StrCat(path, " ", message));
}

std::optional<bool> JsonFields::Bool(absl::string_view name) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    Fail(name, absl::StrCat("is ", KindOf(*value), ", not a boolean"));
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<double> JsonFields::Number(absl::string_view name) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    Fail(name, absl::StrCat("is ", KindOf(*value), ", not a number"));
    return std::nullopt;
  }
  return value->get<double>();
}

std::optional<int64_t> JsonFields::Integer(absl::string_view name, int64_t low,
                                           int64_t high) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = WholeNumber(*value);
  if (!value->is_number()) {
    Fail(name, absl::StrCat("is ", KindOf(*value), ", not a whole number"));
    return std::nullopt;
  }
  if (!number || *number < low || *number > high) {
    Fail(name,
         absl::StrCat("is ", DumpJson(*value), "; allowed: whole numbers from ",
                      low, " to ", high));
    return std::nullopt;
  }
  return number;
}

std::optional<std::string> JsonFields::Text(absl::string_view name) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    Fail(name, absl::StrCat("is ", KindOf(*value), ", not a string"));
    return std::nullopt;
  }
  return value->get<std::string>();
}

std::vector<uint32_t> JsonFields::TokenIds(absl::string_view name,
                                           const nlohmann::json& array,
                                           size_t max_size) {
  std::vector<uint32_t> token_ids;
  if (array.size() > max_size) {
    Fail(name,
         absl::StrCat("has ", array.size(), " tokens; allowed: ", max_size));
    return token_ids;
  }
  token_ids.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    const std::optional<int64_t> number = WholeNumber(array[i]);
    if (!array[i].is_number() || !number || *number < 0 ||
        *number > UINT32_MAX) {
      Fail(name, absl::StrCat("has no token id at position ", i));
      return {};
    }
    token_ids.push_back(static_cast<uint32_t>(*number));
  }
  return token_ids;
}

const nlohmann::json* JsonFields::Object(absl::string_view name) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) {
    Fail(name, absl::StrCat("is ", KindOf(*value), ", not an object"));
    return nullptr;
  }
  return value;
}

}  // namespace troupe

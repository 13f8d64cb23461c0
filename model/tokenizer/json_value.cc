#include "model/tokenizer/json_value.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/strict_json.h"

namespace troupe::tokenizer {
absl::Status JsonValue::Error(absl::string_view message) const {
  return absl::InvalidArgumentError(absl::StrCat(where_, ": ", message));
}

absl::Status JsonValue::Unsupported(absl::string_view message) const {
  return absl::UnimplementedError(absl::StrCat(where_, ": ", message));
}

JsonValue JsonValue::Member(const std::string& name,
                            const nlohmann::json* value) const {
  return JsonValue(value, absl::StrCat(where_, ".", name));
}

std::optional<JsonValue> JsonValue::Find(const std::string& name) const {
  if (!value_->is_object()) return std::nullopt;
  const auto it = value_->find(name);
  if (it == value_->end() || it->is_null()) return std::nullopt;
  return Member(name, &*it);
}

absl::StatusOr<JsonValue> JsonValue::Get(const std::string& name) const {
  if (!value_->is_object()) return Error("is not an object");
  std::optional<JsonValue> member = Find(name);
  if (!member) return Error(absl::StrCat("has no \"", name, "\""));
  return *std::move(member);
}

absl::StatusOr<std::string> JsonValue::AsString() const {
  if (!value_->is_string()) return Error("is not a string");
  return value_->get_ref<const std::string&>();
}

absl::StatusOr<std::string> JsonValue::GetString(
    const std::string& name) const {
  ABSL_ASSIGN_OR_RETURN(const JsonValue member, Get(name));
  return member.AsString();
}

absl::StatusOr<bool> JsonValue::GetBool(const std::string& name,
                                        bool fallback) const {
  const std::optional<JsonValue> member = Find(name);
  if (!member) return fallback;
  if (!member->json().is_boolean()) {
    return member->Error("is not true or false");
  }
  return member->json().get<bool>();
}

absl::StatusOr<int64_t> JsonValue::GetInt(const std::string& name, int64_t min,
                                          int64_t max) const {
  ABSL_ASSIGN_OR_RETURN(const JsonValue member, Get(name));
  const nlohmann::json& value = member.json();
  const bool fits_int64 =
      value.is_number_integer() &&
      (!value.is_number_unsigned() ||
       value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
  if (!fits_int64 || value.get<int64_t>() < min || value.get<int64_t>() > max) {
    return member.Error(
        absl::StrCat("is not an integer from ", min, " to ", max));
  }
  return value.get<int64_t>();
}

absl::StatusOr<std::vector<JsonValue>> JsonValue::GetArray(
    const std::string& name) const {
  ABSL_ASSIGN_OR_RETURN(const JsonValue member, Get(name));
  if (!member.json().is_array()) return member.Error("is not an array");
  std::vector<JsonValue> values;
  values.reserve(member.json().size());
  for (const nlohmann::json& value : member.json()) {
    values.emplace_back(&value,
                        absl::StrCat(member.where(), "[", values.size(), "]"));
  }
  return values;
}

absl::StatusOr<JsonDocument> JsonDocument::Load(const std::string& path,
                                                size_t max_bytes) {
  ABSL_ASSIGN_OR_RETURN(nlohmann::json json, ReadJsonFile(path, max_bytes));
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": $: is not an object"));
  }
  return JsonDocument(path, std::move(json));
}

}  // namespace troupe::tokenizer

#include "model/config_reader.h"

#include <cmath>
#include <utility>

#include "model/strict_json.h"

namespace troupe {
namespace {

using nlohmann::json;

std::string Show(const json& value) {
  return Printable(value.dump(-1, ' ', false, json::error_handler_t::replace));
}

}  // namespace

ConfigReader::ConfigReader(const json& object, std::string what)
    : object_(&object), what_(std::move(what)) {
  if (!object.is_object()) {
    Fail(absl::InvalidArgumentError(absl::StrCat(what_, ": not an object")));
  }
}

void ConfigReader::FailKey(const std::string& key, const std::string& why) {
  Fail(absl::InvalidArgumentError(absl::StrCat(what_, ": ", key, ": ", why)));
}

void ConfigReader::FailUnsupported(const std::string& key,
                                   const std::string& why) {
  Fail(absl::UnimplementedError(absl::StrCat(what_, ": ", key, ": ", why)));
}

const json* ConfigReader::Get(const std::string& key) const {
  if (!object_->is_object()) return nullptr;
  const auto it = object_->find(key);
  if (it == object_->end() || it->is_null()) return nullptr;
  return &*it;
}

std::string ConfigReader::FirstOf(const std::vector<std::string>& keys) const {
  for (const std::string& key : keys) {
    if (Has(key)) return key;
  }
  return keys.front();
}

size_t ConfigReader::Size(const std::string& key, size_t min, size_t max) {
  if (!Has(key)) {
    FailKey(key, "missing");
    return min;
  }
  return Size(key, min, max, min);
}

size_t ConfigReader::Size(const std::string& key, size_t min, size_t max,
                          size_t absent) {
  const json* value = Get(key);
  if (value == nullptr) return absent;
  // A negative integer is not "unsigned", and one beyond 64 bits is a float.
  if (value->is_number_unsigned()) {
    const uint64_t number = value->get<uint64_t>();
    if (number >= min && number <= max) return number;
  }
  FailKey(key, absl::StrCat("must be an integer from ", min, " to ", max,
                            ", is ", Show(*value)));
  return min;
}

double ConfigReader::Number(const std::string& key, double min, double max) {
  if (!Has(key)) {
    FailKey(key, "missing");
    return min;
  }
  return Number(key, min, max, min);
}

double ConfigReader::Number(const std::string& key, double min, double max,
                            double absent) {
  const json* value = Get(key);
  if (value == nullptr) return absent;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number >= min && number <= max) {
      return number;
    }
  }
  FailKey(key, absl::StrCat("must be a number from ", min, " to ", max, ", is ",
                            Show(*value)));
  return min;
}

bool ConfigReader::Bool(const std::string& key, bool absent) {
  const json* value = Get(key);
  if (value == nullptr) return absent;
  if (value->is_boolean()) return value->get<bool>();
  FailKey(key, absl::StrCat("must be true or false, is ", Show(*value)));
  return absent;
}

std::string ConfigReader::String(const std::string& key,
                                 const std::string& absent) {
  const json* value = Get(key);
  if (value == nullptr) return absent;
  if (value->is_string()) return value->get<std::string>();
  FailKey(key, absl::StrCat("must be a string, is ", Show(*value)));
  return absent;
}

std::vector<size_t> ConfigReader::Sizes(const std::string& key,
                                        size_t max_value, size_t max_count) {
  std::vector<size_t> sizes;
  const json* value = Get(key);
  if (value == nullptr) return sizes;
  if (!value->is_array() || value->size() > max_count) {
    FailKey(key,
            absl::StrCat("must be a list of at most ", max_count, " integers"));
    return sizes;
  }
  for (const json& element : *value) {
    if (!element.is_number_unsigned() || element.get<uint64_t>() > max_value) {
      FailKey(key, absl::StrCat("must hold integers from 0 to ", max_value,
                                ", holds ", Show(element)));
      return {};
    }
    sizes.push_back(element.get<uint64_t>());
  }
  return sizes;
}

std::vector<std::string> ConfigReader::Strings(const std::string& key,
                                               size_t max_count) {
  std::vector<std::string> strings;
  const json* value = Get(key);
  if (value == nullptr) return strings;
  if (!value->is_array() || value->size() > max_count) {
    FailKey(key,
            absl::StrCat("must be a list of at most ", max_count, " strings"));
    return strings;
  }
  for (const json& element : *value) {
    if (!element.is_string()) {
      FailKey(key, absl::StrCat("must hold strings, holds ", Show(element)));
      return {};
    }
    strings.push_back(element.get<std::string>());
  }
  return strings;
}

}  // namespace troupe

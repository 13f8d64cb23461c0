#include "gateway/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/config_reader.h"
#include "model/strict_json.h"

namespace troupe {
namespace {

using nlohmann::json;

constexpr size_t kMaxNameBytes = 64;

// Something that security depends on must not be misspelt.
void RefuseUnknown(const json& object, const std::set<std::string>& known,
                   ConfigReader& reader) {
  if (!object.is_object()) return;  // the reader has refused it
  for (const auto& [field, value] : object.items()) {
    if (known.count(field) == 0) {
      reader.FailKey(Printable(field), "there is no such field");
    } else if (value.is_null()) {
      reader.FailKey(field, "is null; leave it out");
    }
  }
}

absl::StatusOr<ApiKeyHash> ParseHash(const std::string& hex) {
  ApiKeyHash hash = {};
  if (hex.size() != 2 * hash.size() ||
      !std::all_of(hex.begin(), hex.end(), absl::ascii_isxdigit)) {
    return absl::InvalidArgumentError("is not 64 hex digits");
  }
  const std::string bytes = absl::HexStringToBytes(hex);
  std::copy(bytes.begin(), bytes.end(), hash.begin());
  return hash;
}

KeyLimits ParseLimits(const json& object, const std::string& what,
                      absl::Status& status) {
  ConfigReader reader(object, what);
  RefuseUnknown(object,
                {"requests_per_minute", "tokens_per_minute", "max_concurrent",
                 "priority"},
                reader);
  KeyLimits limits;
  // 0 would be read as "none" by some and as "no limit" by others.
  if (reader.Has("requests_per_minute")) {
    limits.requests_per_minute =
        reader.Size("requests_per_minute", 1, kMaxPerMinute);
  }
  if (reader.Has("tokens_per_minute")) {
    limits.tokens_per_minute =
        reader.Size("tokens_per_minute", 1, kMaxPerMinute);
  }
  if (reader.Has("max_concurrent")) {
    limits.max_concurrent = static_cast<uint32_t>(
        reader.Size("max_concurrent", 1, kMaxKeyConcurrent));
  }
  limits.priority = static_cast<uint32_t>(
      reader.Size("priority", 0, kMaxPriority, kDefaultPriority));
  status.Update(reader.status());
  return limits;
}

absl::StatusOr<ApiKey> ParseKey(const json& object, const std::string& what) {
  ConfigReader reader(object, what);
  RefuseUnknown(object,
                {"name", "sha256", "role", "limits", "expires", "disabled"},
                reader);
  ApiKey key;
  key.name = reader.String("name", "");
  if (const absl::Status status = CheckKeyName(key.name); !status.ok()) {
    reader.FailKey("name", std::string(status.message()));
  }
  const absl::StatusOr<ApiKeyHash> hash =
      ParseHash(reader.String("sha256", ""));
  if (hash.ok()) {
    key.sha256 = *hash;
  } else {
    reader.FailKey("sha256", std::string(hash.status().message()));
  }
  const std::string role = reader.String("role", "client");
  if (role == "admin") {
    key.role = KeyRole::kAdmin;
  } else if (role != "client") {
    reader.FailKey("role", "is neither \"client\" nor \"admin\"");
  }
  if (reader.Has("expires")) {
    const absl::StatusOr<absl::Time> expires =
        ParseExpiry(reader.String("expires", ""));
    if (expires.ok()) {
      key.expires = *expires;
    } else {
      reader.FailKey("expires", std::string(expires.status().message()));
    }
  }
  key.disabled = reader.Bool("disabled", false);
  absl::Status status = reader.status();
  if (const json* limits = reader.Get("limits"); limits != nullptr) {
    key.limits = ParseLimits(*limits, absl::StrCat(what, ": limits"), status);
  }
  if (!status.ok()) return status;
  return key;
}

}  // namespace

ApiKeyHash HashApiKey(absl::string_view key) {
  ApiKeyHash hash = {};
  unsigned int num_bytes = 0;
  CHECK(EVP_Digest(key.data(), key.size(), hash.data(), &num_bytes,
                   EVP_sha256(), nullptr) == 1);
  CHECK_EQ(num_bytes, hash.size());
  return hash;
}

absl::Status CheckKeyName(absl::string_view name) {
  const bool good =
      !name.empty() && name.size() <= kMaxNameBytes &&
      std::all_of(name.begin(), name.end(), [](unsigned char c) {
        return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
      });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", Printable(std::string(name)), "\" is not 1 to ",
                   kMaxNameBytes, " letters, digits, '.', '_' and '-'"));
}

absl::StatusOr<absl::Time> ParseExpiry(absl::string_view text) {
  absl::Time time;
  std::string error;
  if (!absl::ParseTime(absl::RFC3339_full, text, &time, &error) ||
      time == absl::InfiniteFuture() || time == absl::InfinitePast()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", Printable(std::string(text)),
                     "\" is not a time like 2027-01-31T00:00:00Z"));
  }
  return time;
}

const char* KeyRoleName(KeyRole role) {
  return role == KeyRole::kAdmin ? "admin" : "client";
}

absl::StatusOr<ApiKeys> ApiKeys::Parse(const std::string& text,
                                       const std::string& what) {
  ABSL_ASSIGN_OR_RETURN(const json root, ParseStrictJson(text, what));
  ConfigReader reader(root, what);
  RefuseUnknown(root, {"keys"}, reader);
  ABSL_RETURN_IF_ERROR(reader.status());
  const json* list = reader.Get("keys");
  if (list == nullptr || !list->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": keys: is not an array"));
  }
  if (list->size() > kMaxApiKeys) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, ": keys: ", list->size(), " keys, at most ", kMaxApiKeys));
  }
  std::vector<ApiKey> keys;
  std::set<std::string> names;
  std::set<ApiKeyHash> hashes;
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string where = absl::StrCat(what, ": keys[", i, "]");
    ABSL_ASSIGN_OR_RETURN(ApiKey key, ParseKey((*list)[i], where));
    if (!names.insert(key.name).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": name: \"", key.name, "\" is another key's, too"));
    }
    if (!hashes.insert(key.sha256).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": sha256: is another key's, too"));
    }
    keys.push_back(std::move(key));
  }
  return ApiKeys(std::move(keys));
}

absl::StatusOr<ApiKeys> ApiKeys::Read(const std::string& path) {
  ABSL_ASSIGN_OR_RETURN(const std::string text,
                        ReadSmallFile(path, kMaxKeyFileBytes));
  return Parse(text, path);
}

int ApiKeys::Find(absl::string_view presented) const {
  if (presented.empty() || presented.size() > kMaxApiKeyBytes) return -1;
  const ApiKeyHash hash = HashApiKey(presented);
  int found = -1;
  for (size_t i = 0; i < keys_.size(); ++i) {
    const bool equal =
        CRYPTO_memcmp(hash.data(), keys_[i].sha256.data(), hash.size()) == 0;
    found = equal ? static_cast<int>(i) : found;
  }
  return found;
}

std::string FormatApiKeys(const std::vector<ApiKey>& keys) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ApiKey& key : keys) {
    nlohmann::ordered_json object;
    object["name"] = key.name;
    object["sha256"] = absl::BytesToHexString(absl::string_view(
        reinterpret_cast<const char*>(key.sha256.data()), key.sha256.size()));
    object["role"] = KeyRoleName(key.role);
    if (key.expires != absl::InfiniteFuture()) {
      object["expires"] = absl::FormatTime(absl::RFC3339_full, key.expires,
                                           absl::UTCTimeZone());
    }
    if (key.disabled) object["disabled"] = true;
    nlohmann::ordered_json limits = nlohmann::ordered_json::object();
    if (key.limits.requests_per_minute > 0) {
      limits["requests_per_minute"] = key.limits.requests_per_minute;
    }
    if (key.limits.tokens_per_minute > 0) {
      limits["tokens_per_minute"] = key.limits.tokens_per_minute;
    }
    if (key.limits.max_concurrent > 0) {
      limits["max_concurrent"] = key.limits.max_concurrent;
    }
    limits["priority"] = key.limits.priority;
    object["limits"] = std::move(limits);
    list.push_back(std::move(object));
  }
  nlohmann::ordered_json root;
  root["keys"] = std::move(list);
  return root.dump(2) + "\n";
}

}  // namespace troupe

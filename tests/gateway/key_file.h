// Files of API keys for tests.
#ifndef TROUPE_TESTS_GATEWAY_KEY_FILE_H_
#define TROUPE_TESTS_GATEWAY_KEY_FILE_H_

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gateway/api_keys.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {

// The key of that name, whose secret is `secret` or "trp-NAME".
inline ApiKey TestKey(const std::string& name, KeyLimits limits = {},
                      KeyRole role = KeyRole::kClient,
                      const std::string& secret = "") {
  ApiKey key;
  key.name = name;
  key.sha256 = HashApiKey(secret.empty() ? absl::StrCat("trp-", name) : secret);
  key.limits = limits;
  key.role = role;
  return key;
}

// A file that is replaced at once, as editors and Kubernetes do.
class KeyFile {
 public:
  explicit KeyFile(const std::vector<ApiKey>& keys) { Set(keys); }

  void Set(const std::vector<ApiKey>& keys) { SetText(FormatApiKeys(keys)); }
  void SetText(const std::string& text) {
    WriteFile(dir_.File("new"), text);
    std::filesystem::rename(dir_.File("new"), path());
  }
  std::string path() const { return dir_.File("keys.json"); }

 private:
  TempDir dir_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_GATEWAY_KEY_FILE_H_

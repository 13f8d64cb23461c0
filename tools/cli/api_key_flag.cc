#include "tools/cli/api_key_flag.h"

#include <algorithm>
#include <cstdlib>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "gateway/api_keys.h"
#include "model/strict_json.h"

namespace troupe {
namespace {

// What is wrong with it, never the key itself.
const char* FaultOf(const std::string& key) {
  if (key.empty()) return "is empty";
  if (key.size() > kMaxApiKeyBytes) return "is too long for an API key";
  const bool visible = std::all_of(key.begin(), key.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c));
  });
  return visible ? nullptr : "is not one API key alone";
}

void TakeFile(const std::string& path, std::string& api_key) {
  const absl::StatusOr<std::string> text = ReadSmallFile(path, 64 << 10);
  if (!text.ok()) {
    throw CLI::ValidationError("--api-key-file",
                               std::string(text.status().message()));
  }
  api_key = std::string(absl::StripAsciiWhitespace(*text));
  if (const char* fault = FaultOf(api_key); fault != nullptr) {
    throw CLI::ValidationError("--api-key-file",
                               absl::StrCat(path, " ", fault));
  }
}

}  // namespace

void AddApiKeyFlag(CLI::App& app, std::string& api_key) {
  const char* given = std::getenv("TROUPE_API_KEY");
  if (given != nullptr)
    api_key = std::string(absl::StripAsciiWhitespace(given));
  app.add_option_function<std::string>(
         "--api-key-file",
         [&api_key](const std::string& path) { TakeFile(path, api_key); },
         "File with the API key to call with; default: the key in "
         "TROUPE_API_KEY")
      ->envname("TROUPE_API_KEY_FILE");
}

}  // namespace troupe

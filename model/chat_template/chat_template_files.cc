#include "model/chat_template/chat_template_files.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/limits.h"
#include "model/strict_json.h"

namespace troupe {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = size_t{16} << 20;
constexpr const char* kTokenNames[] = {"bos_token", "eos_token", "unk_token",
                                       "sep_token", "pad_token", "cls_token",
                                       "mask_token"};

// A template and where it stands.
struct Source {
  std::string text;
  std::string where;
};

// An empty object when the file is not there.
absl::StatusOr<json> ReadObject(const std::string& path) {
  absl::StatusOr<json> value = ReadJsonFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(value.status())) return json::object();
  ABSL_RETURN_IF_ERROR(value.status());
  if (!value->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a JSON object"));
  }
  return value;
}

// The key chat_template: a text, or a list of named texts.
absl::StatusOr<std::optional<Source>> TemplateIn(const json& config,
                                                 const std::string& path) {
  const auto entry = config.find("chat_template");
  if (entry == config.end() || entry->is_null()) return std::nullopt;
  const std::string where = absl::StrCat(path, ": chat_template");
  if (entry->is_string()) {
    return Source{entry->get<std::string>(), where};
  }
  if (!entry->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, " is neither a text nor a list"));
  }
  std::optional<Source> found;
  for (size_t i = 0; i < entry->size(); ++i) {
    const json& item = (*entry)[i];
    const bool is_named =
        item.is_object() && item.contains("name") && item["name"].is_string() &&
        item.contains("template") && item["template"].is_string();
    if (!is_named) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, "[", i, "] has no name and template"));
    }
    if (item["name"] == "default") {
      found = Source{item["template"].get<std::string>(),
                     absl::StrCat(where, " \"default\"")};
    }
  }
  return found;
}

absl::StatusOr<std::optional<Source>> FindSource(const std::string& model_dir,
                                                 const json& tokenizer_config,
                                                 const std::string& path) {
  const std::string jinja_path =
      absl::StrCat(model_dir, "/chat_template.jinja");
  absl::StatusOr<std::string> text =
      ReadSmallFile(jinja_path, jinja::kMaxTemplateBytes);
  if (text.ok()) return Source{*std::move(text), jinja_path};
  if (!absl::IsNotFound(text.status())) return text.status();
  ABSL_ASSIGN_OR_RETURN(std::optional<Source> source,
                        TemplateIn(tokenizer_config, path));
  if (source) return source;
  const std::string own_path = absl::StrCat(model_dir, "/chat_template.json");
  ABSL_ASSIGN_OR_RETURN(const json own, ReadObject(own_path));
  return TemplateIn(own, own_path);
}

// A token as a text, or as an object with its "content". What `tokens` has
// stays.
absl::Status AddTokens(const json& config, const std::string& path,
                       ChatTemplate::Tokens* tokens) {
  for (const char* name : kTokenNames) {
    const auto entry = config.find(name);
    if (entry == config.end() || entry->is_null()) continue;
    const json& text = entry->is_object() && entry->contains("content")
                           ? (*entry)["content"]
                           : *entry;
    if (!text.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", name, " is no text"));
    }
    tokens->emplace(name, text.get<std::string>());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::optional<LoadedChatTemplate>> LoadChatTemplate(
    const std::string& model_dir) {
  const std::string config_path =
      absl::StrCat(model_dir, "/tokenizer_config.json");
  ABSL_ASSIGN_OR_RETURN(const json config, ReadObject(config_path));
  ABSL_ASSIGN_OR_RETURN(const std::optional<Source> source,
                        FindSource(model_dir, config, config_path));
  if (!source || source->text.empty()) return std::nullopt;
  ChatTemplate::Tokens tokens;
  ABSL_RETURN_IF_ERROR(AddTokens(config, config_path, &tokens));
  const std::string map_path =
      absl::StrCat(model_dir, "/special_tokens_map.json");
  ABSL_ASSIGN_OR_RETURN(const json map, ReadObject(map_path));
  ABSL_RETURN_IF_ERROR(AddTokens(map, map_path, &tokens));
  absl::StatusOr<ChatTemplate> compiled =
      ChatTemplate::Compile(source->text, std::move(tokens));
  if (!compiled.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source->where, ": ", compiled.status().message()));
  }
  return LoadedChatTemplate{source->text, *std::move(compiled)};
}

}  // namespace troupe

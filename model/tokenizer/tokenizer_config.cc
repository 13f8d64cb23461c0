#include "model/tokenizer/tokenizer_config.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/tokenizer/json_value.h"

namespace troupe::tokenizer {
namespace {

constexpr size_t kMaxFileBytes = size_t{16} << 20;

absl::StatusOr<std::optional<JsonDocument>> LoadIfThere(
    const std::string& path) {
  auto document = JsonDocument::Load(path, kMaxFileBytes);
  if (absl::IsNotFound(document.status())) return std::nullopt;
  ABSL_RETURN_IF_ERROR(document.status());
  return std::optional<JsonDocument>(*std::move(document));
}

// A token as a string, or as an object with its "content".
absl::StatusOr<std::optional<int32_t>> FindToken(
    const JsonValue& root, const std::string& name,
    const std::function<int32_t(absl::string_view)>& find_token) {
  const std::optional<JsonValue> value = root.Find(name);
  if (!value) return std::nullopt;
  ABSL_ASSIGN_OR_RETURN(const std::string text,
                        value->json().is_object() ? value->GetString("content")
                                                  : value->AsString());
  const int32_t id = find_token(text);
  if (id < 0) {
    return value->Error(absl::StrCat("\"", absl::Utf8SafeCEscape(text),
                                     "\" is not in the vocabulary"));
  }
  return id;
}

// An id, or the first one of an array. Ids that the tokenizer does not have
// count as absent: a model may have more logits than tokens.
std::optional<int32_t> FindId(const JsonValue& root, const std::string& name,
                              int32_t end_id) {
  const std::optional<JsonValue> value = root.Find(name);
  if (!value) return std::nullopt;
  const nlohmann::json* json = &value->json();
  if (json->is_array() && !json->empty()) json = &(*json)[0];
  if (!json->is_number_unsigned() ||
      json->get<uint64_t>() >= static_cast<uint64_t>(end_id)) {
    return std::nullopt;
  }
  return json->get<int32_t>();
}

absl::StatusOr<std::optional<bool>> FindBool(const JsonValue& root,
                                             const std::string& name) {
  if (!root.Find(name)) return std::nullopt;
  ABSL_ASSIGN_OR_RETURN(const bool value, root.GetBool(name, false));
  return std::optional<bool>(value);
}

void Apply(std::optional<bool> add, std::optional<int32_t> id, bool at_front,
           std::vector<int32_t>* ids) {
  if (!add || !id) return;
  const bool has = std::find(ids->begin(), ids->end(), *id) != ids->end();
  if (*add && !has) {
    ids->insert(at_front ? ids->begin() : ids->end(), *id);
  } else if (!*add && has) {
    ids->erase(std::remove(ids->begin(), ids->end(), *id), ids->end());
  }
}

}  // namespace

absl::StatusOr<TokenizerConfig> TokenizerConfig::Load(
    const std::string& model_dir,
    const std::function<int32_t(absl::string_view)>& find_token,
    int32_t end_id) {
  TokenizerConfig config;
  ABSL_ASSIGN_OR_RETURN(
      const std::optional<JsonDocument> own,
      LoadIfThere(absl::StrCat(model_dir, "/tokenizer_config.json")));
  if (own) {
    const JsonValue root = own->root();
    ABSL_ASSIGN_OR_RETURN(config.bos_token_id,
                          FindToken(root, "bos_token", find_token));
    ABSL_ASSIGN_OR_RETURN(config.eos_token_id,
                          FindToken(root, "eos_token", find_token));
    ABSL_ASSIGN_OR_RETURN(config.add_bos, FindBool(root, "add_bos_token"));
    ABSL_ASSIGN_OR_RETURN(config.add_eos, FindBool(root, "add_eos_token"));
    if (root.Find("tokenizer_class")) {
      ABSL_ASSIGN_OR_RETURN(const std::string name,
                            root.GetString("tokenizer_class"));
      config.is_llama =
          name == "LlamaTokenizer" || name == "LlamaTokenizerFast";
    }
  }
  if (config.bos_token_id && config.eos_token_id) return config;
  ABSL_ASSIGN_OR_RETURN(const std::optional<JsonDocument> model,
                        LoadIfThere(absl::StrCat(model_dir, "/config.json")));
  if (model) {
    const JsonValue root = model->root();
    // A tokenizer_config.json that says null means that there is none.
    const auto fill = [&](const char* token, const std::string& name,
                          std::optional<int32_t>* id) {
      if (*id || (own && own->root().json().contains(token))) return;
      *id = FindId(root, name, end_id);
    };
    fill("bos_token", "bos_token_id", &config.bos_token_id);
    fill("eos_token", "eos_token_id", &config.eos_token_id);
  }
  return config;
}

void TokenizerConfig::ApplyTo(std::vector<int32_t>* prefix,
                              std::vector<int32_t>* suffix) const {
  Apply(add_bos, bos_token_id, /*at_front=*/true, prefix);
  Apply(add_eos, eos_token_id, /*at_front=*/false, suffix);
}

}  // namespace troupe::tokenizer

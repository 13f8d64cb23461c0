// Finds a checkpoint folder's chat template.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_CHAT_TEMPLATE_FILES_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_CHAT_TEMPLATE_FILES_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "model/chat_template/chat_template.h"

namespace troupe {

struct LoadedChatTemplate {
  std::string source;
  ChatTemplate compiled;
};

// chat_template.jinja, else the key chat_template of tokenizer_config.json,
// else that of chat_template.json, with the special tokens of
// tokenizer_config.json and special_tokens_map.json. Where there are several
// templates by name, "default" counts. Nothing when the checkpoint has none;
// InvalidArgument names the file, and in a template the line and what is wrong
// or not supported there.
absl::StatusOr<std::optional<LoadedChatTemplate>> LoadChatTemplate(
    const std::string& model_dir);

}  // namespace troupe

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_CHAT_TEMPLATE_FILES_H_

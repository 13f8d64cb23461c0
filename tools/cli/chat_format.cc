#include "tools/cli/chat_format.h"

#include "absl/strings/match.h"

namespace troupe {

v1::ChatMessage NewMessage(const std::string& role,
                           const std::string& content) {
  v1::ChatMessage message;
  message.set_role(role);
  message.set_content(content);
  return message;
}

std::string PlainChat(const std::vector<v1::ChatMessage>& messages) {
  std::string text;
  for (const v1::ChatMessage& message : messages) {
    if (message.role() == "user" && !text.empty() &&
        !absl::EndsWith(text, "\n")) {
      text += '\n';
    }
    text += message.content();
  }
  return text;
}

}  // namespace troupe

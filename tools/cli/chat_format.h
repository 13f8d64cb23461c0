// How a conversation is written down for a model: pure functions.
#ifndef TROUPE_TOOLS_CLI_CHAT_FORMAT_H_
#define TROUPE_TOOLS_CLI_CHAT_FORMAT_H_

#include <string>
#include <vector>

namespace troupe {

enum class ChatFormat {
  kPlain,    // no template: the text simply goes on
  kChatMl,   // <|im_start|>role ... <|im_end|>
  kLlama3,   // <|start_header_id|>role<|end_header_id|> ... <|eot_id|>
  kMistral,  // [INST] ... [/INST] ... </s>
  kUnknown,  // a template that is none of these
};
const char* Name(ChatFormat format);

// Recognises the format by the control texts that a template contains.
ChatFormat DetectChatFormat(const std::string& chat_template);

struct ChatMessage {
  enum class Role { kSystem, kUser, kAssistant };
  Role role = Role::kUser;
  std::string content;
};

// A part of the text to be tokenized on its own. Only parts of the format
// itself may become control tokens, so that nobody can forge a turn by typing
// one.
struct ChatSegment {
  std::string text;
  bool is_control = false;
  bool operator==(const ChatSegment&) const = default;
};

// The conversation up to where the assistant's next words begin. A leading
// beginning-of-text token is left to the tokenizer. kPlain writes the
// contents one after the other, a user's next one on a new line; kMistral puts
// a system message before the first user message. kUnknown is treated as
// kPlain.
std::vector<ChatSegment> FormatChat(ChatFormat format,
                                    const std::vector<ChatMessage>& messages);

// Texts that end the assistant's turn, besides the model's own end token.
std::vector<std::string> ChatStops(ChatFormat format);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_CHAT_FORMAT_H_

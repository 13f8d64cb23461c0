#include "tools/cli/chat_format.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace troupe {
namespace {

std::string RoleName(ChatMessage::Role role) {
  switch (role) {
    case ChatMessage::Role::kSystem:
      return "system";
    case ChatMessage::Role::kUser:
      return "user";
    case ChatMessage::Role::kAssistant:
      return "assistant";
  }
  return "";
}

// Segments of one kind next to each other become one: they are tokenized
// together, as in the text as a whole.
class Writer {
 public:
  void Control(const std::string& text) { Add(text, true); }
  void Text(const std::string& text) { Add(text, false); }
  std::vector<ChatSegment> Take() { return std::move(segments_); }

 private:
  void Add(const std::string& text, bool is_control) {
    if (text.empty()) return;
    if (!segments_.empty() && segments_.back().is_control == is_control) {
      segments_.back().text += text;
    } else {
      segments_.push_back({text, is_control});
    }
  }
  std::vector<ChatSegment> segments_;
};

std::string Trimmed(const std::string& text) {
  return std::string(absl::StripAsciiWhitespace(text));
}

void WriteChatMl(const std::vector<ChatMessage>& messages, Writer& out) {
  for (const ChatMessage& message : messages) {
    out.Control("<|im_start|>");
    out.Text(absl::StrCat(RoleName(message.role), "\n", message.content));
    out.Control("<|im_end|>");
    out.Text("\n");
  }
  out.Control("<|im_start|>");
  out.Text("assistant\n");
}

void WriteLlama3(const std::vector<ChatMessage>& messages, Writer& out) {
  for (const ChatMessage& message : messages) {
    out.Control("<|start_header_id|>");
    out.Text(RoleName(message.role));
    out.Control("<|end_header_id|>");
    out.Text(absl::StrCat("\n\n", Trimmed(message.content)));
    out.Control("<|eot_id|>");
  }
  out.Control("<|start_header_id|>");
  out.Text("assistant");
  out.Control("<|end_header_id|>");
  out.Text("\n\n");
}

void WriteMistral(const std::vector<ChatMessage>& messages, Writer& out) {
  std::string system;
  for (const ChatMessage& message : messages) {
    switch (message.role) {
      case ChatMessage::Role::kSystem:
        absl::StrAppend(&system, Trimmed(message.content), "\n\n");
        break;
      case ChatMessage::Role::kUser:
        out.Text(absl::StrCat(" [INST] ", system, message.content, " [/INST]"));
        system.clear();
        break;
      case ChatMessage::Role::kAssistant:
        out.Text(absl::StrCat(" ", Trimmed(message.content)));
        out.Control("</s>");
        break;
    }
  }
}

// What the user says after an answer begins a line.
void WritePlain(const std::vector<ChatMessage>& messages, Writer& out) {
  const ChatMessage* last = nullptr;
  for (const ChatMessage& message : messages) {
    if (last != nullptr && message.role == ChatMessage::Role::kUser &&
        !absl::EndsWith(last->content, "\n")) {
      out.Text("\n");
    }
    out.Text(message.content);
    last = &message;
  }
}

}  // namespace

const char* Name(ChatFormat format) {
  switch (format) {
    case ChatFormat::kPlain:
      return "plain";
    case ChatFormat::kChatMl:
      return "ChatML";
    case ChatFormat::kLlama3:
      return "Llama 3";
    case ChatFormat::kMistral:
      return "Mistral";
    case ChatFormat::kUnknown:
      return "unknown";
  }
  return "?";
}

ChatFormat DetectChatFormat(const std::string& chat_template) {
  if (chat_template.empty()) return ChatFormat::kPlain;
  const auto has = [&](const char* text) {
    return absl::StrContains(chat_template, text);
  };
  if (has("<|im_start|>") && has("<|im_end|>")) return ChatFormat::kChatMl;
  if (has("<|start_header_id|>") && has("<|eot_id|>")) {
    return ChatFormat::kLlama3;
  }
  if (has("[INST]") && has("[/INST]") && !has("<<SYS>>")) {
    return ChatFormat::kMistral;
  }
  return ChatFormat::kUnknown;
}

std::vector<ChatSegment> FormatChat(ChatFormat format,
                                    const std::vector<ChatMessage>& messages) {
  Writer out;
  switch (format) {
    case ChatFormat::kChatMl:
      WriteChatMl(messages, out);
      break;
    case ChatFormat::kLlama3:
      WriteLlama3(messages, out);
      break;
    case ChatFormat::kMistral:
      WriteMistral(messages, out);
      break;
    case ChatFormat::kPlain:
    case ChatFormat::kUnknown:
      WritePlain(messages, out);
      break;
  }
  return out.Take();
}

std::vector<std::string> ChatStops(ChatFormat format) {
  switch (format) {
    case ChatFormat::kChatMl:
      return {"<|im_end|>"};
    case ChatFormat::kLlama3:
      return {"<|eot_id|>"};
    default:
      return {};
  }
}

}  // namespace troupe

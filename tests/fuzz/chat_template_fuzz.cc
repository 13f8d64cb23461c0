// Fuzzes chat templates: a template, and after a zero byte the messages.
//
// Whatever the bytes are, compiling and rendering give a text of UTF-8 within
// the bounds, or InvalidArgument, and both soon.
#include <cstddef>
#include <cstdint>
#include <string>

#include "common/check.h"
#include "model/chat_template/chat_template.h"
#include "model/chat_template/limits.h"
#include "model/tokenizer/utf8.h"

namespace {

using Json = nlohmann::ordered_json;

const Json& DefaultMessages() {
  static const auto& messages = *new Json(Json::parse(R"([
      {"role": "system", "content": " Be brief. "},
      {"role": "user", "content": "Gr\u00fc\u00dfe <think>x</think>"},
      {"role": "assistant", "content": null, "tool_calls": [
        {"id": "abcdefgh1", "type": "function", "function":
          {"name": "f", "arguments": {"a": [1, 2.5, true, {"b": null}]}}}]},
      {"role": "tool", "content": ["x", {"y": -7}]}])"));
  return messages;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  const absl::StatusOr<troupe::ChatTemplate> chat_template =
      troupe::ChatTemplate::Compile(input.substr(0, end),
                                    {{"bos_token", "<s>"}},
                                    [] { return std::time_t{1767604023}; });
  if (!chat_template.ok()) {
    CHECK(absl::IsInvalidArgument(chat_template.status()));
    return 0;
  }
  Json messages = DefaultMessages();
  if (end != std::string::npos) {
    messages = Json::parse(input.substr(end + 1), nullptr,
                           /*allow_exceptions=*/false);
    if (messages.is_discarded()) return 0;
  }
  const absl::StatusOr<std::string> text = chat_template->Render(
      messages, /*add_generation_prompt=*/true, Json({{"x", messages}}));
  if (!text.ok()) {
    CHECK(absl::IsInvalidArgument(text.status()));
    return 0;
  }
  CHECK_LE(text->size(), troupe::jinja::kMaxOutputBytes);
  CHECK_EQ(troupe::tokenizer::FindInvalidUtf8(*text), text->size());
  return 0;
}

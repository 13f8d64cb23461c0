// From the messages of a chat to the tokens of a prompt.
#ifndef TROUPE_GATEWAY_OPENAI_CHAT_PROMPT_H_
#define TROUPE_GATEWAY_OPENAI_CHAT_PROMPT_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/generate_plan.h"
#include "gateway/openai/openai_request.h"
#include "gateway/served_model.h"

namespace troupe {

// Texts before which control tokens were written in a message: so that they
// stay text, a mark that no text holds stands before each. Pure.
class LiteralMarks {
 public:
  // control_tokens: their texts.
  explicit LiteralMarks(std::vector<std::string> control_tokens);

  // Marks every text within a JSON value.
  void Mark(nlohmann::json& value) const;

  struct Text {
    std::string text;
    std::vector<size_t> literal_at;  // byte offsets, ascending
  };
  // A text with marks, without them.
  static Text Take(const std::string& marked);

 private:
  std::string Marked(const std::string& text) const;

  const std::vector<std::string> control_tokens_;
  std::array<bool, 256> first_bytes_ = {};  // of control tokens
};

// Renders the chat template of a model and encodes the result. Immutable and
// thread-safe; refers to the model.
class ChatPrompt {
 public:
  explicit ChatPrompt(const ServedModel& model);

  // InvalidArgument: the template refuses the messages, the text is too long,
  // the model has no template.
  absl::StatusOr<std::vector<uint32_t>> Encode(
      const OpenAiRequest& request, const RequestLimits& limits) const;

 private:
  const ServedModel& model_;
  const LiteralMarks marks_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_OPENAI_CHAT_PROMPT_H_

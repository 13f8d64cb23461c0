#include "gateway/openai/chat_prompt.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "gateway/openai/api_error.h"

namespace troupe {
namespace {

// U+FDD0, which Unicode keeps for such uses within a program.
constexpr absl::string_view kMark = "\xEF\xB7\x90";

std::vector<std::string> ControlTokens(const Tokenizer& tokenizer) {
  std::vector<std::string> texts;
  for (int32_t token_id = 0; token_id < tokenizer.vocab_size(); ++token_id) {
    if (!tokenizer.IsSpecial(token_id)) continue;
    std::string text = tokenizer.TokenBytes(token_id);
    if (!text.empty()) texts.push_back(std::move(text));
  }
  return texts;
}

}  // namespace

LiteralMarks::LiteralMarks(std::vector<std::string> control_tokens)
    : control_tokens_(std::move(control_tokens)) {
  for (const std::string& token : control_tokens_) {
    if (!token.empty())
      first_bytes_[static_cast<unsigned char>(token[0])] = true;
  }
}

std::string LiteralMarks::Marked(const std::string& text) const {
  std::string marked;
  marked.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const absl::string_view rest = absl::string_view(text).substr(at);
    if (absl::StartsWith(rest, kMark)) {  // not ours: it never means anything
      at += kMark.size();
      continue;
    }
    const bool begins =
        first_bytes_[static_cast<unsigned char>(text[at])] &&
        std::any_of(control_tokens_.begin(), control_tokens_.end(),
                    [&](const std::string& token) {
                      return absl::StartsWith(rest, token);
                    });
    if (begins) absl::StrAppend(&marked, kMark);
    marked += text[at++];
  }
  return marked;
}

void LiteralMarks::Mark(nlohmann::json& value) const {
  if (value.is_string()) {
    value = Marked(value.get_ref<const std::string&>());
  } else if (value.is_structured()) {
    for (nlohmann::json& element : value) Mark(element);
  }
}

LiteralMarks::Text LiteralMarks::Take(const std::string& marked) {
  Text result;
  result.text.reserve(marked.size());
  for (size_t at = 0; at < marked.size();) {
    const size_t mark = marked.find(kMark.data(), at, kMark.size());
    const size_t end = std::min(mark, marked.size());
    result.text.append(marked, at, end - at);
    at = end;
    if (mark == std::string::npos) break;
    result.literal_at.push_back(result.text.size());
    at += kMark.size();
  }
  return result;
}

ChatPrompt::ChatPrompt(const ServedModel& model)
    : model_(model), marks_(ControlTokens(*model.tokenizer)) {}

absl::StatusOr<std::vector<uint32_t>> ChatPrompt::Encode(
    const OpenAiRequest& request, const RequestLimits& limits) const {
  if (!model_.compiled_chat_template) {
    return InvalidParam("messages",
                        absl::StrCat("messages need a chat template, which the "
                                     "model ",
                                     model_.name, " does not have"));
  }
  nlohmann::json messages = request.messages;
  marks_.Mark(messages);
  nlohmann::json variables = request.template_variables;
  marks_.Mark(variables);
  absl::StatusOr<std::string> rendered = model_.compiled_chat_template->Render(
      messages, request.add_generation_prompt, variables);
  if (!rendered.ok()) {
    return InvalidParam("messages", rendered.status().message());
  }
  LiteralMarks::Text text = LiteralMarks::Take(*rendered);
  if (text.text.size() > limits.max_prompt_bytes) {
    return InvalidParam(
        "messages",
        absl::StrCat("messages make a prompt of ", text.text.size(),
                     " bytes; allowed: at most ", limits.max_prompt_bytes));
  }
  ABSL_ASSIGN_OR_RETURN(
      const std::vector<int32_t> token_ids,
      model_.tokenizer->Encode(text.text,
                               {.add_special_tokens = false,
                                .parse_special = true,
                                .literal_at = std::move(text.literal_at)}));
  return std::vector<uint32_t>(token_ids.begin(), token_ids.end());
}

}  // namespace troupe

#include "gateway/token_calls.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

// Longest list that Detokenize takes.
constexpr int kMaxDetokenizeIds = 1 << 20;

void AddTokens(const Tokenizer& tokenizer,
               const std::vector<uint32_t>& token_ids,
               v1::TokenizeResponse& response) {
  for (const uint32_t token_id : token_ids) {
    response.add_token_ids(token_id);
    response.add_tokens(TokenText(tokenizer, token_id));
  }
}

}  // namespace

absl::Status TokenizeText(const ServedModel& model, const RequestLimits& limits,
                          const v1::TokenizeRequest& request,
                          v1::TokenizeResponse& response) {
  if (request.text().size() > limits.max_prompt_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text: its length in bytes is ", request.text().size(),
                     "; allowed: at most ", limits.max_prompt_bytes));
  }
  const Tokenizer& tokenizer = *model.tokenizer;
  ABSL_ASSIGN_OR_RETURN(
      const std::vector<int32_t> token_ids,
      tokenizer.Encode(request.text(),
                       {.add_special_tokens = request.add_special_tokens(),
                        .parse_special = request.parse_special()}));
  AddTokens(tokenizer, {token_ids.begin(), token_ids.end()}, response);
  return absl::OkStatus();
}

absl::Status TokenizeMessages(const ChatPrompt& chat, const ServedModel& model,
                              const RequestLimits& limits,
                              const v1::TokenizeRequest& request,
                              v1::TokenizeResponse& response) {
  if (!request.text().empty()) {
    return absl::InvalidArgumentError(
        "text: messages are given, too; one of them is allowed");
  }
  OpenAiRequest conversation;
  conversation.messages = nlohmann::json::array();
  for (const v1::ChatMessage& message : request.messages()) {
    conversation.messages.push_back(
        {{"role", message.role()}, {"content", message.content()}});
  }
  ABSL_ASSIGN_OR_RETURN(const std::vector<uint32_t> token_ids,
                        chat.Encode(conversation, limits));
  AddTokens(*model.tokenizer, token_ids, response);
  return absl::OkStatus();
}

absl::Status DetokenizeIds(const ServedModel& model,
                           const v1::DetokenizeRequest& request,
                           v1::DetokenizeResponse& response) {
  if (request.token_ids_size() > kMaxDetokenizeIds) {
    return absl::InvalidArgumentError(
        absl::StrCat("token_ids: its size is ", request.token_ids_size(),
                     "; allowed: at most ", kMaxDetokenizeIds));
  }
  std::vector<int32_t> token_ids;
  for (int i = 0; i < request.token_ids_size(); ++i) {
    const uint32_t token_id = request.token_ids(i);
    if (token_id >= model.config.vocab_size ||
        !model.tokenizer->IsKnown(static_cast<int32_t>(token_id))) {
      return absl::InvalidArgumentError(
          absl::StrCat("token_ids[", i, "] is ", token_id,
                       ", which is no token of this model"));
    }
    token_ids.push_back(static_cast<int32_t>(token_id));
  }
  ABSL_ASSIGN_OR_RETURN(
      *response.mutable_text(),
      model.tokenizer->Decode(
          token_ids, {.skip_special_tokens = !request.keep_special_tokens()}));
  return absl::OkStatus();
}

v1::ModelInfo DescribeServedModel(const GatewayContext& context) {
  v1::ModelInfo info = DescribeModel(context.model);
  const uint32_t routers_context = context.routers.MaxContext();
  if (routers_context > 0) {
    info.set_max_context(std::min(info.max_context(), routers_context));
  }
  return info;
}

}  // namespace troupe

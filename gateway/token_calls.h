// The small calls: text to tokens and back, and what is served.
#ifndef TROUPE_GATEWAY_TOKEN_CALLS_H_
#define TROUPE_GATEWAY_TOKEN_CALLS_H_

#include "absl/status/status.h"
#include "gateway/gateway_context.h"
#include "gateway/openai/chat_prompt.h"
#include "protos/gateway.pb.h"

namespace troupe {

// Of Gateway.Tokenize and Gateway.Detokenize. InvalidArgument names the field.
// TokenizeRequest is by text or by messages.
absl::Status TokenizeText(const ServedModel& model, const RequestLimits& limits,
                          const v1::TokenizeRequest& request,
                          v1::TokenizeResponse& response);
absl::Status TokenizeMessages(const ChatPrompt& chat, const ServedModel& model,
                              const RequestLimits& limits,
                              const v1::TokenizeRequest& request,
                              v1::TokenizeResponse& response);
absl::Status DetokenizeIds(const ServedModel& model,
                           const v1::DetokenizeRequest& request,
                           v1::DetokenizeResponse& response);

// The model, its context as long as that of the routers allows.
v1::ModelInfo DescribeServedModel(const GatewayContext& context);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_TOKEN_CALLS_H_

// One POST to /v1/completions or /v1/chat/completions.
#ifndef TROUPE_GATEWAY_OPENAI_OPENAI_CALL_H_
#define TROUPE_GATEWAY_OPENAI_OPENAI_CALL_H_

#include <memory>
#include <string>

#include "common/http/http_server.h"
#include "gateway/gateway_context.h"
#include "gateway/openai/chat_prompt.h"

namespace troupe {

// Parses, starts one generation per prompt (each is one request for the limits
// of the key whose `lease` is that of the first), and answers the exchange, in
// one piece or as events. Owns itself until it is over, as one of the context's
// live calls. The client's going ends the generations. `chat` is null for a
// completion, else outlives the call.
void StartOpenAiCall(GatewayContext& context,
                     std::shared_ptr<HttpExchange> exchange,
                     const ChatPrompt* chat, const std::string& request_id,
                     KeyLease lease);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_OPENAI_OPENAI_CALL_H_

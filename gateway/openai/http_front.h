// The gateway's HTTP port.
#ifndef TROUPE_GATEWAY_OPENAI_HTTP_FRONT_H_
#define TROUPE_GATEWAY_OPENAI_HTTP_FRONT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/http/http_server.h"
#include "gateway/gateway_context.h"
#include "gateway/openai/chat_prompt.h"

namespace troupe {

// The OpenAI API and what load balancers ask (docs/http_api.md), over the same
// context as the gRPC calls. Thread-safe.
class HttpFront {
 public:
  // options.make_error is set here. The context must outlive the front.
  static absl::StatusOr<std::unique_ptr<HttpFront>> Start(
      HttpServerOptions options, GatewayContext& context);

  const std::vector<std::string>& addresses() const {
    return server_->addresses();
  }
  HttpServer& server() { return *server_; }

 private:
  explicit HttpFront(GatewayContext& context)
      : context_(context), chat_(context.model) {}

  void Handle(std::shared_ptr<HttpExchange> exchange);

  GatewayContext& context_;
  const ChatPrompt chat_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_OPENAI_HTTP_FRONT_H_

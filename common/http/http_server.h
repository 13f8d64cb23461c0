// An HTTP/1.1 server with bounds on everything that a client sends.
#ifndef TROUPE_COMMON_HTTP_HTTP_SERVER_H_
#define TROUPE_COMMON_HTTP_HTTP_SERVER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/http/http_message.h"

namespace troupe {

struct HttpServerOptions {
  // "host:port"; port 0: any free one.
  std::vector<std::string> listen;
  size_t num_threads = 1;

  // More are refused with 503 and closed.
  size_t max_connections = 4096;
  size_t max_header_bytes = 16 << 10;  // 431
  size_t max_body_bytes = 2 << 20;     // 413
  // Between two requests of a connection.
  milliseconds idle_timeout{60000};
  // From a request's first byte to the end of its header, and from there to
  // the end of its body (408).
  milliseconds header_timeout{10000};
  milliseconds body_timeout{60000};
  // A client that takes none of what is sent for so long is given up.
  milliseconds write_timeout{30000};

  // PEM files; both or none. Read again when they change, for new
  // connections; what cannot be used is logged, and the old ones stay.
  std::string tls_cert_file;
  std::string tls_key_file;
  // Clients must have a certificate of these authorities.
  std::string tls_client_ca_file;

  // The body of a response that the server gives itself (400, 408, 413, 431,
  // 503); none: plain text.
  std::function<HttpResponse(int status, const std::string& message)>
      make_error;
};

class HttpConnection;

// One request and its response. Thread-safe; the callbacks run on the server's
// threads, one at a time. When the last owner goes without a response the
// client gets 500.
class HttpExchange {
 public:
  HttpExchange(std::shared_ptr<HttpConnection> connection, HttpRequest request);
  ~HttpExchange();
  HttpExchange(const HttpExchange&) = delete;
  HttpExchange& operator=(const HttpExchange&) = delete;

  const HttpRequest& request() const { return request_; }

  // `gone` is called at most once, when the client goes away before its
  // response has ended; until then it is kept. Before the response begins.
  void WatchClient(std::function<void()> gone);

  // The whole response.
  void Respond(HttpResponse response);

  // Or a stream: the head, which is sent with the first piece; pieces, one at
  // a time: the next one after `written`, which is false when the client is
  // gone; the end.
  void BeginStream(HttpResponse head);
  void Write(std::string piece, std::function<void(bool ok)> written);
  void EndStream();

 private:
  const std::shared_ptr<HttpConnection> connection_;
  const HttpRequest request_;
  std::atomic<bool> answered_{false};
};

// Owns its threads and connections. Thread-safe.
class HttpServer {
 public:
  // Called on one of the server's threads; must not block.
  using Handler = std::function<void(std::shared_ptr<HttpExchange>)>;

  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const HttpServerOptions& options, Handler handler);
  // Shutdown(0).
  ~HttpServer();

  // With ports resolved, in the order of options.listen.
  const std::vector<std::string>& addresses() const;

  struct Stats {
    uint64_t connections = 0;  // accepted so far
    uint64_t refused = 0;      // of them, over max_connections
    size_t open = 0;           // now
  };
  Stats stats() const;

  // Connections close after their next response from now on.
  void Drain();

  // Accepts no more, waits at most `grace` for responses to end, closes all.
  void Shutdown(milliseconds grace);

 private:
  struct State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_HTTP_HTTP_SERVER_H_

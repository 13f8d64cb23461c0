// An HTTP/1.1 server with bounds on everything that a client sends.
#ifndef TROUPE_COMMON_HTTP_HTTP_SERVER_H_
#define TROUPE_COMMON_HTTP_HTTP_SERVER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/http/http_message.h"

namespace troupe {

struct HttpServerOptions {
  // "host:port"; port 0: any free one.
  std::vector<std::string> listen;
  size_t num_threads = 1;

  // More are refused with 503 and closed. Fewer when the process may not have
  // so many descriptors (RLIMIT_NOFILE); Start logs it.
  size_t max_connections = 4096;
  size_t max_header_bytes = 16 << 10;  // 431
  size_t max_header_lines = 100;       // 431
  size_t max_body_bytes = 2 << 20;     // 413
  // Of all bodies that are being received; more are refused with 503.
  size_t max_pending_body_bytes = 256 << 20;
  // Between two requests of a connection.
  milliseconds idle_timeout{60000};
  // From a request's first byte to the end of its header, and from there to
  // the end of its body (408).
  milliseconds header_timeout{10000};
  milliseconds body_timeout{60000};
  // A client that takes less than 64 KiB, or the rest, of what is sent in this
  // time is given up; so is one whose host does not answer for so long.
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
// threads, one at a time, and never inside a call. An exchange may outlive its
// server's Shutdown, which does not wait for it; then other threads call back.
// When the last owner goes without a response the client gets 500; when it goes
// within a stream the connection is cut, so that the client does not take what
// it has for the whole.
//
// A response ends once: what is called after that does nothing (`written` gets
// false).
class HttpExchange {
 public:
  HttpExchange(std::shared_ptr<HttpConnection> connection, HttpRequest request);
  ~HttpExchange();
  HttpExchange(const HttpExchange&) = delete;
  HttpExchange& operator=(const HttpExchange&) = delete;

  const HttpRequest& request() const { return request_; }

  // `gone` is called at most once, when the client goes away before its
  // response has ended; until then it is kept. Before the response begins. A
  // client that only closes its sending side counts as gone, too; what it is
  // answered all the same is sent.
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
  enum class Phase { kFresh, kStreaming, kEnded };

  const std::shared_ptr<HttpConnection> connection_;
  const HttpRequest request_;
  // Held while a call is handed over: the connection sees no call behind the
  // end, which could go into the next response.
  absl::Mutex mu_;
  Phase phase_ ABSL_GUARDED_BY(mu_) = Phase::kFresh;
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
  // Not from a callback.
  void Shutdown(milliseconds grace);

 private:
  struct State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_HTTP_HTTP_SERVER_H_

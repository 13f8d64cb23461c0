// One connection of an HttpServer.
#ifndef TROUPE_COMMON_HTTP_HTTP_CONNECTION_H_
#define TROUPE_COMMON_HTTP_HTTP_CONNECTION_H_

#include <atomic>
#include <functional>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/http/http_message.h"
#include "common/http/http_server.h"

namespace troupe {

// Thread-safe: each call is handed over to the connection's strand.
class HttpConnection {
 public:
  virtual ~HttpConnection() = default;
  virtual void Watch(std::function<void()> gone) = 0;
  virtual void Respond(HttpResponse response) = 0;
  virtual void BeginStream(HttpResponse head) = 0;
  virtual void Write(std::string piece, std::function<void(bool)> written) = 0;
  virtual void EndStream() = 0;
  // When idle: closes it. Else its response is the last one.
  virtual void Drain() = 0;
  virtual void Close() = 0;
};

// What the connections of a server share. Outlives them. Thread-safe.
class HttpConnections {
 public:
  HttpConnections(const HttpServerOptions& options, HttpServer::Handler handler)
      : options_(options), handler_(std::move(handler)) {}

  const HttpServerOptions& options() const { return options_; }
  const HttpServer::Handler& handler() const { return handler_; }
  HttpResponse MakeError(int status, const std::string& message) const;

  std::atomic<bool> draining{false};

  // False: there are too many; it is counted all the same, until Remove.
  bool Add(HttpConnection* connection);
  void Remove(HttpConnection* connection);
  HttpServer::Stats stats() const;
  // Calls `visit` for each under the lock.
  void ForEach(const std::function<void(HttpConnection&)>& visit);
  // False when some are left after `limit`.
  bool AwaitNone(absl::Duration limit);

 private:
  const HttpServerOptions options_;
  const HttpServer::Handler handler_;
  mutable absl::Mutex mu_;
  std::set<HttpConnection*> connections_ ABSL_GUARDED_BY(mu_);
  uint64_t num_accepted_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t num_refused_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_HTTP_HTTP_CONNECTION_H_

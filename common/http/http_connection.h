// One connection of an HttpServer, and what all of them share.
#ifndef TROUPE_COMMON_HTTP_HTTP_CONNECTION_H_
#define TROUPE_COMMON_HTTP_HTTP_CONNECTION_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/strand.hpp"
#include "boost/asio/system_executor.hpp"
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
  // No more of the response will come: 500, or the connection is cut when a
  // part has been sent.
  virtual void Abandon() = 0;
  // Calls `work` there.
  virtual void Post(std::function<void()> work) = 0;
  // When idle: closes it. Else its response is the last one.
  virtual void Drain() = 0;
  virtual void Close() = 0;
};

// What the connections of a server share. Each of them is an owner: an exchange
// that somebody still has keeps its connection, and that one the io_context
// that its (closed) socket belongs to. Thread-safe.
class HttpConnections {
 public:
  HttpConnections(const HttpServerOptions& options,
                  HttpServer::Handler handler);

  boost::asio::io_context io_context;

  const HttpServerOptions& options() const { return options_; }
  const HttpServer::Handler& handler() const { return handler_; }
  HttpResponse MakeError(int status, const std::string& message) const;

  // Only ever goes up.
  enum class Phase {
    kServing,
    kDraining,  // each response is the last of its connection
    kLeaving,   // and a connection that has no request is closed
    kClosing,   // all of them are
  };
  Phase phase() const { return phase_; }
  // Tells the connections, too.
  void Enter(Phase phase);

  // kDrop: so many are being refused already that this one gets no time.
  enum class Admission { kAdmit, kRefuse, kDrop };
  // From the moment that a connection can be told to close until it has.
  Admission Add(HttpConnection* connection);
  void Remove(HttpConnection* connection);
  HttpServer::Stats stats() const;
  // False when some are left after `limit`.
  bool AwaitNone(absl::Duration limit);

  // Of bodies that are being received. False: there is no room.
  bool ReserveBodyBytes(size_t num_bytes);
  void ReleaseBodyBytes(size_t num_bytes) { body_bytes_ -= num_bytes; }

  // Hands `work` over to the executor of a connection. After Stop, when the
  // io_context has no threads and the connections are closed, to a thread of
  // the process instead: a callback must never run inside the call that asked
  // for it, whose caller may hold what the callback locks.
  template <typename Executor, typename Work>
  void Post(const Executor& executor, Work work) {
    {
      absl::ReaderMutexLock lock(&stop_mu_);
      if (!stopped_) return boost::asio::post(executor, std::move(work));
    }
    PostLate(std::move(work));
  }
  void Stop();

 private:
  using LateStrand = boost::asio::strand<boost::asio::system_executor>;
  void PostLate(std::function<void()> work);

  const HttpServerOptions options_;
  const HttpServer::Handler handler_;
  const size_t max_refusing_;
  std::atomic<Phase> phase_{Phase::kServing};
  std::atomic<size_t> body_bytes_{0};
  absl::Mutex stop_mu_;
  bool stopped_ ABSL_GUARDED_BY(stop_mu_) = false;
  std::optional<LateStrand> late_strand_ ABSL_GUARDED_BY(stop_mu_);
  mutable absl::Mutex mu_;
  std::map<HttpConnection*, Admission> connections_ ABSL_GUARDED_BY(mu_);
  size_t num_refusing_ ABSL_GUARDED_BY(mu_) = 0;  // of connections_
  uint64_t num_accepted_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t num_refused_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_HTTP_HTTP_CONNECTION_H_

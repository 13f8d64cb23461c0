#include "common/http/http_connection.h"

namespace troupe {

HttpResponse HttpConnections::MakeError(int status,
                                        const std::string& message) const {
  if (options_.make_error) return options_.make_error(status, message);
  HttpResponse response;
  response.status = status;
  response.headers = {{"content-type", "text/plain; charset=utf-8"}};
  response.body = message + "\n";
  return response;
}

bool HttpConnections::Add(HttpConnection* connection) {
  absl::MutexLock lock(&mu_);
  ++num_accepted_;
  const bool ok = connections_.size() < options_.max_connections;
  if (!ok) ++num_refused_;
  connections_.insert(connection);
  return ok;
}

void HttpConnections::Remove(HttpConnection* connection) {
  absl::MutexLock lock(&mu_);
  connections_.erase(connection);
}

HttpServer::Stats HttpConnections::stats() const {
  absl::MutexLock lock(&mu_);
  return {num_accepted_, num_refused_, connections_.size()};
}

void HttpConnections::ForEach(
    const std::function<void(HttpConnection&)>& visit) {
  absl::MutexLock lock(&mu_);
  for (HttpConnection* connection : connections_) visit(*connection);
}

bool HttpConnections::AwaitNone(absl::Duration limit) {
  const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return connections_.empty();
  };
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&none), limit);
}

}  // namespace troupe

#include "common/http/http_connection.h"

#include <algorithm>
#include <utility>

namespace troupe {
HttpConnections::HttpConnections(const HttpServerOptions& options,
                                 HttpServer::Handler handler)
    : io_context(static_cast<int>(options.num_threads)),
      options_(options),
      handler_(std::move(handler)),
      max_refusing_(std::clamp<size_t>(options.max_connections / 5, 16, 256)) {}

HttpResponse HttpConnections::MakeError(int status,
                                        const std::string& message) const {
  if (options_.make_error) return options_.make_error(status, message);
  HttpResponse response;
  response.status = status;
  response.headers = {{"content-type", "text/plain; charset=utf-8"}};
  response.body = message + "\n";
  return response;
}

void HttpConnections::Enter(Phase phase) {
  absl::MutexLock lock(&mu_);
  if (phase > phase_) phase_ = phase;
  for (const auto& [connection, admission] : connections_) {
    if (phase_ == Phase::kClosing) {
      connection->Close();
    } else {
      connection->Drain();
    }
  }
}

HttpConnections::Admission HttpConnections::Add(HttpConnection* connection) {
  absl::MutexLock lock(&mu_);
  ++num_accepted_;
  Admission admission = Admission::kAdmit;
  if (connections_.size() - num_refusing_ >= options_.max_connections) {
    ++num_refused_;
    admission =
        num_refusing_ < max_refusing_ ? Admission::kRefuse : Admission::kDrop;
    ++num_refusing_;
  }
  connections_.emplace(connection, admission);
  return admission;
}

void HttpConnections::Remove(HttpConnection* connection) {
  absl::MutexLock lock(&mu_);
  const auto found = connections_.find(connection);
  if (found->second != Admission::kAdmit) --num_refusing_;
  connections_.erase(found);
}

HttpServer::Stats HttpConnections::stats() const {
  absl::MutexLock lock(&mu_);
  return {num_accepted_, num_refused_, connections_.size()};
}

bool HttpConnections::AwaitNone(absl::Duration limit) {
  const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return connections_.empty();
  };
  absl::MutexLock lock(&mu_);
  return mu_.AwaitWithTimeout(absl::Condition(&none), limit);
}

bool HttpConnections::ReserveBodyBytes(size_t num_bytes) {
  if (body_bytes_.fetch_add(num_bytes) + num_bytes <=
      options_.max_pending_body_bytes) {
    return true;
  }
  body_bytes_ -= num_bytes;
  return false;
}

void HttpConnections::PostLate(std::function<void()> work) {
  absl::MutexLock lock(&stop_mu_);
  // Only now: it starts threads.
  if (!late_strand_.has_value()) {
    late_strand_ = boost::asio::make_strand(boost::asio::system_executor());
  }
  boost::asio::post(*late_strand_, std::move(work));
}

void HttpConnections::Stop() {
  absl::MutexLock lock(&stop_mu_);
  stopped_ = true;
}

}  // namespace troupe

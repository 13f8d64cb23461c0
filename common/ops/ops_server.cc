#include "common/ops/ops_server.h"

#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/metrics/process_metrics.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

HttpResponse Make(int status, const char* content_type, std::string body) {
  HttpResponse response;
  response.status = status;
  response.headers = {{"content-type", content_type},
                      {"cache-control", "no-store"}};
  response.body = std::move(body);
  return response;
}

HttpResponse MakeText(int status, const std::string& text) {
  return Make(status, "text/plain; charset=utf-8", text + "\n");
}

}  // namespace

OpsServer::~OpsServer() = default;

absl::StatusOr<std::unique_ptr<OpsServer>> OpsServer::Start(
    const std::string& listen, const std::string& service,
    const std::string& name) {
  std::unique_ptr<OpsServer> ops(new OpsServer(service, name));
  if (listen.empty()) return ops;
  HttpServerOptions options;
  options.listen = {listen};
  // Probes and scrapes: few, and without bodies.
  options.max_connections = 64;
  options.max_body_bytes = 4 << 10;
  absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Start(
      options, [ops = ops.get()](std::shared_ptr<HttpExchange> exchange) {
        exchange->Respond(ops->Answer(exchange->request()));
      });
  if (!server.ok()) {
    return absl::Status(
        server.status().code(),
        absl::StrCat("ops-listen: ", server.status().message()));
  }
  ops->server_ = *std::move(server);
  return ops;
}

absl::StatusOr<std::unique_ptr<OpsServer>> OpsServer::StartAndTell(
    const std::string& listen, const std::string& service,
    const std::string& name) {
  absl::StatusOr<std::unique_ptr<OpsServer>> ops = Start(listen, service, name);
  if (ops.ok() && !(*ops)->address().empty()) {
    std::printf("ops on %s\n", (*ops)->address().c_str());
    std::fflush(stdout);
  }
  return ops;
}

std::string OpsServer::address() const {
  return server_ == nullptr ? "" : server_->addresses()[0];
}

std::unique_ptr<OpsServer::Attachment> OpsServer::Attach(Sources sources) {
  Set(std::move(sources));
  return std::make_unique<Attachment>(*this);
}

void OpsServer::Set(Sources sources) {
  absl::MutexLock lock(&mu_);
  sources_ = std::move(sources);
}

void OpsServer::StartDraining() {
  absl::MutexLock lock(&mu_);
  draining_ = true;
}

HttpResponse OpsServer::Answer(const HttpRequest& request) {
  const bool known = request.path == "/livez" || request.path == "/readyz" ||
                     request.path == "/metrics";
  if (!known) return MakeText(404, "here are /livez, /readyz and /metrics");
  if (request.method != "GET" && request.method != "HEAD") {
    HttpResponse response = MakeText(405, "GET and HEAD are allowed");
    response.headers.push_back({"allow", "GET, HEAD"});
    return response;
  }
  if (request.path == "/livez") return MakeText(200, "ok");
  if (request.path == "/readyz") return AnswerReady();
  return AnswerMetrics();
}

HttpResponse OpsServer::AnswerMetrics() {
  MetricFamilies families;
  AddProcessMetrics(service_, name_, families);
  {
    absl::MutexLock lock(&mu_);
    if (sources_.add_metrics != nullptr) sources_.add_metrics(families);
  }
  return Make(200, kMetricsContentType, families.Text());
}

HttpResponse OpsServer::AnswerReady() {
  absl::Status ready;
  {
    absl::MutexLock lock(&mu_);
    if (draining_) {
      ready = absl::UnavailableError("draining");
    } else if (sources_.ready == nullptr) {
      ready = absl::UnavailableError("starting");
    } else {
      ready = sources_.ready();
    }
  }
  nlohmann::json body = {{"ready", ready.ok()}};
  if (!ready.ok()) body["reason"] = std::string(ready.message());
  return Make(
      ready.ok() ? 200 : 503, "application/json",
      body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
          "\n");
}

}  // namespace troupe

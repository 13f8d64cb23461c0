// The port that operations look at a service by.
#ifndef TROUPE_COMMON_OPS_OPS_SERVER_H_
#define TROUPE_COMMON_OPS_OPS_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/http/http_server.h"
#include "common/metrics/metric_families.h"

namespace troupe {

// GET /livez: 200 as long as the process answers; it says nothing of others,
// so that nobody restarts a process for the sake of another one's fault.
// GET /readyz: 200 or 503, and as JSON why. GET /metrics: Prometheus' text.
//
// There from the start to the end of a process, while what it tells about
// comes and goes (Attach). Owns its HTTP server and that one's thread.
// Thread-safe.
class OpsServer {
 public:
  // Asked on the server's thread.
  struct Sources {
    // Besides those of the process, which are there already.
    std::function<void(MetricFamilies& families)> add_metrics;
    std::function<absl::Status()> ready;  // the message says why not
  };

  // listen: "host:port"; empty: a server that is off. InvalidArgument and
  // Unavailable name the address. service, name: as AddProcessMetrics wants
  // them; that is all there is to scrape while nothing is attached.
  static absl::StatusOr<std::unique_ptr<OpsServer>> Start(
      const std::string& listen, const std::string& service,
      const std::string& name);
  // The same for a main: says "ops on ADDRESS" on standard output, for whoever
  // started this process with port 0.
  static absl::StatusOr<std::unique_ptr<OpsServer>> StartAndTell(
      const std::string& listen, const std::string& service,
      const std::string& name);
  ~OpsServer();

  // Empty: it is off.
  std::string address() const;

  // While it lives the sources are asked; when it has gone they are asked no
  // more. Declare it behind what they use.
  class Attachment {
   public:
    explicit Attachment(OpsServer& server) : server_(server) {}
    ~Attachment() { server_.Set({}); }
    Attachment(const Attachment&) = delete;
    Attachment& operator=(const Attachment&) = delete;

   private:
    OpsServer& server_;
  };
  [[nodiscard]] std::unique_ptr<Attachment> Attach(Sources sources);

  // Not ready from now on, whatever the source says.
  void StartDraining();

 private:
  OpsServer(const std::string& service, const std::string& name)
      : service_(service), name_(name) {}
  void Set(Sources sources);
  HttpResponse Answer(const HttpRequest& request);
  HttpResponse AnswerReady();
  HttpResponse AnswerMetrics();

  const std::string service_;
  const std::string name_;
  absl::Mutex mu_;  // held while a source is asked
  Sources sources_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<HttpServer> server_;  // null: off; goes first
};

}  // namespace troupe

#endif  // TROUPE_COMMON_OPS_OPS_SERVER_H_

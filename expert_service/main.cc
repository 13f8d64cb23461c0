// troupe-expert: serves some experts of a checkpoint to routers.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "cluster/rollout.h"
#include "common/descriptor_limit.h"
#include "common/load_progress.h"
#include "common/logging.h"
#include "common/ops/ops_server.h"
#include "common/rpc/grpc_log.h"
#include "common/rpc/rpc_server.h"
#include "common/rpc/tls_flags.h"
#include "common/service_flags.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "expert_service/cpu_expert_backend.h"
#include "expert_service/expert_admin_server.h"
#include "expert_service/expert_batcher.h"
#include "expert_service/expert_metrics.h"
#include "expert_service/expert_server.h"
#include "expert_service/expert_store.h"
#include "expert_service/expert_transactions.h"
#include "expert_service/paced_backend.h"
#include "expert_service/shm_expert_edge.h"
#include "kernels/cpu_features.h"
#include "model/checkpoint.h"

namespace troupe {
namespace {

struct Options {
  std::string model_dir;
  std::string name = "expert";
  std::vector<std::string> listen = {"127.0.0.1:7200"};
  std::string experts;  // "0-3,6"; empty: all
  std::string layers;
  std::string label;
  std::string rollout;     // "2:v2,v1"
  size_t num_threads = 0;  // 0: all that the process may use
  uint64_t queue_rows = 65536;
  bool no_shm = false;
  std::string shm_socket;  // empty: a name of its own
  uint64_t hop_ring_kb = 4096;
  double pace_us_per_copy = 0;
  int drain_seconds = 30;
  ServiceFlags service;
  bool die_with_parent = false;
  bool reflection = false;
  ServiceTlsFlags security;
};

constexpr char kAdminMethods[] = "/troupe.v1.ExpertAdmin/";
constexpr char kStatsMethod[] = "/troupe.v1.Expert/GetStats";
constexpr char kReflection[] = "/grpc.reflection.v1alpha.ServerReflection/";

// Who may call an expert process where routers do. Gateways ask for statistics.
TlsAccess Access(bool admins_have_their_own) {
  TlsAccess access;
  access.methods[TlsRole::kRouter] = {"/troupe.v1.Expert/"};
  access.methods[TlsRole::kGateway] = {kStatsMethod};
  if (!admins_have_their_own) {
    access.methods[TlsRole::kAdmin] = {kAdminMethods, kStatsMethod,
                                       kReflection};
  }
  return access;
}

TlsAccess AdminAccess() {
  TlsAccess access;
  access.methods[TlsRole::kAdmin] = {kAdminMethods, kStatsMethod, kReflection};
  return access;
}

absl::StatusOr<std::vector<HalfOpenRange>> RangesOrAll(const char* flag,
                                                       const std::string& text,
                                                       size_t limit) {
  if (text.empty()) return std::vector<HalfOpenRange>{{0, limit}};
  absl::StatusOr<std::vector<HalfOpenRange>> ranges = ParseRanges(text, limit);
  if (!ranges.ok()) {
    return absl::InvalidArgumentError(std::string(flag) + ": " +
                                      std::string(ranges.status().message()));
  }
  return ranges;
}

// What the ops port is told by, once the weights are there.
OpsServer::Sources OpsSources(const ExpertServer& service,
                              const ExpertBatcher& batcher) {
  OpsServer::Sources sources;
  sources.add_metrics = [&](MetricFamilies& families) {
    AddExpertMetrics(service.Statistics(), batcher.histograms(), families);
  };
  sources.ready = [] { return absl::OkStatus(); };
  return sources;
}

absl::Status Serve(const Options& options) {
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<OpsServer> ops,
                        OpsServer::StartAndTell(options.service.ops_listen,
                                                "expert", options.name));
  const std::string missing = MissingCpuFeatures();
  if (!missing.empty()) return absl::FailedPreconditionError(missing);
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                        Checkpoint::Open(options.model_dir));
  const ModelConfig& config = checkpoint->config();
  if (config.num_experts == 0) {
    return absl::InvalidArgumentError(
        options.model_dir + ": a dense model has no experts to serve");
  }
  ABSL_ASSIGN_OR_RETURN(
      const std::vector<HalfOpenRange> layers,
      RangesOrAll("--layers", options.layers, config.num_layers));
  ABSL_ASSIGN_OR_RETURN(
      const std::vector<HalfOpenRange> experts,
      RangesOrAll("--experts", options.experts, config.num_experts));

  ABSL_RETURN_IF_ERROR(ValidateLabel("--label", options.label));
  v1::ExpertDescription description;
  description.set_name(options.name);
  description.set_model_fingerprint(checkpoint->fingerprint());
  description.set_instruction_set(ChosenInstructionSet());
  description.set_pid(getpid());
  if (!options.rollout.empty()) {
    ABSL_ASSIGN_OR_RETURN(*description.mutable_rollout(),
                          ParseRollout(options.rollout));
  }

  ABSL_ASSIGN_OR_RETURN(const std::shared_ptr<const Tls> tls,
                        LoadServiceTls(options.security, TlsRole::kExpert));
  FrameLimits limits;
  limits.hidden_size = config.hidden_size;
  limits.num_layers = config.num_layers;
  limits.num_experts = config.num_experts;
  const std::shared_ptr<Doorbell> bell = Doorbell::Create();

  // Destroyed in the reverse order: the server's streams before the batcher,
  // the batcher before what it computes with and where its batches lie.
  std::unique_ptr<ShmExpertEdge> shm;
  if (!options.no_shm) {
    ShmExpertEdgeOptions shm_options;
    shm_options.socket = options.shm_socket;
    shm_options.ring_bytes = options.hop_ring_kb << 10;
    shm_options.limits = limits;
    absl::StatusOr<std::unique_ptr<ShmExpertEdge>> edge =
        ShmExpertEdge::Start(shm_options, bell);
    if (absl::IsInvalidArgument(edge.status())) return edge.status();
    if (edge.ok()) {
      shm = *std::move(edge);
      *description.mutable_shm() = shm->offer();
    } else {
      spdlog::warn("no shared memory, gRPC alone: {}",
                   std::string(edge.status().message()));
    }
  }
  std::unique_ptr<ExpertStore> store;
  ThreadPool pool(options.num_threads == 0 ? AvailableThreads()
                                           : options.num_threads);
  std::unique_ptr<CpuExpertBackend> backend;
  std::unique_ptr<PacedBackend> paced;
  std::unique_ptr<ExpertBatcher> batcher;
  ExpertServer service(std::move(description), limits);
  ExpertAdminServer admin(service);
  RpcServerOptions server_options;
  server_options.listen = options.listen;
  server_options.reflection = options.reflection;
  server_options.admin_listen = options.security.admin_listen;
  if (tls != nullptr) {
    server_options.credentials =
        tls->ForServer(Access(!options.security.admin_listen.empty()));
    server_options.admin_credentials = tls->ForServer(AdminAccess());
  }
  server_options.allow_plaintext = options.security.allow_plaintext;
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> server,
                        RpcServer::Start(server_options, {&service, &admin}));

  LoadProgress progress("experts " +
                        (options.experts.empty() ? "all" : options.experts));
  ABSL_ASSIGN_OR_RETURN(store, ExpertStore::Load(
                                   *checkpoint, layers, experts, pool,
                                   [&](uint64_t done, uint64_t total) {
                                     progress(done, total);
                                     return CheckTermination();
                                   },
                                   options.label));
  backend = std::make_unique<CpuExpertBackend>(*store, pool);
  if (options.pace_us_per_copy > 0) {
    spdlog::warn("an experiment: every copy takes at least {} us",
                 options.pace_us_per_copy);
    paced = std::make_unique<PacedBackend>(*backend, options.pace_us_per_copy);
  }
  ExpertBackend& computing =
      paced != nullptr ? static_cast<ExpertBackend&>(*paced) : *backend;
  batcher = std::make_unique<ExpertBatcher>(computing, options.queue_rows, bell,
                                            shm.get());
  service.SetReady(batcher.get(), store->versions(), store->num_bytes());
  ExpertTransactionsOptions transaction_options;
  transaction_options.label = options.label;
  transaction_options.drain = milliseconds(1000 * options.drain_seconds);
  auto transactions = std::make_unique<ExpertTransactions>(
      transaction_options, *checkpoint, *store, service);
  admin.SetReady(transactions.get());
  const auto attachment = ops->Attach(OpsSources(service, *batcher));
  server->SetServing(true);
  for (const std::string& address : server->addresses()) {
    spdlog::info("ready on {} ({} threads, {})", address, pool.num_threads(),
                 ChosenInstructionSet());
  }

  const milliseconds drain(1000 * options.drain_seconds);
  WaitForTermination(drain + milliseconds(5000));
  spdlog::info("draining");
  ops->StartDraining();
  server->SetServing(false);
  admin.StartDraining();
  transactions.reset();
  // Sequences that are pinned to versions that are here alone may finish.
  const SteadyTime drained_by = std::chrono::steady_clock::now() + drain;
  store->SetAllLeaving();
  service.SetExperts(store->versions(), store->num_bytes());
  service.AwaitReleased(drain, /*may_be_cancelled=*/false);
  service.StartDraining();
  if (!batcher->WaitUntilIdle(
          std::max(milliseconds(0),
                   std::chrono::duration_cast<milliseconds>(
                       drained_by - std::chrono::steady_clock::now())))) {
    spdlog::warn("drain time is over with rows still queued");
  }
  service.EndStreams();
  server->Shutdown(milliseconds(2000));
  return absl::OkStatus();
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::Options options;
  CLI::App app("troupe-expert: serves experts of a checkpoint to routers");
  app.footer(
      "Example: all layers of experts 0 to 3 on a unix socket\n"
      "  troupe-expert models/demo --experts 0-3 --listen unix:/run/e0.sock");
  app.add_option("MODEL_DIR", options.model_dir,
                 "Checkpoint in Hugging Face format")
      ->required();
  app.add_option("--name", options.name, "Name in logs and stats")
      ->envname("TROUPE_NAME")
      ->capture_default_str();
  app.add_option("--listen", options.listen,
                 "host:port (port 0: any) or unix:/path; may be repeated")
      ->envname("TROUPE_LISTEN")
      ->capture_default_str();
  app.add_option("--experts", options.experts,
                 "Experts to own, such as 0-3,6 (default: all)")
      ->envname("TROUPE_EXPERTS");
  app.add_option("--layers", options.layers,
                 "Layers to own them in, such as 0-11 (default: all)")
      ->envname("TROUPE_LAYERS");
  app.add_option("--label", options.label, "Label of the weights' version")
      ->envname("TROUPE_LABEL");
  app.add_option("--rollout", options.rollout,
                 "REVISION:LABEL,... (the best label first): which versions "
                 "new sequences use, unless a higher revision is set elsewhere")
      ->envname("TROUPE_ROLLOUT");
  app.add_option("--threads", options.num_threads,
                 "Threads of the kernels (0: all that may be used)")
      ->envname("TROUPE_THREADS")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--queue-rows", options.queue_rows,
                 "Rows that may wait; more are refused")
      ->envname("TROUPE_QUEUE_ROWS")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 32))
      ->capture_default_str();
  app.add_flag("--no-shm", options.no_shm,
               "Offer routers on this host no shared memory")
      ->envname("TROUPE_NO_SHM");
  app.add_option("--shm-socket", options.shm_socket,
                 "Unix socket that shared memory is asked for on: a path, or "
                 "@name in the abstract namespace (default: a name of its own)")
      ->envname("TROUPE_SHM_SOCKET");
  app.add_option("--hop-ring-kb", options.hop_ring_kb,
                 "Shared memory per router and direction, in KiB, a power of "
                 "two; larger messages go over gRPC")
      ->envname("TROUPE_HOP_RING_KB")
      ->check(CLI::Range(64, 1 << 20))
      ->capture_default_str();
  app.add_option("--pace-us-per-copy", options.pace_us_per_copy,
                 "For experiments: be as slow as a processor that needs that "
                 "long for a routed copy")
      ->check(CLI::Range(0.0, 1e6))
      ->group("Experiments");
  app.add_option("--drain-seconds", options.drain_seconds,
                 "Longest time to finish what is queued after SIGTERM")
      ->envname("TROUPE_DRAIN_SECONDS")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  troupe::AddServiceFlags(app, options.service);
  app.add_flag("--reflection", options.reflection,
               "Offer gRPC server reflection");
  troupe::AddServiceTlsFlags(app, options.security, /*has_admin_calls=*/true);
  app.add_flag("--die-with-parent", options.die_with_parent,
               "End when the parent process does");
  CLI11_PARSE(app, argc, argv);

  troupe::BlockTerminationSignals();
  if (options.die_with_parent) troupe::DieWithParent();
  troupe::InitServiceLogging(options.name, options.service);
  troupe::RouteGrpcLog();
  troupe::RaiseDescriptorLimit();
  const absl::Status status = troupe::Serve(options);
  if (absl::IsCancelled(status)) return 0;
  if (!status.ok()) {
    std::fprintf(stderr, "troupe-expert: %s\n",
                 std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

// troupe-router: attention, KV cache, gating and sampling of a checkpoint; its
// experts are elsewhere.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cluster/address_source.h"
#include "cluster/expert_pool.h"
#include "cluster/fallback_policy.h"
#include "cluster/grpc_expert_peer.h"
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
#include "kernels/cpu_features.h"
#include "model/checkpoint.h"
#include "router_service/engine/model_runner.h"
#include "router_service/gating/capacity.h"
#include "router_service/kv_cache/kv_storage.h"
#include "router_service/router_metrics.h"
#include "router_service/router_server.h"
#include "router_service/serving_loop.h"

namespace troupe {
namespace {

struct Options {
  std::string model_dir;
  std::string name = "router";
  std::vector<std::string> listen = {"127.0.0.1:7100"};
  std::vector<std::string> experts;
  size_t num_threads = 0;    // 0: all that the process may use
  size_t num_kv_blocks = 0;  // 0: by kv_memory_mb
  size_t kv_memory_mb = 1024;
  size_t max_batch_tokens = 512;
  size_t max_sequences = 64;
  size_t max_queued = 256;
  bool no_prefix_cache = false;
  std::string kv_dtype = "float32";

  DataType KvType() const {
    return kv_dtype == "bfloat16" ? DataType::kBF16 : DataType::kF32;
  }
  double load_half_life_seconds = 30;
  double collapse_share = CollapseOptions().share;
  DataType WireType() const {
    return wire_dtype == "bfloat16" ? DataType::kBF16 : DataType::kF32;
  }
  int hop_timeout_ms = 10000;
  bool no_hedging = false;
  bool no_ejection = false;
  std::string hop = "auto";
  std::string wire_dtype = "float32";
  double capacity_factor = 0.0;
  std::string refuse = "position";
  uint64_t refuse_seed = 0;
  std::string fallback = "exact";
  int fallback_wait_ms = 20;
  int drain_seconds = 30;
  ServiceFlags service;
  bool die_with_parent = false;
  bool reflection = false;
  ServiceTlsFlags security;
};

// Who may call a router.
TlsAccess Access() {
  TlsAccess access;
  access.methods[TlsRole::kGateway] = {"/troupe.v1.Router/"};
  access.methods[TlsRole::kAdmin] = {
      "/troupe.v1.Router/GetStats", "/troupe.v1.Router/Describe",
      "/grpc.reflection.v1alpha.ServerReflection/"};
  return access;
}

// As many blocks as the memory holds, and no more than max_sequences of the
// longest context can use.
size_t ChooseKvBlocks(const ModelConfig& config, const Options& options) {
  if (options.num_kv_blocks > 0) return options.num_kv_blocks;
  KvCacheView view;
  view.dtype = options.KvType();
  view.num_kv_heads = config.num_kv_heads;
  view.head_dim = config.head_dim;
  const size_t block_bytes = config.num_layers * 2 * view.block_bytes();
  const size_t by_memory = (options.kv_memory_mb << 20) / block_bytes;
  const size_t longest =
      (config.max_position_embeddings + kKvBlockSize - 1) / kKvBlockSize;
  return std::max<size_t>(1,
                          std::min(by_memory, longest * options.max_sequences));
}

void AddDiscovery(const AddressSource& addresses, v1::RouterStats& stats) {
  for (const AddressSource::Source& source : addresses.Describe()) {
    v1::DiscoveryStats& discovery = *stats.add_discovery();
    discovery.set_source(source.spec);
    discovery.set_addresses(static_cast<uint32_t>(source.addresses.size()));
    discovery.set_changes(source.changes);
    discovery.set_failures(source.failures);
    discovery.set_last_error(source.last_error);
    discovery.set_age_seconds(source.age_seconds);
  }
}

// What the ops port is told by.
OpsServer::Sources OpsSources(const RouterServer& service,
                              const ServingLoop& loop) {
  OpsServer::Sources sources;
  sources.add_metrics = [&](MetricFamilies& families) {
    AddRouterMetrics(service.Statistics(), loop.histograms(),
                     loop.hop_histograms(), families);
  };
  sources.ready = [&] {
    const v1::RouterDescription description = service.Description();
    return description.state() == v1::SERVING_STATE_READY
               ? absl::OkStatus()
               : absl::UnavailableError(description.detail());
  };
  return sources;
}

absl::Status Serve(const Options& options) {
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<OpsServer> ops,
                        OpsServer::StartAndTell(options.service.ops_listen,
                                                "router", options.name));
  const std::string missing = MissingCpuFeatures();
  if (!missing.empty()) return absl::FailedPreconditionError(missing);
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                        Checkpoint::Open(options.model_dir));
  const ModelConfig& config = checkpoint->config();
  for (const std::string& warning : checkpoint->warnings()) {
    spdlog::warn("{}", warning);
  }
  if (config.num_experts > 0 && options.experts.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--experts: the model has ", config.num_experts,
                     " experts per layer, but no address of an expert process "
                     "is given"));
  }

  ABSL_ASSIGN_OR_RETURN(const std::shared_ptr<const Tls> tls,
                        LoadServiceTls(options.security, TlsRole::kRouter));
  ThreadPool pool(options.num_threads == 0 ? AvailableThreads()
                                           : options.num_threads);
  const size_t num_blocks = ChooseKvBlocks(config, options);
  ABSL_ASSIGN_OR_RETURN(
      const std::unique_ptr<KvStorage> kv,
      KvStorage::Create(config.num_layers, num_blocks, config.num_kv_heads,
                        config.head_dim, options.KvType()));
  const size_t max_context =
      std::min(config.max_position_embeddings, num_blocks * kKvBlockSize);
  LoadProgress progress("attention, embedding and head");
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<ModelRunner> runner,
                        ModelRunner::Load(*checkpoint, max_context, *kv, pool,
                                          [&](uint64_t done, uint64_t total) {
                                            progress(done, total);
                                            return CheckTermination();
                                          }));

  // Destroyed in the reverse order: the loop first, then what it uses.
  std::unique_ptr<ExpertPool> experts;
  std::unique_ptr<AddressSource> addresses;  // of the expert processes
  std::unique_ptr<TokenDispatcher> dispatcher;
  if (config.num_experts > 0) {
    ExpertPoolOptions pool_options;
    pool_options.is_moe_layer = config.is_moe_layer;
    pool_options.num_experts = config.num_experts;
    pool_options.bell = Doorbell::Create();
    pool_options.ejection = !options.no_ejection;
    pool_options.hidden_size = config.hidden_size;
    pool_options.wire_dtype = options.WireType();
    pool_options.hedge.max = milliseconds(options.hop_timeout_ms);
    pool_options.retire_limit = milliseconds(options.hop_timeout_ms);
    GrpcExpertPeerOptions peer;
    peer.router_name = options.name;
    peer.model_fingerprint = checkpoint->fingerprint();
    peer.hop = options.hop == "grpc"  ? HopMode::kGrpc
               : options.hop == "shm" ? HopMode::kShm
                                      : HopMode::kAuto;
    peer.bell = pool_options.bell;
    if (tls != nullptr) peer.credentials = tls->ForChannels(TlsRole::kExpert);
    pool_options.make_peer = [peer](const std::string& address) {
      GrpcExpertPeerOptions of_address = peer;
      of_address.address = address;
      return MakeGrpcExpertPeer(std::move(of_address));
    };
    experts = std::make_unique<ExpertPool>(std::move(pool_options),
                                           std::vector<ExpertPool::Member>());
    AddressSourceOptions source_options;
    source_options.specs = options.experts;
    absl::StatusOr<std::unique_ptr<AddressSource>> source =
        AddressSource::Create(std::move(source_options));
    if (!source.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--experts: ", source.status().message()));
    }
    addresses = *std::move(source);
    addresses->Start([&experts](const std::vector<std::string>& listed) {
      experts->SetAddresses(listed);
    });
    TokenDispatcherOptions dispatch_options;
    dispatch_options.hidden_size = config.hidden_size;
    dispatch_options.num_experts = config.num_experts;
    dispatch_options.hop_timeout = milliseconds(options.hop_timeout_ms);
    dispatch_options.wire_dtype = options.WireType();
    dispatch_options.hedging = !options.no_hedging;
    dispatch_options.capacity_factor = options.capacity_factor;
    ABSL_ASSIGN_OR_RETURN(dispatch_options.refuse,
                          ParseRefuseBy(options.refuse));
    dispatch_options.refuse_seed = options.refuse_seed;
    dispatch_options.fallback_wait = milliseconds(options.fallback_wait_ms);
    dispatcher = std::make_unique<TokenDispatcher>(*experts, dispatch_options);
  }
  ServingLoopOptions loop_options;
  loop_options.scheduler.max_batch_tokens = options.max_batch_tokens;
  loop_options.scheduler.max_sequences = options.max_sequences;
  loop_options.scheduler.prefix_cache = !options.no_prefix_cache;
  loop_options.num_kv_blocks = num_blocks;
  loop_options.max_queued_sequences = options.max_queued;
  loop_options.load_half_life_seconds = options.load_half_life_seconds;
  loop_options.collapse.share = options.collapse_share;
  ServingLoop loop(loop_options, *runner, dispatcher.get(), pool);

  RouterServerOptions service_options;
  service_options.name = options.name;
  service_options.model_fingerprint = checkpoint->fingerprint();
  service_options.numeric_format =
      absl::StrCat("kv ", options.kv_dtype, ", wire ", options.wire_dtype);
  service_options.max_queued_sequences =
      static_cast<uint32_t>(options.max_queued);
  ABSL_ASSIGN_OR_RETURN(service_options.default_fallback,
                        ParseFallback(options.fallback));
  service_options.capacity_factor = options.capacity_factor;
  ABSL_ASSIGN_OR_RETURN(service_options.refuse, ParseRefuseBy(options.refuse));
  service_options.add_stats = [&addresses](v1::RouterStats& stats) {
    if (addresses != nullptr) AddDiscovery(*addresses, stats);
  };
  RouterServer service(service_options, config, loop, experts.get());
  RpcServerOptions server_options;
  server_options.listen = options.listen;
  server_options.reflection = options.reflection;
  if (tls != nullptr) server_options.credentials = tls->ForServer(Access());
  server_options.allow_plaintext = options.security.allow_plaintext;
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> server,
                        RpcServer::Start(server_options, {&service}));
  const auto attachment = ops->Attach(OpsSources(service, loop));
  // Healthy as soon as calls are answered; whether every expert has a replica
  // is in Describe.
  server->SetServing(true);
  for (const std::string& address : server->addresses()) {
    spdlog::info(
        "listening on {} ({} threads, {}, {} KV blocks of {} tokens = {} MB of "
        "{})",
        address, pool.num_threads(), ChosenInstructionSet(), num_blocks,
        kKvBlockSize, kv->num_bytes() >> 20, options.kv_dtype);
  }

  const milliseconds drain(1000 * options.drain_seconds);
  WaitForTermination(drain + milliseconds(5000));
  spdlog::info("draining");
  ops->StartDraining();
  server->SetServing(false);
  // Short sequences end here, and cost nobody a second prefill; gateways move
  // long ones in the second half.
  service.StartDraining(drain / 2);
  const bool idle = loop.WaitUntilIdle(drain);
  if (!idle) {
    spdlog::warn(
        "drain time is over: {} sequences are ended; gateways go on "
        "with them elsewhere",
        loop.num_sequences());
  }
  // The last answers are on their way; the rest has had its time.
  server->Shutdown(milliseconds(idle ? 2000 : 0));
  return absl::OkStatus();
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::Options options;
  CLI::App app(
      "troupe-router: attention, KV cache, gating and sampling of a model "
      "whose "
      "experts are other processes");
  app.footer(
      "Example: a router with two expert processes\n"
      "  troupe-router models/demo --listen unix:/run/r0.sock \\\n"
      "      --experts unix:/run/e0.sock,unix:/run/e1.sock");
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
                 "The expert processes, with commas between: addresses, "
                 "file:PATH (one address a line, watched) or dns:NAME:PORT "
                 "(all addresses of the name, resolved again and again)")
      ->envname("TROUPE_EXPERTS")
      ->delimiter(',');
  app.add_option("--threads", options.num_threads,
                 "Threads of the kernels (0: all that may be used)")
      ->envname("TROUPE_THREADS")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--kv-blocks", options.num_kv_blocks,
                 "KV blocks of 16 tokens (0: by --kv-memory-mb)")
      ->envname("TROUPE_KV_BLOCKS")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_option("--kv-memory-mb", options.kv_memory_mb,
                 "Memory of the KV cache, in MiB")
      ->envname("TROUPE_KV_MEMORY_MB")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--kv-dtype", options.kv_dtype,
                 "Format of the KV cache: float32, or bfloat16, which rounds "
                 "keys and values and takes half the memory")
      ->envname("TROUPE_KV_DTYPE")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--max-batch-tokens", options.max_batch_tokens,
                 "Tokens of one step; longer prompts are cut into chunks")
      ->envname("TROUPE_MAX_BATCH_TOKENS")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--max-sequences", options.max_sequences,
                 "Sequences that run at once")
      ->envname("TROUPE_MAX_SEQUENCES")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--max-queued", options.max_queued,
                 "Sequences that may wait; more are refused")
      ->envname("TROUPE_MAX_QUEUED")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_flag("--no-prefix-cache", options.no_prefix_cache,
               "Compute every prompt anew, even if its beginning is cached")
      ->envname("TROUPE_NO_PREFIX_CACHE");
  app.add_option("--hop-timeout-ms", options.hop_timeout_ms,
                 "An expert process that is silent for so long is given up")
      ->envname("TROUPE_HOP_TIMEOUT_MS")
      ->check(CLI::Range(1, 3600000))
      ->capture_default_str();
  app.add_flag("--no-hedging", options.no_hedging,
               "Diagnostics: send nothing to a second replica while the first "
               "is late")
      ->envname("TROUPE_NO_HEDGING");
  app.add_flag("--no-ejection", options.no_ejection,
               "Diagnostics: go on asking expert processes that are sick")
      ->envname("TROUPE_NO_EJECTION");
  app.add_option("--hop", options.hop,
                 "auto: shared memory with the expert processes on this host "
                 "that offer it, gRPC with the others; grpc: gRPC alone; shm: "
                 "no process without shared memory")
      ->envname("TROUPE_HOP")
      ->check(CLI::IsMember({"auto", "grpc", "shm"}))
      ->capture_default_str();
  app.add_option("--wire-dtype", options.wire_dtype,
                 "Hidden states between router and experts: float32, or "
                 "bfloat16, which halves them and is another numeric format")
      ->envname("TROUPE_WIRE_DTYPE")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--capacity-factor", options.capacity_factor,
                 "Copies that an expert takes in one layer of one step, in "
                 "shares of the mean, from requests whose fallback is not "
                 "exact (0: all, dropless)")
      ->envname("TROUPE_CAPACITY_FACTOR")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--refuse", options.refuse,
                 "Which copies are refused when there is not room for all: "
                 "position (the last), weight (the lowest), or random")
      ->envname("TROUPE_REFUSE")
      ->check(CLI::IsMember({"position", "weight", "random"}))
      ->capture_default_str();
  app.add_option("--refuse-seed", options.refuse_seed, "Of --refuse random")
      ->envname("TROUPE_REFUSE_SEED")
      ->capture_default_str();
  app.add_option("--fallback", options.fallback,
                 "What happens to a refused copy if the request does not say: "
                 "exact (replica,wait), balanced (replica,wait,next_best), "
                 "fast (replica,next_best,drop), or a chain of such steps")
      ->envname("TROUPE_FALLBACK")
      ->check([](const std::string& text) {
        return std::string(troupe::ParseFallback(text).status().message());
      })
      ->capture_default_str();
  app.add_option("--fallback-wait-ms", options.fallback_wait_ms,
                 "How long `wait` waits for room before the next step of a "
                 "chain")
      ->envname("TROUPE_FALLBACK_WAIT_MS")
      ->check(CLI::Range(0, 3600000))
      ->capture_default_str();
  app.add_option("--load-half-life-seconds", options.load_half_life_seconds,
                 "In the load of late that balancing goes by, what is that old "
                 "counts half")
      ->envname("TROUPE_LOAD_HALF_LIFE_SECONDS")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  app.add_option("--collapse-share", options.collapse_share,
                 "Warn when the top-k hottest experts of a layer get more than "
                 "this share of its copies (2: never)")
      ->envname("TROUPE_COLLAPSE_SHARE")
      ->check(CLI::Range(0.05, 2.0))
      ->capture_default_str();
  app.add_option("--drain-seconds", options.drain_seconds,
                 "Longest time to finish what runs after SIGTERM")
      ->envname("TROUPE_DRAIN_SECONDS")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  troupe::AddServiceFlags(app, options.service);
  app.add_flag("--reflection", options.reflection,
               "Offer gRPC server reflection");
  troupe::AddServiceTlsFlags(app, options.security, /*has_admin_calls=*/false);
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
    std::fprintf(stderr, "troupe-router: %s\n",
                 std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

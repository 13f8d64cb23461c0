#include "gateway/gateway.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/rpc/local_address.h"
#include "common/rpc/rpc_server.h"
#include "common/rpc/status.h"
#include "common/status_macros.h"
#include "gateway/exposure.h"
#include "gateway/gateway_context.h"
#include "gateway/generate_call.h"
#include "gateway/grpc_admission.h"
#include "gateway/inference_service.h"
#include "gateway/metrics_text.h"
#include "gateway/openai/chat_prompt.h"
#include "gateway/openai/http_front.h"
#include "gateway/stats_call.h"
#include "gateway/token_calls.h"
#include "protos/gateway.grpc.pb.h"

namespace troupe {
namespace {

// gRPC's own default; a prompt of RequestLimits::max_prompt_bytes fits.
constexpr int kMaxReceiveBytes = 8 << 20;

// Hands every call over to a function or an object of its own. Thread-safe.
class GatewayService final : public v1::Gateway::CallbackService {
 public:
  explicit GatewayService(GatewayContext& context)
      : context_(context), chat_(context.model) {}

 private:
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* server_context,
      const v1::GenerateRequest* request) override {
    return StartGenerateCall(context_, server_context, request);
  }

  grpc::ServerUnaryReactor* GetStats(
      grpc::CallbackServerContext* server_context,
      const v1::GetStatsRequest* request, v1::ClusterStats* response) override {
    const grpc::Status refused = Refusal(*server_context, CallKind::kAdmin);
    if (!refused.ok()) return FinishedCall(server_context, refused);
    return StartStatsCall(context_, server_context, request, response);
  }

  grpc::ServerUnaryReactor* ReportBalance(
      grpc::CallbackServerContext* server_context,
      const v1::BalanceReport* request, v1::ReportBalanceResponse*) override {
    const grpc::Status refused = Refusal(*server_context, CallKind::kAdmin);
    if (!refused.ok()) return FinishedCall(server_context, refused);
    return FinishedCall(server_context,
                        ToGrpcStatus(context_.balance_board.Report(
                            *request, Clock::Real().Now())));
  }

  grpc::ServerUnaryReactor* Tokenize(
      grpc::CallbackServerContext* server_context,
      const v1::TokenizeRequest* request,
      v1::TokenizeResponse* response) override {
    return Later(server_context, [this, request, response] {
      if (request->messages_size() > 0) {
        return TokenizeMessages(chat_, context_.model, context_.limits,
                                *request, *response);
      }
      return TokenizeText(context_.model, context_.limits, *request, *response);
    });
  }

  grpc::ServerUnaryReactor* Detokenize(
      grpc::CallbackServerContext* server_context,
      const v1::DetokenizeRequest* request,
      v1::DetokenizeResponse* response) override {
    return Later(server_context, [this, request, response] {
      return DetokenizeIds(context_.model, *request, *response);
    });
  }

  grpc::ServerUnaryReactor* GetModel(
      grpc::CallbackServerContext* server_context,
      const v1::GetModelRequest* request, v1::ModelInfo* response) override {
    const grpc::Status refused = Refusal(*server_context, CallKind::kLook);
    if (refused.ok()) *response = DescribeServedModel(context_);
    return FinishedCall(server_context, refused);
  }

  // OK when the caller's key may make such a call, which holds nothing.
  grpc::Status Refusal(const grpc::CallbackServerContext& server_context,
                       CallKind kind) {
    return ToGrpcRefusal(
        AdmitGrpcCall(context_.authenticator, server_context, kind).status());
  }

  static grpc::ServerUnaryReactor* FinishedCall(
      grpc::CallbackServerContext* server_context, const grpc::Status& status) {
    grpc::ServerUnaryReactor* reactor = server_context->DefaultReactor();
    reactor->Finish(status);
    return reactor;
  }

  // Runs `work` on the work queue and finishes the call with its status. The
  // call counts against the bound on requests while it waits.
  grpc::ServerUnaryReactor* Later(grpc::CallbackServerContext* server_context,
                                  std::function<absl::Status()> work) {
    const absl::StatusOr<KeyLease> lease = AdmitGrpcCall(
        context_.authenticator, *server_context, CallKind::kCompute);
    if (!lease.ok()) {
      return FinishedCall(server_context, ToGrpcRefusal(lease.status()));
    }
    absl::StatusOr<Admission::Ticket> place =
        context_.admission.TryEnter(lease->ToAdmissionRequest(0));
    if (!place.ok()) {
      return FinishedCall(server_context, ToGrpcRefusal(place.status()));
    }
    auto ticket = std::make_shared<Admission::Ticket>(*std::move(place));
    grpc::ServerUnaryReactor* reactor = server_context->DefaultReactor();
    context_.live_calls.Add();
    context_.work_queue.Post(
        [this, reactor, ticket = std::move(ticket), work = std::move(work)] {
          const absl::Status status = work();
          *ticket = Admission::Ticket();
          reactor->Finish(ToGrpcStatus(status));
          context_.live_calls.Remove();
        });
    return reactor;
  }

  GatewayContext& context_;
  const ChatPrompt chat_;
};

// What grpc.health.v1 says: the routers' readiness until a drain begins.
// Thread-safe.
class Readiness {
 public:
  void SetServer(RpcServer* server) {
    absl::MutexLock lock(&mu_);
    server_ = server;
    Tell();
  }
  void SetRouters(bool any_ready) {
    absl::MutexLock lock(&mu_);
    any_ready_ = any_ready;
    Tell();
  }
  void Drain() {
    absl::MutexLock lock(&mu_);
    if (std::exchange(draining_, true) || server_ == nullptr) return;
    server_->SetServing(false);
  }

 private:
  void Tell() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    // Once it drains the server may be gone.
    if (server_ != nullptr && !draining_) server_->SetServing(any_ready_);
  }

  absl::Mutex mu_;
  RpcServer* server_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool any_ready_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
};

RouterPoolOptions PoolOptions(const GatewayOptions& options,
                              const ServedModel& model, Readiness& readiness) {
  RouterPoolOptions pool;
  pool.model_fingerprint = model.fingerprint;
  pool.credentials = options.security.to_routers;
  pool.poll_interval = options.poll_interval;
  pool.health = options.router_health;
  // A silence that is allowed is no failed look either.
  pool.poll_timeout = std::max(pool.poll_timeout, pool.health.min_silence);
  pool.on_ready_change = [&readiness](bool any_ready) {
    readiness.SetRouters(any_ready);
  };
  return pool;
}

}  // namespace

// Members are destroyed in the reverse order: the server first, the context
// when no call uses it any more.
struct Gateway::State {
  State(const GatewayOptions& options, ServedModel model,
        std::unique_ptr<AddressSource> source, std::unique_ptr<KeyStore> keys)
      : security(options.security),
        admission(
            {.max_requests = options.max_requests,
             .max_waiting_prompt_tokens = options.max_waiting_prompt_tokens},
            *options.limit_clock),
        key_store(std::move(keys)),
        authenticator(key_store.get(), *options.limit_clock),
        router_addresses(std::move(source)),
        routers(PoolOptions(options, model, readiness)),
        work_queue(options.tokenizer_threads),
        context{.name = options.name,
                .created_s = static_cast<int64_t>(std::time(nullptr)),
                .model = std::move(model),
                .limits = options.limits,
                .router_wait = options.router_wait,
                .max_pending_responses = options.max_pending_responses,
                .vllm_metrics = options.vllm_metrics,
                .counters = {},
                .metrics = {},
                .early_ends = {},
                .balance_board = {},
                .admission = admission,
                .authenticator = authenticator,
                .router_addresses = *router_addresses,
                .routers = routers,
                .work_queue = work_queue,
                .live_calls = {},
                .expert_credentials = options.security.to_experts},
        service(context),
        inference_service(MakeInferenceService(context)) {}

  void Stop(milliseconds grace) {
    context.draining = true;
    readiness.Drain();
    if (http != nullptr) http->server().Drain();
    // The port stays open: a load balancer that asks is told NOT_SERVING.
    context.live_calls.AwaitNone(absl::FromChrono(grace));
    // Those that came last are being told that it drains.
    const milliseconds last = std::min(grace, milliseconds(100));
    if (http != nullptr) http->server().Shutdown(last);
    server->Shutdown(last);
    router_addresses->Stop();
    routers.Stop();
    context.live_calls.AwaitNone();
  }

  const GatewaySecurity security;  // keeps the files watched
  Readiness readiness;
  Admission admission;
  const std::unique_ptr<KeyStore> key_store;  // nullptr: no keys
  Authenticator authenticator;
  std::unique_ptr<AddressSource> router_addresses;
  RouterPool routers;
  WorkQueue work_queue;
  GatewayContext context;
  GatewayService service;
  const std::unique_ptr<grpc::Service> inference_service;
  std::unique_ptr<RpcServer> server;
  std::unique_ptr<HttpFront> http;  // may be null
};

Gateway::Gateway(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Start(
    const GatewayOptions& options, ServedModel model) {
  if (options.routers.empty()) {
    return absl::InvalidArgumentError("routers: at least one address");
  }
  if (options.max_requests == 0) {
    return absl::InvalidArgumentError("max-requests is 0; at least 1");
  }
  AddressSourceOptions discovery = options.discovery;
  discovery.specs = options.routers;
  absl::StatusOr<std::unique_ptr<AddressSource>> source =
      AddressSource::Create(std::move(discovery));
  if (!source.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("routers: ", std::string(source.status().message())));
  }
  std::unique_ptr<KeyStore> keys;
  if (!options.api_keys.empty()) {
    ABSL_ASSIGN_OR_RETURN(
        keys, KeyStore::Open({.path = options.api_keys}, *options.limit_clock));
  }
  auto state = std::make_unique<State>(options, std::move(model),
                                       *std::move(source), std::move(keys));
  RpcServerOptions server_options;
  server_options.listen = options.listen;
  server_options.max_receive_bytes = kMaxReceiveBytes;
  server_options.reflection = options.reflection;
  server_options.credentials = options.security.for_clients;
  server_options.admin_listen = options.admin_listen;
  server_options.admin_credentials = options.security.for_admins;
  server_options.allow_plaintext = options.allow_plaintext;
  ABSL_ASSIGN_OR_RETURN(
      state->server,
      RpcServer::Start(server_options,
                       {&state->service, state->inference_service.get()}));
  const bool demands_certificates =
      !options.security.http_client_ca_file.empty();
  if (!options.http.listen.empty()) {
    HttpServerOptions http = options.http;
    http.tls_cert_file = options.security.http_cert_file;
    http.tls_key_file = options.security.http_key_file;
    http.tls_client_ca_file = options.security.http_client_ca_file;
    for (const std::string& address : http.listen) {
      if (!http.tls_cert_file.empty()) continue;
      ABSL_RETURN_IF_ERROR(CheckPlaintext(address, options.allow_plaintext));
    }
    ABSL_ASSIGN_OR_RETURN(state->http, HttpFront::Start(http, state->context));
  }
  const bool demands_keys = state->authenticator.demands_keys();
  for (const std::string& address : state->server->addresses()) {
    WarnWhenOpen(address, demands_keys, demands_certificates);
  }
  if (state->http != nullptr) {
    for (const std::string& address : state->http->addresses()) {
      WarnWhenOpen(address, demands_keys, demands_certificates);
    }
  }
  state->readiness.SetServer(state->server.get());
  state->router_addresses->Start(
      [routers = &state->routers](const std::vector<std::string>& addresses) {
        routers->SetAddresses(addresses);
      });
  return std::unique_ptr<Gateway>(new Gateway(std::move(state)));
}

Gateway::~Gateway() { Drain(milliseconds(0)); }

const std::vector<std::string>& Gateway::addresses() const {
  return state_->server->addresses();
}

const std::vector<std::string>& Gateway::http_addresses() const {
  static const std::vector<std::string> none;
  return state_->http == nullptr ? none : state_->http->addresses();
}

void Gateway::AddMetrics(MetricFamilies& families) const {
  troupe::AddMetrics(state_->context, families);
}

absl::Status Gateway::Ready() const {
  const GatewayContext& context = state_->context;
  if (context.draining) return absl::UnavailableError("draining");
  for (const v1::RouterPeer& peer : context.routers.Describe()) {
    if (peer.state() == "ready" && !peer.removed()) return absl::OkStatus();
  }
  return absl::UnavailableError(
      absl::StrCat("no router is ready: ", context.routers.Explain()));
}

void Gateway::Drain(milliseconds grace) { state_->Stop(grace); }

}  // namespace troupe

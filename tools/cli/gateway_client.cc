#include "tools/cli/gateway_client.h"

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/status.h"
#include "protos/gateway.grpc.pb.h"

namespace troupe {
namespace {

constexpr milliseconds kUnaryTimeout{10000};

void SetTimeout(grpc::ClientContext& context, milliseconds timeout) {
  SetDeadline(context, Clock::Real().Now() + timeout);
}

// gRPC's words for a connection that came about and was no use, in ours.
std::string ExplainConnection(const std::string& message) {
  if (absl::StrContains(message, "wrong version number")) {
    return "speaks no TLS: leave --tls-cert, --tls-key and --tls-ca out";
  }
  if (absl::StrContains(message, "certificate verify failed")) {
    return "its certificate is of no CA in --tls-ca, or out of its time";
  }
  const size_t refused = message.find("the server was refused");
  if (refused != std::string::npos) return message.substr(refused);
  if (absl::StrContains(message, "Socket closed") ||
      absl::StrContains(message, "onnection reset")) {
    return "ended the connection at once. Does it want TLS (--tls-ca), or "
           "another certificate (--tls-cert, --tls-key)? Its log says why";
  }
  return "";
}

}  // namespace

struct GatewayClient::State {
  std::string api_key;
  std::unique_ptr<v1::Gateway::Stub> stub;
  absl::Mutex mu;
  std::set<grpc::ClientContext*> running ABSL_GUARDED_BY(mu);
};

void SetApiKey(grpc::ClientContext& context, const std::string& api_key) {
  if (api_key.empty()) return;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", api_key));
}

GatewayClient::GatewayClient(
    const std::string& address, const std::string& api_key,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials)
    : state_(std::make_unique<State>()) {
  state_->api_key = api_key;
  state_->stub = v1::Gateway::NewStub(MakeChannel(address, credentials));
}
GatewayClient::~GatewayClient() = default;

absl::StatusOr<v1::ModelInfo> GatewayClient::GetModel() {
  grpc::ClientContext context;
  SetTimeout(context, kUnaryTimeout);
  SetApiKey(context, state_->api_key);
  v1::ModelInfo info;
  const grpc::Status status =
      state_->stub->GetModel(&context, v1::GetModelRequest(), &info);
  if (!status.ok()) return FromGrpcStatus(status);
  return info;
}

absl::StatusOr<v1::ClusterStats> GatewayClient::GetStats(bool include_experts) {
  grpc::ClientContext context;
  SetTimeout(context, kUnaryTimeout);
  SetApiKey(context, state_->api_key);
  v1::GetStatsRequest request;
  request.set_include_experts(include_experts);
  v1::ClusterStats stats;
  const grpc::Status status = state_->stub->GetStats(&context, request, &stats);
  if (!status.ok()) return FromGrpcStatus(status);
  return stats;
}

absl::Status GatewayClient::ReportBalance(const v1::BalanceReport& report) {
  grpc::ClientContext context;
  SetTimeout(context, kUnaryTimeout);
  SetApiKey(context, state_->api_key);
  v1::ReportBalanceResponse response;
  return FromGrpcStatus(
      state_->stub->ReportBalance(&context, report, &response));
}

absl::StatusOr<std::vector<uint32_t>> GatewayClient::Tokenize(
    const std::string& text, bool add_special_tokens, bool parse_special) {
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_add_special_tokens(add_special_tokens);
  request.set_parse_special(parse_special);
  return TokenIds(request);
}

absl::StatusOr<std::vector<uint32_t>> GatewayClient::TokenizeChat(
    const std::vector<v1::ChatMessage>& messages) {
  v1::TokenizeRequest request;
  request.mutable_messages()->Add(messages.begin(), messages.end());
  return TokenIds(request);
}

absl::StatusOr<std::vector<uint32_t>> GatewayClient::TokenIds(
    const v1::TokenizeRequest& request) {
  grpc::ClientContext context;
  SetTimeout(context, kUnaryTimeout);
  SetApiKey(context, state_->api_key);
  v1::TokenizeResponse response;
  const grpc::Status status =
      state_->stub->Tokenize(&context, request, &response);
  if (!status.ok()) return FromGrpcStatus(status);
  return std::vector<uint32_t>(response.token_ids().begin(),
                               response.token_ids().end());
}

absl::Status GatewayClient::Generate(
    const v1::GenerateRequest& request, int timeout_ms,
    const std::function<void(const v1::GenerateResponse&)>& on_response) {
  grpc::ClientContext context;
  SetApiKey(context, state_->api_key);
  if (timeout_ms > 0) SetTimeout(context, milliseconds(timeout_ms));
  {
    absl::MutexLock lock(&state_->mu);
    state_->running.insert(&context);
  }
  const auto reader = state_->stub->Generate(&context, request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) on_response(response);
  const grpc::Status status = reader->Finish();
  absl::MutexLock lock(&state_->mu);
  state_->running.erase(&context);
  return FromGrpcStatus(status);
}

void GatewayClient::CancelAll() {
  absl::MutexLock lock(&state_->mu);
  for (grpc::ClientContext* context : state_->running) context->TryCancel();
}

std::string Explain(const absl::Status& status, const std::string& address) {
  const std::string message = status.message().empty()
                                  ? absl::StatusCodeToString(status.code())
                                  : std::string(status.message());
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      if (!absl::StartsWith(message, "failed to connect")) {
        return absl::StrCat(address, ": ", message);
      }
      if (const std::string text = ExplainConnection(message); !text.empty()) {
        return absl::StrCat(address, ": ", text);
      }
      return absl::StrCat("cannot reach ", address,
                          ". Is a cluster running there? Start one with: "
                          "troupe serve MODEL_DIR");
    case absl::StatusCode::kResourceExhausted:
      return absl::StrCat(address, ": ", message, "; try again in a moment");
    case absl::StatusCode::kUnauthenticated:
      return absl::StrCat(address, ": ", message,
                          "; give one with --api-key-file or TROUPE_API_KEY");
    case absl::StatusCode::kDeadlineExceeded:
      return absl::StrCat(address, ": no answer in time (", message, ")");
    default:
      return absl::StrCat(address, ": ", message);
  }
}

bool SamplingFlags::any() const {
  return temperature || top_k || top_p || min_p || repetition_penalty ||
         presence_penalty || frequency_penalty;
}

v1::SamplingParams MergeSampling(const v1::SamplingParams& defaults,
                                 const SamplingFlags& flags) {
  v1::SamplingParams sampling = defaults;
  if (flags.temperature) sampling.set_temperature(*flags.temperature);
  if (flags.top_k) sampling.set_top_k(*flags.top_k);
  if (flags.top_p) sampling.set_top_p(*flags.top_p);
  if (flags.min_p) sampling.set_min_p(*flags.min_p);
  if (flags.repetition_penalty) {
    sampling.set_repetition_penalty(*flags.repetition_penalty);
  }
  if (flags.presence_penalty) {
    sampling.set_presence_penalty(*flags.presence_penalty);
  }
  if (flags.frequency_penalty) {
    sampling.set_frequency_penalty(*flags.frequency_penalty);
  }
  return sampling;
}

}  // namespace troupe

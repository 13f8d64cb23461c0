// What the client commands share.
#ifndef TROUPE_TOOLS_CLI_GATEWAY_CLIENT_H_
#define TROUPE_TOOLS_CLI_GATEWAY_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/client_context.h"
#include "grpcpp/security/credentials.h"
#include "protos/gateway.pb.h"

namespace troupe {

inline constexpr char kDefaultAddress[] = "127.0.0.1:7070";

// Calls to one gateway. Thread-safe.
class GatewayClient {
 public:
  // api_key: empty for none. credentials: for host:port; null: plain text.
  explicit GatewayClient(
      const std::string& address, const std::string& api_key = "",
      const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);
  ~GatewayClient();

  absl::StatusOr<v1::ModelInfo> GetModel();
  absl::StatusOr<v1::ClusterStats> GetStats(bool include_experts);
  absl::Status ReportBalance(const v1::BalanceReport& report);
  absl::StatusOr<std::vector<uint32_t>> Tokenize(const std::string& text,
                                                 bool add_special_tokens,
                                                 bool parse_special);
  // By the model's chat template.
  absl::StatusOr<std::vector<uint32_t>> TokenizeChat(
      const std::vector<v1::ChatMessage>& messages);

  // Calls `on_response` for every response, in this thread. timeout_ms 0: no
  // deadline. Cancelled after CancelAll.
  absl::Status Generate(
      const v1::GenerateRequest& request, int timeout_ms,
      const std::function<void(const v1::GenerateResponse&)>& on_response);

  // Cancels the Generate calls that run.
  void CancelAll();

 private:
  absl::StatusOr<std::vector<uint32_t>> TokenIds(
      const v1::TokenizeRequest& request);

  struct State;
  std::unique_ptr<State> state_;
};

// Calls with the key; with none when it is empty.
void SetApiKey(grpc::ClientContext& context, const std::string& api_key);

// One line for people, with advice where there is some.
std::string Explain(const absl::Status& status, const std::string& address);

// What a user may say about sampling; what he does not say is left to the
// checkpoint's defaults.
struct SamplingFlags {
  std::optional<float> temperature;
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;

  bool any() const;
};

// The defaults with what the flags say instead.
v1::SamplingParams MergeSampling(const v1::SamplingParams& defaults,
                                 const SamplingFlags& flags);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_GATEWAY_CLIENT_H_

#include "common/rpc/grpc_log.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/log_limiter.h"
#include "common/logging.h"
#include "grpc/support/log.h"

namespace troupe {
namespace {

constexpr absl::string_view kHandshake = "Handshake failed";

void Log(gpr_log_func_args* line) {
  // gRPC's threads may outlive the logger at the end of the process.
  if (spdlog::default_logger_raw() == nullptr) return;
  const std::string handshake = ExplainHandshake(line->message);
  if (!handshake.empty()) {
    static LogLimiter* const limiter = new LogLimiter(1, milliseconds(1000));
    uint64_t left_out = 0;
    if (limiter->Allow(Clock::Real().Now(), left_out)) {
      spdlog::warn("TLS handshake failed: {} left_out={}", handshake, left_out);
    }
    return;
  }
  switch (line->severity) {
    case GPR_LOG_SEVERITY_ERROR:
      spdlog::error("grpc: {}", line->message);
      return;
    case GPR_LOG_SEVERITY_INFO:
      spdlog::info("grpc: {}", line->message);
      return;
    case GPR_LOG_SEVERITY_DEBUG:
      spdlog::debug("grpc: {}", line->message);
      return;
  }
}

}  // namespace

void RouteGrpcLog() { gpr_set_log_function(&Log); }

std::string ExplainHandshake(absl::string_view message) {
  if (!absl::StrContains(message, kHandshake)) return "";
  const struct {
    const char* reason;  // OpenSSL's
    const char* text;
  } kReasons[] = {
      {"peer did not return a certificate", "the client shows no certificate"},
      {"certificate verify failed",
       "the other side's certificate is of no CA that is trusted here, is out "
       "of its time, or is not for this use"},
      {"wrong version number", "the other side does not speak TLS"},
      {"http request", "the other side does not speak TLS"},
      {"unknown ca", "the other side does not trust the CA of our certificate"},
      {"certificate expired", "the other side says that ours has expired"},
      {"bad certificate", "the other side refuses our certificate"},
      {"certificate required", "the other side wants a certificate of ours"},
      {"no shared cipher", "the other side knows none of our ciphers"},
      {"unsupported protocol", "the other side's TLS is too old"},
  };
  for (const auto& [reason, text] : kReasons) {
    if (absl::StrContains(message, reason)) return text;
  }
  return std::string(message);
}

}  // namespace troupe

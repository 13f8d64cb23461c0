// troupe-gateway: takes calls of clients and sends them on to routers.
#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/descriptor_limit.h"
#include "common/logging.h"
#include "common/ops/ops_server.h"
#include "common/rpc/grpc_log.h"
#include "common/rpc/rpc_server.h"
#include "common/service_flags.h"
#include "gateway/gateway.h"

namespace troupe {
namespace {

struct Flags {
  GatewaySecurityOptions security;
  std::string model_dir;
  std::string model_name;
  GatewayOptions gateway;
  int drain_seconds = 30;
  int router_wait_seconds = 30;
  int router_silence_ms = 400;
  int router_stall_seconds = 15;
  int discovery_interval_ms = 1000;
  ServiceFlags service;
  bool die_with_parent = false;
};

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("MODEL_DIR", flags.model_dir,
                 "Checkpoint folder; config and tokenizer are read")
      ->envname("TROUPE_MODEL_DIR")
      ->required();
  app.add_option("--routers", flags.gateway.routers,
                 "Routers: host:port, unix:/path, file:/path (a list, one "
                 "address per line, watched) or dns:name:port (resolved again "
                 "and again); with commas between")
      ->envname("TROUPE_ROUTERS")
      ->delimiter(',')
      ->required();
  app.add_option("--name", flags.gateway.name, "Name in statistics and logs")
      ->envname("TROUPE_NAME")
      ->capture_default_str();
  app.add_option("--model-name", flags.model_name,
                 "Name of the model; default: the folder's name")
      ->envname("TROUPE_MODEL_NAME");
  app.add_option("--listen", flags.gateway.listen,
                 "host:port (port 0: any) or unix:/path; may be repeated")
      ->envname("TROUPE_LISTEN")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--http-listen", flags.gateway.http.listen,
                 "host:port (port 0: any) of the OpenAI-style HTTP API; may be "
                 "repeated; default: none")
      ->envname("TROUPE_HTTP_LISTEN")
      ->delimiter(',');
  app.add_option("--http-max-connections", flags.gateway.http.max_connections,
                 "HTTP connections at a time; more are refused with 503")
      ->envname("TROUPE_HTTP_MAX_CONNECTIONS")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--http-max-body-bytes", flags.gateway.http.max_body_bytes,
                 "Largest body of an HTTP request")
      ->envname("TROUPE_HTTP_MAX_BODY_BYTES")
      ->check(CLI::Range(1024, 64 << 20))
      ->capture_default_str();
  app.add_option("--max-requests", flags.gateway.max_requests,
                 "Requests in progress; more are refused")
      ->envname("TROUPE_MAX_REQUESTS")
      ->check(CLI::Range(1u, 1u << 20))
      ->capture_default_str();
  app.add_option("--max-waiting-prompt-tokens",
                 flags.gateway.max_waiting_prompt_tokens,
                 "Tokens of the prompts that wait for their first token; more "
                 "are refused; 0: no bound")
      ->envname("TROUPE_MAX_WAITING_PROMPT_TOKENS")
      ->check(CLI::Range(uint64_t{0}, uint64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--api-keys", flags.gateway.api_keys,
                 "File of the API keys that are let in (troupe keys add "
                 "writes it); watched; default: everybody is let in")
      ->envname("TROUPE_API_KEYS");
  app.add_option("--max-prompt-bytes", flags.gateway.limits.max_prompt_bytes,
                 "Longest text of a prompt, in bytes")
      ->envname("TROUPE_MAX_PROMPT_BYTES")
      ->check(CLI::Range(1u, 7u << 20))
      ->capture_default_str();
  app.add_option("--max-prompt-tokens", flags.gateway.limits.max_prompt_tokens,
                 "Longest prompt in tokens; 0: what the context holds")
      ->envname("TROUPE_MAX_PROMPT_TOKENS")
      ->capture_default_str();
  app.add_option("--router-wait-seconds", flags.router_wait_seconds,
                 "How long a request without a deadline waits for a router")
      ->envname("TROUPE_ROUTER_WAIT_SECONDS")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str();
  app.add_option("--router-silence-ms", flags.router_silence_ms,
                 "A router that answers no probe for so long is left for "
                 "another; grows up to five times with the time that its "
                 "answers take")
      ->envname("TROUPE_ROUTER_SILENCE_MS")
      ->check(CLI::Range(20, 3600000))
      ->capture_default_str();
  app.add_option("--router-stall-seconds", flags.router_stall_seconds,
                 "A router that answers, but whose sequences stand still for "
                 "so long is left for another")
      ->envname("TROUPE_ROUTER_STALL_SECONDS")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  app.add_option("--discovery-interval-ms", flags.discovery_interval_ms,
                 "Between two resolutions of a dns:name:port")
      ->envname("TROUPE_DISCOVERY_INTERVAL_MS")
      ->check(CLI::Range(50, 3600000))
      ->capture_default_str();
  app.add_option("--drain-seconds", flags.drain_seconds,
                 "On SIGTERM: time for running streams to end")
      ->envname("TROUPE_DRAIN_SECONDS")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  app.add_flag("--reflection,!--no-reflection", flags.gateway.reflection,
               "Server reflection, for grpcurl and its kind (default: on)")
      ->envname("TROUPE_REFLECTION");
  AddServiceFlags(app, flags.service);
  app.add_flag("--vllm-metrics", flags.gateway.vllm_metrics,
               "Metrics under vLLM's names, too, for dashboards and the "
               "Gateway API Inference Extension")
      ->envname("TROUPE_VLLM_METRICS");
  app.add_flag("--die-with-parent", flags.die_with_parent,
               "End when the process that started this one ends");
}

std::string BaseName(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

void AddSecurityFlags(CLI::App& app, GatewaySecurityOptions& security) {
  AddServiceTlsFlags(app, security.service, /*has_admin_calls=*/true);
  const std::string group = app.get_option("--tls-ca")->get_group();
  app.add_option("--public-tls-cert", security.public_cert_file,
                 "What clients are shown instead of --tls-cert, in PEM")
      ->envname("TROUPE_PUBLIC_TLS_CERT")
      ->group(group);
  app.add_option("--public-tls-key", security.public_key_file, "Its key")
      ->envname("TROUPE_PUBLIC_TLS_KEY")
      ->group(group);
  app.add_option("--client-ca", security.client_ca_file,
                 "CA of clients' certificates, if it is not --tls-ca")
      ->envname("TROUPE_CLIENT_CA")
      ->group(group);
  app.add_flag("--require-client-certs", security.require_client_certs,
               "Refuse clients without a certificate")
      ->envname("TROUPE_REQUIRE_CLIENT_CERTS")
      ->group(group);
}

int Run(const Flags& flags) {
  const absl::StatusOr<std::unique_ptr<OpsServer>> ops =
      OpsServer::StartAndTell(flags.service.ops_listen, "gateway",
                              flags.gateway.name);
  if (!ops.ok()) {
    spdlog::error("{}", std::string(ops.status().message()));
    return 1;
  }
  absl::StatusOr<ServedModel> model = LoadServedModel(
      flags.model_dir,
      flags.model_name.empty() ? BaseName(flags.model_dir) : flags.model_name);
  if (!model.ok()) {
    spdlog::error("{}", std::string(model.status().message()));
    return 1;
  }
  GatewayOptions options = flags.gateway;
  options.router_wait = std::chrono::seconds(flags.router_wait_seconds);
  options.router_health.min_silence = milliseconds(flags.router_silence_ms);
  options.router_health.max_silence = milliseconds(5 * flags.router_silence_ms);
  options.router_health.stall_after =
      std::chrono::seconds(flags.router_stall_seconds);
  options.discovery.dns_interval = milliseconds(flags.discovery_interval_ms);
  absl::StatusOr<GatewaySecurity> security =
      LoadGatewaySecurity(flags.security);
  if (!security.ok()) {
    spdlog::error("{}", std::string(security.status().message()));
    return 1;
  }
  options.security = *std::move(security);
  options.admin_listen = flags.security.service.admin_listen;
  options.allow_plaintext = flags.security.service.allow_plaintext;
  absl::StatusOr<std::unique_ptr<Gateway>> gateway =
      Gateway::Start(options, *std::move(model));
  if (!gateway.ok()) {
    spdlog::error("{}", std::string(gateway.status().message()));
    return 1;
  }
  const auto attachment =
      (*ops)->Attach({.add_metrics =
                          [&gateway](MetricFamilies& families) {
                            (*gateway)->AddMetrics(families);
                          },
                      .ready = [&gateway] { return (*gateway)->Ready(); }});
  // For whoever started this process with port 0.
  for (const std::string& address : (*gateway)->addresses()) {
    std::printf("listening on %s\n", address.c_str());
  }
  for (const std::string& address : (*gateway)->http_addresses()) {
    std::printf("http on %s\n", address.c_str());
  }
  std::fflush(stdout);
  const std::chrono::seconds grace(flags.drain_seconds);
  const int signal = WaitForTermination(grace + std::chrono::seconds(5));
  spdlog::info("draining signal={} limit_s={}", signal, flags.drain_seconds);
  (*ops)->StartDraining();
  (*gateway)->Drain(grace);
  spdlog::info("drained");
  return 0;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::BlockTerminationSignals();
  CLI::App app(
      "Takes calls of clients (gRPC troupe.v1.Gateway) and sends them on to "
      "routers.\nEvery flag can be given as TROUPE_<NAME>, too. Exit status: "
      "0 after SIGTERM,\n1 when it cannot start, 2 for a wrong flag.",
      "troupe-gateway");
  app.footer(
      "Example:\n  troupe-gateway models/demo --routers 10.0.0.5:7100,"
      "10.0.0.6:7100 \\\n      --listen 0.0.0.0:7070 --tls-cert "
      "certs/gateway.pem \\\n      "
      "--tls-key certs/gateway.key --tls-ca certs/ca.pem");
  troupe::Flags flags;
  troupe::AddFlags(app, flags);
  troupe::AddSecurityFlags(app, flags.security);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (flags.die_with_parent) troupe::DieWithParent();
  troupe::InitServiceLogging(flags.gateway.name, flags.service);
  troupe::RouteGrpcLog();
  troupe::RaiseDescriptorLimit();
  return troupe::Run(flags);
}

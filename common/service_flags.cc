#include "common/service_flags.h"

#include "CLI/CLI.hpp"
#include "common/json_log_formatter.h"
#include "common/logging.h"

namespace troupe {

void AddServiceFlags(CLI::App& app, ServiceFlags& flags) {
  app.add_option("--ops-listen", flags.ops_listen,
                 "host:port (port 0: any) of /livez, /readyz and /metrics; "
                 "plain HTTP for whoever operates the cluster. Off when empty")
      ->envname("TROUPE_OPS_LISTEN");
  app.add_option("--log-level", flags.log_level,
                 "What goes to standard error: trace, debug, info, warn, error "
                 "or off")
      ->envname("TROUPE_LOG_LEVEL")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}))
      ->capture_default_str();
  app.add_option("--log-format", flags.log_format,
                 "text, or json: one object a line")
      ->envname("TROUPE_LOG_FORMAT")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
}

void InitServiceLogging(const std::string& process, const ServiceFlags& flags) {
  InitLogging(process, flags.log_level);
  if (flags.log_format == "json") {
    spdlog::default_logger()->set_formatter(
        std::make_unique<JsonLogFormatter>());
  }
}

}  // namespace troupe

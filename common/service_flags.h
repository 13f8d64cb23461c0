// Flags that every service has.
#ifndef TROUPE_COMMON_SERVICE_FLAGS_H_
#define TROUPE_COMMON_SERVICE_FLAGS_H_

#include <string>

namespace CLI {
class App;
}

namespace troupe {

struct ServiceFlags {
  std::string ops_listen;  // empty: no operations port
  std::string log_level = "info";
  std::string log_format = "text";
};

// --ops-listen, --log-level and --log-format, with their TROUPE_ names in the
// environment.
void AddServiceFlags(CLI::App& app, ServiceFlags& flags);

// InitLogging, in the format that the flags say. `process` as there.
void InitServiceLogging(const std::string& process, const ServiceFlags& flags);

}  // namespace troupe

#endif  // TROUPE_COMMON_SERVICE_FLAGS_H_

// Logging: spdlog behind one set-up call. Libraries log with the spdlog::info,
// warn and error functions; one line per event, key=value fields, never a
// prompt or a secret.
#ifndef TROUPE_COMMON_LOGGING_H_
#define TROUPE_COMMON_LOGGING_H_

#include <string>

#include "spdlog/spdlog.h"

namespace troupe {

// Logs go to standard error. `process` names the process in every line
// ("router", "expert-2"); `level` is trace, debug, info, warn, error or off.
// Call once, at the start of main.
void InitLogging(const std::string& process, const std::string& level);

}  // namespace troupe

#endif  // TROUPE_COMMON_LOGGING_H_

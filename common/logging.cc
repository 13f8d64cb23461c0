#include "common/logging.h"

#include <memory>

#include "spdlog/sinks/stdout_sinks.h"

namespace troupe {

void InitLogging(const std::string& process, const std::string& level) {
  // Not through spdlog's registry, which throws for a name that it knows (the
  // empty one, too).
  auto logger = std::make_shared<spdlog::logger>(
      process, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %n: %v");
  logger->set_level(spdlog::level::from_str(level));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace troupe

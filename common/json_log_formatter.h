// Log lines as JSON.
#ifndef TROUPE_COMMON_JSON_LOG_FORMATTER_H_
#define TROUPE_COMMON_JSON_LOG_FORMATTER_H_

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "spdlog/formatter.h"

namespace troupe {

// The key=value pairs of a message, in their order, the first of each key.
// Values end at a space; those in quotation marks before the next pair, or at
// the end of the message.
std::vector<std::pair<std::string, std::string>> LogFields(
    std::string_view message);

// One object a line: time (RFC 3339, UTC), level, service, message, and the
// message's fields: numbers as such, but ids always as texts, so that a field
// has one type. Used by one logger, under its lock.
class JsonLogFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message,
              spdlog::memory_buf_t& line) override;
  std::unique_ptr<spdlog::formatter> clone() const override;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_JSON_LOG_FORMATTER_H_

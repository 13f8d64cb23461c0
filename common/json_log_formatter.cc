#include "common/json_log_formatter.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>

#include "nlohmann/json.hpp"
#include "spdlog/details/log_msg.h"

namespace troupe {
namespace {

bool IsKey(std::string_view text) {
  return !text.empty() && text[0] >= 'a' && text[0] <= 'z' &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
         });
}

// Where the quoted value that begins there ends: before the mark that a space
// and another pair, or nothing, follow. What is quoted may hold such marks.
size_t EndOfQuoted(std::string_view message, size_t begin) {
  for (size_t at = begin; at < message.size(); ++at) {
    if (message[at] != '"') continue;
    if (at + 1 == message.size()) return at;
    if (message[at + 1] != ' ') continue;
    const std::string_view rest = message.substr(at + 2);
    const size_t equals = rest.find('=');
    if (equals != std::string_view::npos && IsKey(rest.substr(0, equals))) {
      return at;
    }
  }
  return message.size();
}

// "2026-11-25T18:19:32.123Z"
std::string Rfc3339(spdlog::log_clock::time_point time) {
  using std::chrono::duration_cast;
  const auto since_epoch = time.time_since_epoch();
  const auto seconds = std::chrono::floor<std::chrono::seconds>(since_epoch);
  const std::time_t whole = seconds.count();
  std::tm utc = {};
  gmtime_r(&whole, &utc);
  char text[40];
  const size_t length = std::strftime(text, sizeof(text), "%FT%T", &utc);
  std::snprintf(text + length, sizeof(text) - length, ".%03dZ",
                static_cast<int>(duration_cast<std::chrono::milliseconds>(
                                     since_epoch - seconds)
                                     .count()));
  return text;
}

// A number as JSON writes them, or the text.
nlohmann::json Value(const std::string& key, const std::string& text) {
  const bool is_id =
      key == "id" ||
      (key.size() > 3 && key.compare(key.size() - 3, 3, "_id") == 0);
  const bool may_be_number =
      !is_id && !text.empty() && text.size() < 20 &&
      text.find_first_not_of("0123456789.-") == std::string::npos;
  if (!may_be_number) return text;
  nlohmann::json value = nlohmann::json::parse(text, nullptr, false);
  return value.is_number() ? value : nlohmann::json(text);
}

}  // namespace

std::vector<std::pair<std::string, std::string>> LogFields(
    std::string_view message) {
  std::vector<std::pair<std::string, std::string>> fields;
  size_t at = 0;
  while (at < message.size()) {
    size_t end = std::min(message.find(' ', at), message.size());
    const std::string_view word = message.substr(at, end - at);
    const size_t equals = word.find('=');
    if (equals != std::string_view::npos && IsKey(word.substr(0, equals))) {
      const std::string key(word.substr(0, equals));
      size_t begin = at + equals + 1;
      size_t end_of_value = end;
      if (begin < message.size() && message[begin] == '"') {
        ++begin;
        end_of_value = EndOfQuoted(message, begin);
        end = std::min(end_of_value + 1, message.size());
      }
      const bool is_known =
          std::any_of(fields.begin(), fields.end(),
                      [&key](const auto& field) { return field.first == key; });
      if (!is_known) {
        fields.emplace_back(key, message.substr(begin, end_of_value - begin));
      }
    }
    at = end + 1;
  }
  return fields;
}

void JsonLogFormatter::format(const spdlog::details::log_msg& message,
                              spdlog::memory_buf_t& line) {
  const std::string_view text(message.payload.data(), message.payload.size());
  const auto level = spdlog::level::to_string_view(message.level);
  nlohmann::ordered_json json;
  json["time"] = Rfc3339(message.time);
  json["level"] = std::string(level.data(), level.size());
  json["service"] =
      std::string(message.logger_name.data(), message.logger_name.size());
  json["message"] = std::string(text);
  for (const auto& [key, value] : LogFields(text)) {
    json["fields"][key] = Value(key, value);
  }
  const std::string bytes = json.dump(
      -1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  line.append(bytes.data(), bytes.data() + bytes.size());
  line.push_back('\n');
}

std::unique_ptr<spdlog::formatter> JsonLogFormatter::clone() const {
  return std::make_unique<JsonLogFormatter>();
}

}  // namespace troupe

#include <chrono>
#include <string>

#include "common/json_log_formatter.h"
#include "common/log_limiter.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "spdlog/details/log_msg.h"

namespace troupe {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

TEST(LogFieldsTest, FindsThePairsOfAMessage) {
  EXPECT_THAT(LogFields("request request_id=ab outcome=ok total_ms=1.5"),
              ElementsAre(Pair("request_id", "ab"), Pair("outcome", "ok"),
                          Pair("total_ms", "1.5")));
  EXPECT_THAT(
      LogFields("router lost address=h:1 reason=\"no \"way\" there\""),
      ElementsAre(Pair("address", "h:1"), Pair("reason", "no \"way\" there")));
  EXPECT_THAT(LogFields("a reason=\"x y\" code=14 and the rest = text"),
              ElementsAre(Pair("reason", "x y"), Pair("code", "14")));
  EXPECT_THAT(
      LogFields("empty= quoted=\"\" open=\""),
      ElementsAre(Pair("empty", ""), Pair("quoted", ""), Pair("open", "")));
}

TEST(LogFieldsTest, TakesOnlyWhatIsAPair) {
  EXPECT_THAT(LogFields("loading experts: 3.0 of 4.0 MB (75%), 1 MB/s"),
              IsEmpty());
  EXPECT_THAT(LogFields("a == b, =c Key=1 a.b=2 1a=3"), IsEmpty());
  EXPECT_THAT(LogFields(""), IsEmpty());
  // The first one counts: what a client puts behind it changes nothing.
  EXPECT_THAT(LogFields("code=1 code=2"), ElementsAre(Pair("code", "1")));
}

nlohmann::json Format(const std::string& message) {
  spdlog::details::log_msg log("gateway", spdlog::level::warn, message);
  log.time = spdlog::log_clock::time_point(
      std::chrono::milliseconds(1764094772007));  // 2025-11-25 18:19:32.007
  spdlog::memory_buf_t line;
  JsonLogFormatter().clone()->format(log, line);
  const std::string text(line.data(), line.size());
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  return nlohmann::json::parse(text);
}

TEST(JsonLogFormatterTest, OneObjectALine) {
  const std::string message =
      "request request_id=1234 code=14 ttft_ms=0.5 prompt_tokens=007 x=-";
  EXPECT_EQ(Format(message),
            (nlohmann::json{{"time", "2025-11-25T18:19:32.007Z"},
                            {"level", "warning"},
                            {"service", "gateway"},
                            {"message", message},
                            {"fields",
                             {{"request_id", "1234"},
                              {"code", 14},
                              {"ttft_ms", 0.5},
                              {"prompt_tokens", "007"},
                              {"x", "-"}}}}));
}

TEST(JsonLogFormatterTest, AnyBytesStayOneLineOfJson) {
  EXPECT_EQ(Format("a \"quote\"\nand a line")["message"],
            "a \"quote\"\nand a line");
  EXPECT_EQ(Format("broken \xff utf-8")["message"],
            "broken \xEF\xBF\xBD utf-8");
  EXPECT_FALSE(Format("no pairs").contains("fields"));
}

TEST(LogLimiterTest, CountsWhatItLeavesOut) {
  LogLimiter limiter(2, milliseconds(100));
  const SteadyTime start;
  uint64_t left_out = 9;
  EXPECT_TRUE(limiter.Allow(start, left_out));
  EXPECT_EQ(left_out, 0u);
  EXPECT_TRUE(limiter.Allow(start, left_out));
  EXPECT_FALSE(limiter.Allow(start + milliseconds(1), left_out));
  EXPECT_FALSE(limiter.Allow(start + milliseconds(99), left_out));
  EXPECT_TRUE(limiter.Allow(start + milliseconds(100), left_out));
  EXPECT_EQ(left_out, 2u);
  EXPECT_TRUE(limiter.Allow(start + milliseconds(101), left_out));
  EXPECT_EQ(left_out, 0u);
  EXPECT_FALSE(limiter.Allow(start + milliseconds(102), left_out));
}

}  // namespace
}  // namespace troupe

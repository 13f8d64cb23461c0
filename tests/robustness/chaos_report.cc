#include "tests/robustness/chaos_report.h"

#include <algorithm>
#include <map>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "tools/cli/percentiles.h"

namespace troupe {
namespace {

// The longest time between two tokens that reaches into [from, to); -1 when
// the stream was not there. A stream that waits still has waited until `to`.
double LongestGapMs(const StreamRecord& record, double from_s, double to_s) {
  double longest = -1;
  const std::vector<double>& times = record.token_s;
  for (size_t i = 0; i < times.size(); ++i) {
    const bool is_last = i + 1 == times.size();
    if (is_last && record.end_s >= 0) break;
    const double next = is_last ? to_s : times[i + 1];
    if (times[i] >= to_s || next <= from_s) continue;
    longest = std::max(longest, 1e3 * (next - times[i]));
  }
  return longest;
}

double FirstTokenMs(const StreamRecord& record, double from_s, double to_s) {
  if (record.due_s < from_s || record.due_s >= to_s) return 0;
  const double at = !record.token_s.empty() ? record.token_s[0]
                    : record.end_s >= 0     ? record.end_s
                                            : to_s;
  return 1e3 * (at - record.due_s);
}

size_t NumTokens(const StreamRecord& record, double from_s, double to_s) {
  const auto begin =
      std::lower_bound(record.token_s.begin(), record.token_s.end(), from_s);
  const auto end = std::lower_bound(begin, record.token_s.end(), to_s);
  return static_cast<size_t>(end - begin);
}

std::string StallText(const std::vector<double>& stalls_ms) {
  const Percentiles p = ComputePercentiles(stalls_ms);
  return absl::StrFormat("%.0f / %.0f / %.0f", p.p50, p.p99, p.max);
}

double ChangePercent(size_t tokens, size_t quiet_tokens) {
  if (quiet_tokens == 0) return 0;
  return 100 *
         (static_cast<double>(tokens) / static_cast<double>(quiet_tokens) - 1);
}

}  // namespace

FaultResult Measure(const FaultWindow& window,
                    const std::vector<StreamRecord>& records) {
  FaultResult result;
  result.window = window;
  const double before_s = window.begin_s - window.quiet_begin_s;
  const double quiet_from_s = window.fault_at_s - before_s;
  const double quiet_to_s = std::min(window.end_s - before_s, window.begin_s);
  for (const StreamRecord& record : records) {
    result.quiet_tokens += NumTokens(record, window.quiet_begin_s,
                                     window.quiet_begin_s + window.period_s);
    result.tokens +=
        NumTokens(record, window.begin_s, window.begin_s + window.period_s);
    const double quiet = LongestGapMs(record, quiet_from_s, quiet_to_s);
    if (quiet >= 0) result.quiet_stalls_ms.push_back(quiet);
    const double stall = LongestGapMs(record, window.fault_at_s, window.end_s);
    if (stall >= 0) result.stalls_ms.push_back(stall);
    result.quiet_first_token_ms_max =
        std::max(result.quiet_first_token_ms_max,
                 FirstTokenMs(record, quiet_from_s, quiet_to_s));
    result.first_token_ms_max =
        std::max(result.first_token_ms_max,
                 FirstTokenMs(record, window.fault_at_s, window.end_s));

    const bool was_there = record.due_s < window.end_s &&
                           (record.end_s < 0 || record.end_s >= window.begin_s);
    if (!was_there) continue;
    ++result.requests;
    const bool broke_here =
        record.broken_s >= window.begin_s && record.broken_s < window.end_s;
    const bool ended = record.end_s >= 0;
    if (broke_here) {
      if (window.cuts_streams && (record.ok || !ended)) {
        ++result.called_again;
      } else {
        ++result.failed;
        if (result.first_error.empty()) result.first_error = record.error;
      }
    }
    if (!ended || record.end_s >= window.end_s) continue;
    result.wrong_bytes += !record.same_bytes;
    result.unaccounted += !record.accounted;
  }
  std::sort(result.stalls_ms.begin(), result.stalls_ms.end());
  std::sort(result.quiet_stalls_ms.begin(), result.quiet_stalls_ms.end());
  return result;
}

std::vector<std::string> Problems(const FaultResult& result,
                                  const FaultLimits& limits) {
  std::vector<std::string> problems;
  const auto add = [&](const auto&... parts) {
    problems.push_back(absl::StrCat(parts..., " (", result.window.fault, " of ",
                                    result.window.victim, ")"));
  };
  if (result.window.streaming < limits.min_streaming) {
    add("load: ", result.window.streaming, " streams at the fault, not ",
        limits.min_streaming);
  }
  if (result.failed > 0) {
    add("failed: ", result.failed, " requests, the first with ",
        result.first_error);
  }
  if (result.wrong_bytes > 0) {
    add("bytes: ", result.wrong_bytes, " responses are not the undisturbed ",
        "ones");
  }
  if (result.unaccounted > 0) {
    add("copies: ", result.unaccounted, " responses whose copies do not add ",
        "up");
  }
  if (limits.max_stall_ms > 0 && !result.stalls_ms.empty() &&
      result.stalls_ms.back() > limits.max_stall_ms) {
    add("stall: ", result.stalls_ms.back(), " ms, allowed are ",
        limits.max_stall_ms);
  }
  for (const std::string& error : result.window.errors) add("fault: ", error);
  return problems;
}

std::string ToJson(const FaultResult& result) {
  const FaultWindow& window = result.window;
  // Tenths of a millisecond are enough.
  const auto rounded = [](const std::vector<double>& values_ms) {
    std::vector<double> values;
    for (const double value : values_ms) {
      values.push_back(static_cast<double>(static_cast<int64_t>(10 * value)) /
                       10);
    }
    return values;
  };
  const nlohmann::json json = {
      {"fault", window.fault},
      {"victim", window.victim},
      {"period_s", window.period_s},
      {"fault_at_s", window.fault_at_s},
      {"whole_at_s", window.whole_at_s},
      {"end_s", window.end_s},
      {"streaming", window.streaming},
      {"cuts_streams", window.cuts_streams},
      {"errors", window.errors},
      {"requests", result.requests},
      {"failed", result.failed},
      {"called_again", result.called_again},
      {"wrong_bytes", result.wrong_bytes},
      {"unaccounted", result.unaccounted},
      {"tokens", result.tokens},
      {"quiet_tokens", result.quiet_tokens},
      {"stalls_ms", rounded(result.stalls_ms)},
      {"quiet_stalls_ms", rounded(result.quiet_stalls_ms)},
      {"first_token_ms_max", result.first_token_ms_max},
      {"quiet_first_token_ms_max", result.quiet_first_token_ms_max},
      {"first_error", result.first_error}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<FaultResult> FromJson(const std::string& line) {
  const nlohmann::json json =
      nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError("a line is not a JSON object");
  }
  FaultResult result;
  FaultWindow& window = result.window;
  try {
    json.at("fault").get_to(window.fault);
    json.at("victim").get_to(window.victim);
    json.at("period_s").get_to(window.period_s);
    json.at("fault_at_s").get_to(window.fault_at_s);
    json.at("whole_at_s").get_to(window.whole_at_s);
    json.at("end_s").get_to(window.end_s);
    json.at("streaming").get_to(window.streaming);
    json.at("cuts_streams").get_to(window.cuts_streams);
    json.at("errors").get_to(window.errors);
    json.at("requests").get_to(result.requests);
    json.at("failed").get_to(result.failed);
    json.at("called_again").get_to(result.called_again);
    json.at("wrong_bytes").get_to(result.wrong_bytes);
    json.at("unaccounted").get_to(result.unaccounted);
    json.at("tokens").get_to(result.tokens);
    json.at("quiet_tokens").get_to(result.quiet_tokens);
    json.at("stalls_ms").get_to(result.stalls_ms);
    json.at("quiet_stalls_ms").get_to(result.quiet_stalls_ms);
    json.at("first_token_ms_max").get_to(result.first_token_ms_max);
    json.at("quiet_first_token_ms_max").get_to(result.quiet_first_token_ms_max);
    json.at("first_error").get_to(result.first_error);
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("a line of results: ", error.what()));
  }
  return result;
}

std::string MarkdownTable(const std::vector<FaultResult>& results) {
  struct Row {
    size_t times = 0;
    FaultResult sum;
    double whole_s_max = 0;
  };
  std::map<std::string, Row> rows;
  for (const FaultResult& result : results) {
    Row& row = rows[result.window.fault];
    ++row.times;
    row.sum.requests += result.requests;
    row.sum.failed += result.failed;
    row.sum.called_again += result.called_again;
    row.sum.wrong_bytes += result.wrong_bytes;
    row.sum.tokens += result.tokens;
    row.sum.quiet_tokens += result.quiet_tokens;
    row.whole_s_max = std::max(
        row.whole_s_max, result.window.whole_at_s - result.window.fault_at_s);
    const auto append = [](std::vector<double>& to,
                           const std::vector<double>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(row.sum.stalls_ms, result.stalls_ms);
    append(row.sum.quiet_stalls_ms, result.quiet_stalls_ms);
  }
  std::string table =
      "| fault | times | requests | failed | wrong bytes | called again | "
      "stall p50 / p99 / longest, ms | quiet, ms | throughput against before | "
      "whole again after, s |\n"
      "|---|---|---|---|---|---|---|---|---|---|\n";
  for (const auto& [fault, row] : rows) {
    absl::StrAppendFormat(
        &table, "| %s | %d | %d | %d | %d | %d | %s | %s | %+.1f%% | %.1f |\n",
        fault, row.times, row.sum.requests, row.sum.failed, row.sum.wrong_bytes,
        row.sum.called_again, StallText(row.sum.stalls_ms),
        StallText(row.sum.quiet_stalls_ms),
        ChangePercent(row.sum.tokens, row.sum.quiet_tokens), row.whole_s_max);
  }
  return table;
}

std::string Summary(const FaultResult& result) {
  return absl::StrFormat(
      "%-16s %-12s %3d streams; %4d requests, %d failed, %d again, %d wrong; "
      "stall %s ms (quiet %s), first token %.0f (%.0f) ms; tokens %d (%d, "
      "%+.1f%%); whole after %.1f s",
      result.window.fault, result.window.victim, result.window.streaming,
      result.requests, result.failed, result.called_again, result.wrong_bytes,
      StallText(result.stalls_ms), StallText(result.quiet_stalls_ms),
      result.first_token_ms_max, result.quiet_first_token_ms_max, result.tokens,
      result.quiet_tokens, ChangePercent(result.tokens, result.quiet_tokens),
      result.window.whole_at_s - result.window.fault_at_s);
}

}  // namespace troupe

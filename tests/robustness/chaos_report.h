// What a fault did to the requests around it: pure functions of their times.
#ifndef TROUPE_TESTS_ROBUSTNESS_CHAOS_REPORT_H_
#define TROUPE_TESTS_ROBUSTNESS_CHAOS_REPORT_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/robustness/open_loop_load.h"

namespace troupe {

// A quiet period and the one with the fault, which has the same arrivals.
// Times in seconds since the start of the load.
struct FaultWindow {
  std::string fault;
  std::string victim;
  double quiet_begin_s = 0;
  double begin_s = 0;     // of the period of the fault
  double fault_at_s = 0;  // within it
  double whole_at_s = 0;  // healed, and every process is known to be back
  double end_s = 0;       // whole, and the period is over
  double period_s = 0;
  size_t streaming = 0;  // streams that had tokens, but not all, at the fault
  // The gateway itself is lost: its streams are cut, and clients call again.
  bool cuts_streams = false;
  std::vector<std::string> errors;  // of the fault itself: not healed, exit 1
};

struct FaultResult {
  FaultWindow window;
  size_t requests = 0;  // that were there between fault and end
  size_t failed = 0;    // no answer, or a cut stream that had no right to be
  size_t called_again = 0;  // cut streams of a lost gateway, answered later
  size_t wrong_bytes = 0;
  size_t unaccounted = 0;  // the sum of copies is wrong
  size_t tokens = 0;       // in the period of the fault
  size_t quiet_tokens = 0;
  // Of each stream, the longest time between two of its tokens that lies (in
  // part) between fault and end; of those in the quiet period as many seconds
  // before. Ascending.
  std::vector<double> stalls_ms;
  std::vector<double> quiet_stalls_ms;
  double first_token_ms_max = 0;  // of requests that were due after the fault
  double quiet_first_token_ms_max = 0;
  std::string first_error;
};

FaultResult Measure(const FaultWindow& window,
                    const std::vector<StreamRecord>& records);

struct FaultLimits {
  size_t min_streaming = 1;  // else the fault does not count
  double max_stall_ms = 0;   // 0: no bound
};

// Every promise that was not kept, as a sentence that begins with a word for
// its kind: "load", "failed", "bytes", "copies", "stall", "fault".
std::vector<std::string> Problems(const FaultResult& result,
                                  const FaultLimits& limits);

// One line of JSON without its end, and back.
std::string ToJson(const FaultResult& result);
absl::StatusOr<FaultResult> FromJson(const std::string& line);

// The table of docs/failure_modes.md: one row per kind of fault.
std::string MarkdownTable(const std::vector<FaultResult>& results);

// One line for people who wait.
std::string Summary(const FaultResult& result);

}  // namespace troupe

#endif  // TROUPE_TESTS_ROBUSTNESS_CHAOS_REPORT_H_

// One layer's copies on their way: the state of a DispatchHandle.
#ifndef TROUPE_ROUTER_SERVICE_DISPATCH_EXCHANGE_H_
#define TROUPE_ROUTER_SERVICE_DISPATCH_EXCHANGE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "router_service/dispatch/copy_ledger.h"
#include "router_service/dispatch/dispatch_plan.h"
#include "router_service/dispatch/token_dispatcher.h"

namespace troupe {

// Before a peer that refused or failed is asked again.
inline constexpr milliseconds kRetryDelay(2);

// One message on its way and its answer.
struct DispatchPart {
  size_t peer = 0;
  std::vector<CopyRun> runs;
  size_t num_copies = 0;
  SteadyTime sent;
  // Under the exchange's mu; `settled` is changed by the calling thread alone.
  bool settled = false;  // used, or given up
  bool answered = false;
  bool refused = false;  // all of it; the peer said so
  bool no_room = false;  // and why
  uint32_t compute_us = 0;
  std::vector<uint32_t> refused_copies;  // some of the message's
  std::string wrong;                     // with what is in place of an answer
};

// The calling thread owns everything but what is under mu, which the callbacks
// of peers write.
class DispatchHandle::Exchange {
 public:
  using Part = DispatchPart;
  // Copies without a peer.
  struct Homeless {
    CopyRun run;
    SteadyTime not_before;
    SteadyTime since;
  };

  // The rows go from the transport's memory to their place among the copies.
  // An answer to a part that was given up comes too late: its copies may be
  // those of another part by now.
  void Take(Part& part, size_t hidden_size, DataType dtype,
            const absl::StatusOr<ExpertOutput>& output) {
    absl::MutexLock lock(&mu);
    if (part.settled) return;
    part.answered = true;
    if (!output.ok()) {
      part.wrong = std::string(output.status().message());
      return;
    }
    part.compute_us = output->compute_us;
    if (!HasRows(output->verdict)) {
      part.refused = true;
      part.no_room = output->verdict == Verdict::kRefused;
      part.wrong = Name(output->verdict);
      return;
    }
    const std::vector<uint32_t>& refused = output->refused_copies;
    part.wrong = WrongList(*output, part.num_copies);
    if (!part.wrong.empty()) return;
    const size_t num_rows = part.num_copies - refused.size();
    if (output->rows.size() != num_rows * hidden_size * SizeOf(dtype) ||
        output->dtype != dtype) {
      part.wrong = absl::StrCat("answered ", output->rows.size(), " bytes of ",
                                Name(output->dtype), " for ", num_rows,
                                " copies of ", Name(dtype));
      return;
    }
    part.refused_copies = refused;
    PayloadReader reader(output->rows);
    auto next_refused = refused.begin();
    uint32_t at = 0;  // in the message
    for (const CopyRun& run : part.runs) {
      for (uint32_t copy = run.begin; copy < run.end;) {
        if (next_refused != refused.end() && *next_refused == at) {
          ++next_refused;
          ++copy;
          ++at;
          continue;
        }
        const uint32_t num_left = run.end - copy;
        const uint32_t num_together =
            next_refused == refused.end()
                ? num_left
                : std::min(num_left, *next_refused - at);
        reader.ReadFloats(dtype, copies.data() + copy * hidden_size,
                          num_together * hidden_size);
        copy += num_together;
        at += num_together;
      }
    }
  }

  // What is wrong with the list of refused copies; empty: nothing.
  static std::string WrongList(const ExpertOutput& output, size_t num_copies) {
    const std::vector<uint32_t>& refused = output.refused_copies;
    const bool is_partial = output.verdict == Verdict::kPartial;
    bool is_sound = is_partial ? !refused.empty() && refused.size() < num_copies
                               : refused.empty();
    for (size_t i = 0; is_sound && i < refused.size(); ++i) {
      is_sound =
          refused[i] < num_copies && (i == 0 || refused[i - 1] < refused[i]);
    }
    return is_sound ? ""
                    : absl::StrCat("refused ", refused.size(), " of ",
                                   num_copies, " copies, not ascending");
  }

  size_t layer = 0;
  size_t top_k = 0;
  ConstFloatMatrix hidden;
  std::vector<float> topk_weights;  // [num_tokens, top_k]
  DispatchPlan plan;
  std::vector<Homeless> homeless;
  std::vector<Homeless> stranded;  // scratch
  // Peers that refused or failed, by expert; forgotten when nobody else is
  // left.
  std::map<size_t, std::vector<size_t>> avoid;
  uint32_t slowest_compute_us = 0;
  CopyLedger ledger;
  ConstFloatMatrix router_probs;  // empty unless some row is not exact
  // The peer of each expert's run, for those that are to be apart from it;
  // [num_experts] or empty.
  std::vector<size_t> first_peer;

  absl::Mutex mu;
  std::vector<float> copies;  // [num_copies, hidden_size]; see Take
  // The first num_parts are in use.
  std::vector<std::unique_ptr<Part>> parts;
  size_t num_parts = 0;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_DISPATCH_EXCHANGE_H_

#include "router_service/dispatch/token_dispatcher.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/logging.h"
#include "kernels/elementwise.h"

namespace troupe {
namespace {

// While copies wait for a replica, or for an answer that is late.
constexpr absl::Duration kPoll = absl::Milliseconds(5);
// Before a peer that refused or failed is asked again.
constexpr milliseconds kRetryDelay(2);

}  // namespace

// One layer's copies on their way. The calling thread owns everything but what
// is under mu_, which the callbacks of peers write.
class DispatchHandle::Exchange {
 public:
  struct Part {
    size_t peer = 0;
    std::vector<CopyRun> runs;
    SteadyTime sent;
    bool settled = false;  // used, or given up
    // Under mu_:
    bool answered = false;
    absl::StatusOr<v1::ExpertOutput> output = v1::ExpertOutput();
  };
  // Copies without a peer.
  struct Homeless {
    CopyRun run;
    SteadyTime not_before;
  };

  bool AnyNewAnswer() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    return num_answered > num_handled;
  }

  size_t layer = 0;
  size_t top_k = 0;
  std::vector<float> hidden_states;  // kept for sending again
  ConstFloatMatrix hidden;
  std::vector<float> topk_weights;  // [num_tokens, top_k]
  DispatchPlan plan;
  std::vector<Homeless> homeless;
  // Peers that refused or failed, by expert; forgotten when nobody else is
  // left.
  std::map<size_t, std::vector<size_t>> avoid;

  absl::Mutex mu;
  std::vector<std::unique_ptr<Part>> parts;
  size_t num_answered ABSL_GUARDED_BY(mu) = 0;
  size_t num_handled ABSL_GUARDED_BY(mu) = 0;
};

TokenDispatcher::TokenDispatcher(ExpertPool& experts,
                                 TokenDispatcherOptions options)
    : experts_(experts), options_(options) {}

DispatchHandle TokenDispatcher::Dispatch(size_t layer,
                                         ConstFloatMatrix hidden_states,
                                         const RoutingDecision& decision) {
  CHECK_EQ(hidden_states.rows, decision.num_tokens);
  DispatchHandle handle;
  handle.exchange_ = std::make_shared<Exchange>();
  Exchange& exchange = *handle.exchange_;
  exchange.layer = layer;
  exchange.top_k = decision.top_k;
  exchange.topk_weights = decision.topk_weights;
  exchange.plan = MakeDispatchPlan(decision, options_.num_experts);
  exchange.hidden_states.resize(hidden_states.rows * hidden_states.cols);
  for (size_t row = 0; row < hidden_states.rows; ++row) {
    std::memcpy(exchange.hidden_states.data() + row * hidden_states.cols,
                hidden_states.row(row), hidden_states.cols * sizeof(float));
  }
  exchange.hidden = ConstFloatMatrix(exchange.hidden_states.data(),
                                     hidden_states.rows, hidden_states.cols);
  const SteadyTime now = std::chrono::steady_clock::now();
  for (size_t expert = 0; expert < options_.num_experts; ++expert) {
    if (exchange.plan.num_copies(expert) == 0) continue;
    exchange.homeless.push_back({{expert, exchange.plan.expert_offsets[expert],
                                  exchange.plan.expert_offsets[expert + 1]},
                                 now});
  }
  Send(handle.exchange_);
  return handle;
}

void TokenDispatcher::Send(const std::shared_ptr<Exchange>& exchange) {
  const SteadyTime now = std::chrono::steady_clock::now();
  const std::shared_ptr<const Placement> placement = experts_.placement();
  const uint32_t max_copies = static_cast<uint32_t>(std::max<size_t>(
      1, options_.max_output_bytes / (options_.hidden_size * sizeof(float))));
  std::map<size_t, std::vector<CopyRun>> by_peer;
  std::vector<Exchange::Homeless> left;
  for (Exchange::Homeless& homeless : exchange->homeless) {
    std::optional<size_t> peer;
    if (homeless.not_before <= now) {
      const size_t expert = homeless.run.expert;
      std::vector<size_t>& avoid = exchange->avoid[expert];
      peer = experts_.Choose(*placement, exchange->layer, expert, avoid);
      if (!peer.has_value()) {
        // Nobody else: those that refused or failed may be asked again.
        avoid.clear();
        peer = experts_.Choose(*placement, exchange->layer, expert, avoid);
      }
    }
    if (peer.has_value()) {
      by_peer[*peer].push_back(homeless.run);
    } else {
      left.push_back(std::move(homeless));
    }
  }
  exchange->homeless = std::move(left);

  for (auto& [peer, runs] : by_peer) {
    std::sort(runs.begin(), runs.end(), [](const CopyRun& a, const CopyRun& b) {
      return a.expert != b.expert ? a.expert < b.expert : a.begin < b.begin;
    });
    // Fill messages up to the bound; a run that does not fit is cut.
    std::vector<CopyRun> message;
    uint32_t num_copies = 0;
    const auto flush = [&, to = peer] {
      if (!message.empty()) SendPart(exchange, to, std::move(message));
      message.clear();
      num_copies = 0;
    };
    for (CopyRun run : runs) {
      // A message holds each expert once.
      if (!message.empty() && message.back().expert == run.expert) flush();
      while (run.begin < run.end) {
        const uint32_t take =
            std::min(run.end - run.begin, max_copies - num_copies);
        message.push_back({run.expert, run.begin, run.begin + take});
        num_copies += take;
        run.begin += take;
        if (num_copies == max_copies) flush();
      }
    }
    flush();
  }
}

void TokenDispatcher::SendPart(const std::shared_ptr<Exchange>& exchange,
                               size_t peer, std::vector<CopyRun> runs) {
  v1::ExpertBatch batch = PackBatch(exchange->layer, exchange->hidden,
                                    exchange->top_k, exchange->plan, runs);
  batch.set_timeout_ms(static_cast<uint32_t>(options_.hop_timeout.count()));
  exchange->parts.push_back(std::make_unique<Exchange::Part>());
  Exchange::Part* part = exchange->parts.back().get();
  part->peer = peer;
  part->runs = std::move(runs);
  part->sent = std::chrono::steady_clock::now();
  // The callback holds the exchange: an answer may come when nobody waits.
  experts_.Send(peer, std::move(batch),
                [exchange, part](absl::StatusOr<v1::ExpertOutput> output) {
                  absl::MutexLock lock(&exchange->mu);
                  part->output = std::move(output);
                  part->answered = true;
                  ++exchange->num_answered;
                });
}

bool TokenDispatcher::Settle(Exchange& exchange, size_t index, SteadyTime now) {
  Exchange::Part& part = *exchange.parts[index];
  const size_t row_bytes = options_.hidden_size * sizeof(float);
  uint32_t num_copies = 0;
  for (const CopyRun& run : part.runs) num_copies += run.end - run.begin;
  std::string why;
  if (part.answered) {
    if (!part.output.ok()) {
      why = std::string(part.output.status().message());
    } else if (part.output->verdict() != v1::ExpertOutput::VERDICT_COMPUTED) {
      why = v1::ExpertOutput::Verdict_Name(part.output->verdict());
      stats_.copies_refused += num_copies;
    } else if (part.output->outputs().size() != num_copies * row_bytes) {
      why = absl::StrCat("answered ", part.output->outputs().size(),
                         " bytes for ", num_copies, " copies");
    } else {
      const char* from = part.output->outputs().data();
      for (const CopyRun& run : part.runs) {
        const size_t bytes = (run.end - run.begin) * row_bytes;
        std::memcpy(copies_.data() + run.begin * options_.hidden_size, from,
                    bytes);
        from += bytes;
      }
      part.output = v1::ExpertOutput();
      part.settled = true;
      stats_.copies_dispatched += num_copies;
      return true;
    }
  } else if (now - part.sent >= options_.hop_timeout) {
    why = absl::StrCat("no answer after ", options_.hop_timeout.count(), " ms");
  } else {
    return false;
  }
  spdlog::debug("layer {}: {}: {}", exchange.layer, experts_.address(part.peer),
                why);
  part.settled = true;
  stats_.copies_resent += num_copies;
  const std::shared_ptr<const Placement> placement = experts_.placement();
  for (const CopyRun& run : part.runs) {
    // At once to another replica; a moment later to the same one.
    std::vector<size_t>& avoid = exchange.avoid[run.expert];
    avoid.push_back(part.peer);
    const bool others =
        experts_.Choose(*placement, exchange.layer, run.expert, avoid)
            .has_value();
    exchange.homeless.push_back({run, others ? now : now + kRetryDelay});
  }
  return true;
}

std::string TokenDispatcher::WaitsFor(const Exchange& exchange) const {
  if (!exchange.homeless.empty()) {
    return absl::StrCat("expert ", exchange.homeless.front().run.expert,
                        " of layer ", exchange.layer,
                        " has no replica that takes its rows");
  }
  for (const auto& part : exchange.parts) {
    if (part->settled) continue;
    return absl::StrCat("expert ", part->runs.front().expert, " of layer ",
                        exchange.layer, " at ", experts_.address(part->peer),
                        " has not answered");
  }
  return "";
}

absl::Status TokenDispatcher::Combine(DispatchHandle handle, const Check& check,
                                      FloatMatrix output, ThreadPool& pool) {
  CHECK(handle.exchange_ != nullptr);
  Exchange& exchange = *handle.exchange_;
  const size_t hidden_size = options_.hidden_size;
  const SteadyTime start = std::chrono::steady_clock::now();
  SteadyTime now = start;
  copies_.resize(exchange.plan.slot_of_copy.size() * hidden_size);
  absl::Status status;
  while (true) {
    size_t in_flight = 0;
    {
      absl::MutexLock lock(&exchange.mu);
      exchange.num_handled = exchange.num_answered;
      for (size_t i = 0; i < exchange.parts.size(); ++i) {
        if (exchange.parts[i]->settled || Settle(exchange, i, now)) continue;
        ++in_flight;
      }
    }
    if (!exchange.homeless.empty()) {
      const size_t before = exchange.homeless.size();
      Send(handle.exchange_);
      if (exchange.homeless.size() < before) continue;
    } else if (in_flight == 0) {
      break;
    }
    {
      absl::MutexLock lock(&exchange.mu);
      exchange.mu.AwaitWithTimeout(
          absl::Condition(&exchange, &Exchange::AnyNewAnswer), kPoll);
    }
    now = std::chrono::steady_clock::now();
    if (now - start < (exchange.homeless.empty() ? options_.check_after_silence
                                                 : options_.check_after)) {
      continue;
    }
    status = check();
    if (!status.ok()) {
      const std::string waits_for = WaitsFor(exchange);
      status = absl::Status(status.code(),
                            absl::StrCat(status.message(), waits_for));
      break;
    }
  }
  stats_.wait_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
          .count();
  if (!status.ok()) return status;
  CombineExperts(
      ConstFloatMatrix(copies_.data(), exchange.plan.slot_of_copy.size(),
                       hidden_size),
      exchange.plan.copy_of_slot,
      ConstFloatMatrix(exchange.topk_weights.data(), exchange.hidden.rows,
                       exchange.top_k),
      output, pool);
  return absl::OkStatus();
}

}  // namespace troupe

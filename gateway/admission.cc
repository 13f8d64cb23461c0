#include "gateway/admission.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "gateway/refusal.h"

namespace troupe {
namespace {

constexpr double kMinDelayMs = 100;
constexpr double kMaxDelayMs = 10000;
constexpr double kNewestWeight = 0.2;  // in a moving mean
// Keys that hold nothing are forgotten when so many are known.
constexpr size_t kMaxHolders = 8192;

double Milliseconds(SteadyTime::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

}  // namespace

void Admission::Ticket::Swap(Ticket& other) noexcept {
  std::swap(admission_, other.admission_);
  std::swap(holder_, other.holder_);
  std::swap(waiting_tokens_, other.waiting_tokens_);
  std::swap(entered_, other.entered_);
}

void Admission::Ticket::SetPromptTokens(uint64_t num_tokens) {
  if (admission_ == nullptr) return;
  absl::MutexLock lock(&admission_->mu_);
  admission_->SetWaitingTokens(*this, num_tokens);
}

void Admission::Ticket::PromptDone() {
  if (admission_ == nullptr) return;
  const double waited_ms = Milliseconds(admission_->clock_.Now() - entered_);
  absl::MutexLock lock(&admission_->mu_);
  if (waiting_tokens_ > 0) {
    double& mean = admission_->mean_prompt_wait_ms_;
    mean += kNewestWeight * (waited_ms - mean);
  }
  admission_->SetWaitingTokens(*this, 0);
}

void Admission::SetWaitingTokens(Ticket& ticket, uint64_t num_tokens) {
  const uint64_t before = std::exchange(ticket.waiting_tokens_, num_tokens);
  waiting_tokens_ += num_tokens - before;
  ticket.holder_->waiting_tokens += num_tokens - before;
}

ShareState Admission::PlacesOf(const Holder& holder) const {
  return {
      .capacity = options_.max_requests,
      .used = active_,
      .held = holder.held,
      .weight = holder.weight,
      .other_weight = holding_weight_ - (holder.held > 0 ? holder.weight : 0)};
}

ShareState Admission::TokensOf(const Holder& holder) const {
  ShareState state = PlacesOf(holder);
  state.capacity = options_.max_waiting_prompt_tokens;
  state.used = waiting_tokens_;
  state.held = holder.waiting_tokens;
  return state;
}

Admission::Holder& Admission::HolderOf(const AdmissionRequest& request) {
  if (holders_.size() >= kMaxHolders) {
    for (auto it = holders_.begin(); it != holders_.end();) {
      it = it->second.held == 0 ? holders_.erase(it) : std::next(it);
    }
  }
  Holder& holder = holders_[request.key];
  const uint64_t weight = WeightOf(request.priority);
  if (holder.held > 0) holding_weight_ += weight - holder.weight;
  holder.weight = weight;
  return holder;
}

Admission::Ticket Admission::TryEnter() {
  absl::StatusOr<Ticket> ticket = TryEnter(AdmissionRequest());
  return ticket.ok() ? *std::move(ticket) : Ticket();
}

absl::StatusOr<Admission::Ticket> Admission::TryEnter(
    const AdmissionRequest& request) {
  const SteadyTime now = clock_.Now();
  absl::MutexLock lock(&mu_);
  Holder& holder = HolderOf(request);
  ShareAnswer places = AskShare(PlacesOf(holder), 1);
  ShareAnswer tokens =
      options_.max_waiting_prompt_tokens == 0 || request.prompt_tokens == 0
          ? ShareAnswer::kEnter
          : AskShare(TokensOf(holder), request.prompt_tokens);
  if (request.key.empty()) {  // nobody to share with
    if (places == ShareAnswer::kOverShare) places = ShareAnswer::kEnter;
    if (tokens == ShareAnswer::kOverShare) tokens = ShareAnswer::kEnter;
  }
  if (active_ >= options_.max_requests) places = ShareAnswer::kFull;
  if (places != ShareAnswer::kEnter || tokens != ShareAnswer::kEnter) {
    return Refuse(request, holder, places, tokens, now);
  }
  if (holder.held++ == 0) holding_weight_ += holder.weight;
  ++active_;
  Ticket ticket(this, &holder, 0, now);
  SetWaitingTokens(ticket, request.prompt_tokens);
  return ticket;
}

absl::Status Admission::Refuse(const AdmissionRequest& request, Holder& holder,
                               ShareAnswer places, ShareAnswer tokens,
                               SteadyTime now) {
  double delay_ms = 0;
  std::string message;
  absl::string_view limit;
  if (tokens != ShareAnswer::kEnter) {
    const ShareState state = TokensOf(holder);
    delay_ms =
        mean_prompt_wait_ms_ * StaysUntilEntry(state, request.prompt_tokens);
    limit = tokens == ShareAnswer::kFull ? kWaitingTokens : kFairShare;
    message = absl::StrCat("the queue is full: ", state.used, " of ",
                           state.capacity, " prompt tokens wait");
  }
  if (places != ShareAnswer::kEnter) {
    const ShareState state = PlacesOf(holder);
    delay_ms =
        std::max(delay_ms, mean_duration_ms_ * StaysUntilEntry(state, 1));
    limit = places == ShareAnswer::kFull ? kPlaces : kFairShare;
    message = absl::StrCat("the queue is full: ", state.used,
                           " requests are being served");
    if (places == ShareAnswer::kOverShare) {
      absl::StrAppend(&message, ", ", state.held,
                      " of them of this key; its fair share is ",
                      FairShare(state));
    }
  }
  if (!request.key.empty()) {
    // The key's places become free one by one, if it holds its share of them.
    const double turn_ms =
        mean_duration_ms_ / static_cast<double>(FairShare(PlacesOf(holder)));
    delay_ms =
        std::max(delay_ms, Milliseconds(holder.promised - now) + turn_ms);
  }
  delay_ms = std::clamp(delay_ms, kMinDelayMs, kMaxDelayMs);
  holder.promised =
      now + std::chrono::microseconds(static_cast<int64_t>(delay_ms * 1000));
  return RefusedError(message, limit,
                      static_cast<int64_t>(std::ceil(delay_ms)));
}

void Admission::Leave(Ticket& ticket) {
  absl::MutexLock lock(&mu_);
  CHECK_GT(active_, 0u);
  SetWaitingTokens(ticket, 0);
  --active_;
  Holder& holder = *ticket.holder_;
  if (--holder.held == 0) holding_weight_ -= holder.weight;
}

void Admission::RecordDuration(double duration_ms) {
  absl::MutexLock lock(&mu_);
  mean_duration_ms_ += kNewestWeight * (duration_ms - mean_duration_ms_);
}

int Admission::RetryDelayMs() const {
  absl::MutexLock lock(&mu_);
  const double delay_ms = mean_duration_ms_ / std::max(active_, 1u);
  return static_cast<int>(std::clamp(delay_ms, kMinDelayMs, kMaxDelayMs));
}

uint32_t Admission::active() const {
  absl::MutexLock lock(&mu_);
  return active_;
}

uint64_t Admission::waiting_prompt_tokens() const {
  absl::MutexLock lock(&mu_);
  return waiting_tokens_;
}

}  // namespace troupe

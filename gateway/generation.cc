#include "gateway/generation.h"

#include <sys/random.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cluster/copy_usage.h"
#include "common/check.h"
#include "common/logging.h"
#include "common/rpc/status.h"
#include "gateway/grpc_admission.h"
#include "gateway/refusal.h"

namespace troupe {
namespace {

// Longer texts are tokenized outside of gRPC's callback threads.
constexpr size_t kInlineTextBytes = 16 << 10;
// How often a router may fail one sequence: a sequence that breaks routers must
// end. That many new tokens make up for one failure. Moves from a router that
// drains or says nothing do not count; the pool's budget bounds them.
constexpr int kMaxFailures = 3;
constexpr size_t kTokensPerFailure = 16;

// What is known of a prompt before it is tokenized. A token of English is four
// bytes or so; the true number comes soon.
uint64_t EstimateTokens(const v1::GenerateRequest& request) {
  constexpr size_t kBytesPerToken = 4;
  return request.has_text()
             ? request.text().size() / kBytesPerToken
             : static_cast<uint64_t>(request.tokens().token_ids_size());
}

SteadyTime Now() { return Clock::Real().Now(); }

double Seconds(SteadyTime::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

double MillisecondsSince(SteadyTime start) {
  return 1e3 * Seconds(Now() - start);
}

uint64_t RandomSeed() {
  uint64_t seed = 0;
  const ssize_t num_bytes = getrandom(&seed, sizeof(seed), 0);
  CHECK_EQ(num_bytes, static_cast<ssize_t>(sizeof(seed)));
  return seed;
}

// The router went away, or the way to it: another one can go on. A call that
// we cancelled does not get here; UNKNOWN is what gRPC makes of a stream that
// was cut at the wrong moment.
bool LostRouter(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::CANCELLED ||
         status.error_code() == grpc::StatusCode::UNKNOWN;
}

// The router did nothing, since it drains.
bool IsDraining(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE &&
         RetryDelayMs(status) >= 0;
}

}  // namespace

Generation::Generation(GatewayContext& context, GenerationClient& client,
                       const v1::GenerateRequest& request, SteadyTime deadline,
                       KeyLease lease)
    : live_(context.live_calls),
      context_(context),
      client_(client),
      request_(request),
      start_(Now()),
      deadline_(deadline),
      answer_by_(AnswerBy(deadline_)),
      seed_(request.has_seed()               ? request.seed()
            : request.sampling().seed() != 0 ? request.sampling().seed()
                                             : RandomSeed()),
      request_id_(request.request_id().empty()
                      ? absl::StrFormat("%016x", RandomSeed())
                      : request.request_id()),
      lease_(std::move(lease)) {}

void Generation::Begin() {
  const auto self = shared_from_this();
  ++context_.counters.requests;
  const grpc::Status status = Admit();
  if (!status.ok()) {
    absl::MutexLock lock(&mu_);
    End(status);
    return;
  }
  if (request_.text().size() > kInlineTextBytes) {
    context_.work_queue.Post([self = shared_from_this()] { self->Prepare(); });
  } else {
    Prepare();
  }
}

grpc::Status Generation::Admit() {
  absl::MutexLock lock(&mu_);
  if (context_.draining) {
    context_.metrics.CountRefusal(kDrainingRefusal);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE,
                        "this gateway is draining");
  }
  absl::StatusOr<Admission::Ticket> ticket = context_.admission.TryEnter(
      lease_.ToAdmissionRequest(EstimateTokens(request_)));
  if (!ticket.ok()) {
    context_.metrics.CountRefusal(RefusedLimit(ticket.status()));
    return ToGrpcRefusal(ticket.status());
  }
  ticket_ = *std::move(ticket);
  const absl::Status valid =
      CheckGenerateRequest(request_, context_.model, context_.limits);
  if (!valid.ok()) context_.metrics.CountRefusal(kInvalidRefusal);
  return ToGrpcStatus(valid);
}

absl::Status Generation::Reserve() {
  ticket_.SetPromptTokens(num_prompt_tokens_);
  return lease_.Reserve(num_prompt_tokens_,
                        uint64_t{request_.max_tokens()} * NumChoices(request_));
}

absl::StatusOr<std::vector<GenerationChoice>> Generation::Plan() const {
  const ServedModel& model = context_.model;
  absl::StatusOr<std::vector<uint32_t>> prompt =
      EncodePrompt(request_, *model.tokenizer);
  if (!prompt.ok()) return prompt.status();
  auto max_context =
      static_cast<uint32_t>(model.config.max_position_embeddings);
  const uint32_t routers_context = context_.routers.MaxContext();
  if (routers_context > 0) max_context = std::min(max_context, routers_context);
  const absl::StatusOr<uint32_t> max_tokens = FitContext(
      prompt->size(), request_.max_tokens(), max_context, context_.limits);
  if (!max_tokens.ok()) return max_tokens.status();
  std::vector<GenerationChoice> choices(NumChoices(request_));
  const std::vector<uint64_t> prefix = PrefixHashes(*prompt);
  for (uint32_t i = 0; i < choices.size(); ++i) {
    choices[i].prefix = prefix;
    choices[i].plan = PlanChoice(request_, model, *prompt, *max_tokens, seed_,
                                 request_id_, i);
    choices[i].text = std::make_unique<ChoiceText>(*model.tokenizer,
                                                   PlanText(request_), *prompt);
  }
  return choices;
}

void Generation::Prepare() {
  absl::StatusOr<std::vector<GenerationChoice>> choices = Plan();
  absl::MutexLock lock(&mu_);
  if (ending_) return;  // cancelled meanwhile
  if (!choices.ok()) {
    context_.metrics.CountRefusal(kInvalidRefusal);
    End(ToGrpcStatus(choices.status()));
    return;
  }
  choices_ = *std::move(choices);
  num_prompt_tokens_ =
      static_cast<size_t>(choices_[0].plan.prompt_token_ids_size());
  if (const absl::Status status = Reserve(); !status.ok()) {
    context_.metrics.CountRefusal(RefusedLimit(status));
    End(ToGrpcRefusal(status));
    return;
  }
  context_.counters.prompt_tokens += num_prompt_tokens_;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const RouterPool::Wish wish = WishOf(choices_[i], /*is_retry=*/false);
    if (std::optional<RouterLease> lease = context_.routers.Pick(wish)) {
      StartAttempt(i, *std::move(lease));
    } else if (!AwaitRouter(i, wish)) {
      End(NoRouter(""));
      return;
    }
  }
}

grpc::Status Generation::NoRouter(const std::string& reason) const {
  if (ttft_ms_ == 0) context_.metrics.CountRefusal(kNoRouterRefusal);
  return grpc::Status(
      grpc::StatusCode::UNAVAILABLE,
      absl::StrCat("no router is ready: ", reason, reason.empty() ? "" : "; ",
                   context_.routers.Explain()));
}

RouterPool::Wish Generation::WishOf(const GenerationChoice& choice,
                                    bool is_retry) const {
  RouterPool::Wish wish;
  wish.excluded = choice.refused_by;
  wish.min_context =
      static_cast<uint32_t>(choice.plan.prompt_token_ids_size()) +
      choice.plan.max_tokens();
  wish.num_tokens = static_cast<uint64_t>(choice.plan.prompt_token_ids_size()) +
                    choice.generated.size();
  wish.prefix = choice.prefix;
  wish.is_retry = is_retry;
  return wish;
}

bool Generation::AwaitRouter(size_t index, const RouterPool::Wish& wish) {
  const SteadyTime until =
      answer_by_ == kNoDeadline ? Now() + context_.router_wait : answer_by_;
  choices_[index].wait_id = context_.routers.PickWhenReady(
      until, wish,
      [self = shared_from_this(), index](uint64_t wait_id,
                                         std::optional<RouterLease> lease) {
        self->OnRouterFound(index, wait_id, std::move(lease));
      });
  return choices_[index].wait_id != 0;
}

void Generation::StopWaiting(GenerationChoice& choice) {
  choice.doubtful = false;
  if (choice.wait_id == 0) return;
  context_.routers.CancelWait(std::exchange(choice.wait_id, 0));
}

void Generation::StartAttempt(size_t index, RouterLease lease) {
  GenerationChoice& choice = choices_[index];
  v1::RouterGenerateRequest request = choice.plan;
  AddCopies(choice.usage.copies(), choice.copies_of_earlier);
  choice.usage.clear_copies();
  request.mutable_generated_token_ids()->Add(choice.generated.begin(),
                                             choice.generated.end());
  // The tokens so far are of that snapshot; the rest is to be, too.
  choice.moved_before += choice.usage.experts_moved_version();
  request.set_snapshot(choice.usage.snapshot());
  choice.usage.clear_experts_moved_version();
  if (choice.echoed) request.set_prompt_logprobs(false);
  choice.attempt = new RouterAttempt(shared_from_this(), index,
                                     std::move(lease), std::move(request));
  ++choice.attempt_id;
  choice.attempt->Begin(deadline_, LeaveOf(index));
}

RouterLease::Leave Generation::LeaveOf(size_t index) {
  return [self = shared_from_this(), index,
          attempt_id = choices_[index].attempt_id](bool doubtful,
                                                   const std::string& reason) {
    self->OnLeave(index, attempt_id, doubtful, reason);
  };
}

bool Generation::OnRouterResponse(size_t index, RouterAttempt* attempt,
                                  const v1::RouterGenerateResponse& response) {
  absl::MutexLock lock(&mu_);
  GenerationChoice& choice = choices_[index];
  if (ending_ || choice.done || choice.attempt != attempt) return true;
  if (choice.doubtful) {  // it gets on after all
    StopWaiting(choice);
    attempt->WatchAgain(LeaveOf(index));
  }
  const uint64_t heard_before =
      std::exchange(choice.heard_attempt_id, choice.attempt_id);
  if (heard_before == 0 && response.has_usage()) {
    context_.metrics.queue_seconds.Observe(1e-3 * response.usage().queue_ms());
  }
  if (heard_before != 0 && heard_before != choice.attempt_id) {
    ++choice.moves;
    ++context_.counters.moved_streams;
  }
  // Before the text may end the choice.
  if (response.has_usage()) choice.usage.MergeFrom(response.usage());
  if (request_.echo() && !choice.echoed) Echo(index, response);
  v1::GenerateResponse output;
  output.set_index(static_cast<uint32_t>(index));
  const size_t generated_before = choice.generated.size();
  for (int i = 0; i < response.tokens_size() && !choice.done; ++i) {
    const v1::TokenOutput& token = response.tokens(i);
    const auto& stops = choice.plan.stop_token_ids();
    const bool is_stop_token =
        i + 1 == response.tokens_size() &&
        response.finish_reason() == v1::FINISH_REASON_STOP &&
        std::find(stops.begin(), stops.end(), token.token_id()) != stops.end();
    AddToken(choice, token, is_stop_token, output);
  }
  lease_.Charge(choice.generated.size() - generated_before);
  if (!choice.done &&
      response.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    const ChoiceText::Delta rest = choice.text->Finish();
    output.mutable_text()->append(rest.text);
    if (rest.stopped) output.set_stop_reason(rest.stop);
    FinishChoice(
        choice,
        rest.stopped ? v1::FINISH_REASON_STOP : response.finish_reason(),
        output);
  }
  if (output.tokens_size() > 0 || choice.done) {
    outbox_.push_back(std::move(output));
  }
  // The text ended here, though the router would go on.
  if (choice.done &&
      response.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) {
    attempt->Cancel();
  }
  if (AllDone()) {
    End(grpc::Status::OK);
    return true;
  }
  Pump();
  if (!choice.done && outbox_.size() >= context_.max_pending_responses) {
    attempt->Pause();
    return false;
  }
  return true;
}

void Generation::Echo(size_t index,
                      const v1::RouterGenerateResponse& response) {
  GenerationChoice& choice = choices_[index];
  choice.echoed = true;
  for (v1::GenerateResponse& output :
       EchoPrompt(request_, *context_.model.tokenizer, choice.plan, response)) {
    output.set_index(static_cast<uint32_t>(index));
    outbox_.push_back(std::move(output));
  }
}

void Generation::AddToken(GenerationChoice& choice,
                          const v1::TokenOutput& token, bool is_stop_token,
                          v1::GenerateResponse& response) {
  ObserveToken(choice);
  choice.generated.push_back(token.token_id());
  *response.add_tokens() =
      DescribeToken(*context_.model.tokenizer, token, request_.logprobs());
  if (is_stop_token) {
    response.set_stop_reason(
        TokenText(*context_.model.tokenizer, token.token_id()));
    if (!request_.include_stop()) return;
  }
  ChoiceText::Delta delta = choice.text->Append(token.token_id());
  response.mutable_text()->append(delta.text);
  if (delta.stopped) {
    response.set_stop_reason(delta.stop);
    FinishChoice(choice, v1::FINISH_REASON_STOP, response);
  }
}

void Generation::ObserveToken(GenerationChoice& choice) {
  const SteadyTime now = Now();
  if (ttft_ms_ == 0) {
    ttft_ms_ = 1e3 * Seconds(now - start_);
    context_.metrics.first_token_seconds.Observe(Seconds(now - start_));
    ++context_.metrics.generating;
    ticket_.PromptDone();
  }
  if (choice.last_token != kNoDeadline) {
    context_.metrics.inter_token_seconds.Observe(
        Seconds(now - choice.last_token));
  }
  choice.last_token = now;
}

void Generation::FinishChoice(GenerationChoice& choice, v1::FinishReason reason,
                              v1::GenerateResponse& response) {
  choice.done = true;
  context_.metrics.Count(reason == v1::FINISH_REASON_STOP ? ChoiceEnd::kStop
                                                          : ChoiceEnd::kLength);
  StopWaiting(choice);
  if (choice.attempt != nullptr) {
    // A conversation goes on where its beginning is.
    const auto& prompt = choice.plan.prompt_token_ids();
    std::vector<uint32_t> token_ids(prompt.begin(), prompt.end());
    token_ids.insert(token_ids.end(), choice.generated.begin(),
                     choice.generated.end());
    choice.attempt->lease().Remember(PrefixHashes(token_ids));
  }
  response.set_finish_reason(reason);
  if (AllDone()) *response.mutable_usage() = MakeUsage();
}

bool Generation::AllDone() const {
  return std::all_of(
      choices_.begin(), choices_.end(),
      [](const GenerationChoice& choice) { return choice.done; });
}

v1::Usage Generation::MakeUsage() const {
  v1::Usage usage = SumUsage(choices_, num_prompt_tokens_);
  usage.set_seed(seed_);
  usage.set_request_id(request_id_);
  usage.set_ttft_ms(ttft_ms_);
  usage.set_total_ms(MillisecondsSince(start_));
  return usage;
}

void Generation::OnRouterDone(size_t index, RouterAttempt* attempt,
                              const grpc::Status& status) {
  absl::MutexLock lock(&mu_);
  GenerationChoice& choice = choices_[index];
  if (choice.attempt != attempt) return;  // was replaced
  choice.attempt = nullptr;
  if (ending_ || choice.done) return;
  StopWaiting(choice);
  const RouterLease& lease = attempt->lease();
  uint64_t left_out = 0;
  if (!status.ok() && context_.early_ends.Allow(Now(), left_out)) {
    spdlog::warn(
        "router call ended early request_id={} router={} code={} "
        "lines_left_out={} {}",
        choice.plan.request_id(), lease.address(),
        static_cast<int>(status.error_code()), left_out,
        status.error_message());
  }
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    choice.refused_by.push_back(lease.router_id());
  } else if (IsDraining(status)) {
    lease.ReportRefused();
  } else if (LostRouter(status)) {
    lease.ReportLost(status.error_message());
    lease.ReportMoved();
  }
  Move(index, status);
}

void Generation::Move(size_t index, const grpc::Status& status) {
  GenerationChoice& choice = choices_[index];
  if (status.ok()) {
    End(grpc::Status(grpc::StatusCode::INTERNAL,
                     "the router ended the stream without a finish reason"));
    return;
  }
  const bool full = status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
  const bool lost = !full && !IsDraining(status);
  if (lost &&
      (!LostRouter(status) || !MayFailAgain(choice) || Now() >= answer_by_)) {
    End(status);
    return;
  }
  const RouterPool::Wish wish = WishOf(choice, /*is_retry=*/lost);
  if (std::optional<RouterLease> lease = context_.routers.Pick(wish)) {
    StartAttempt(index, *std::move(lease));
    return;
  }
  if (full) {
    if (ttft_ms_ == 0) context_.metrics.CountRefusal(kRoutersFullRefusal);
    const int delay_ms = RetryDelayMs(status);
    End(ResourceExhaustedStatus(
        FromGrpcStatus(status),
        delay_ms >= 0 ? delay_ms : context_.admission.RetryDelayMs()));
    return;
  }
  choice.leave_reason = status.error_message();
  if (!AwaitRouter(index, wish)) End(status);
}

bool Generation::MayFailAgain(GenerationChoice& choice) const {
  const size_t earned =
      (choice.generated.size() - choice.tokens_at_failure) / kTokensPerFailure;
  choice.failures = std::max(0, choice.failures - static_cast<int>(earned));
  choice.tokens_at_failure = choice.generated.size();
  return ++choice.failures <= kMaxFailures;
}

void Generation::OnLeave(size_t index, uint64_t attempt_id, bool doubtful,
                         const std::string& reason) {
  absl::MutexLock lock(&mu_);
  if (ending_) return;
  GenerationChoice& choice = choices_[index];
  if (choice.done || choice.attempt == nullptr ||
      choice.attempt_id != attempt_id) {
    return;
  }
  choice.leave_reason = reason;
  RouterPool::Wish wish = WishOf(choice, /*is_retry=*/doubtful);
  wish.excluded.push_back(choice.attempt->lease().router_id());
  if (std::optional<RouterLease> lease = context_.routers.Pick(wish)) {
    Replace(index, *std::move(lease));
    return;
  }
  StopWaiting(choice);
  choice.doubtful = doubtful;
  AwaitRouter(index, wish);
}

void Generation::Replace(size_t index, RouterLease lease) {
  GenerationChoice& choice = choices_[index];
  RouterAttempt* const old = std::exchange(choice.attempt, nullptr);
  spdlog::info(
      "stream moves request_id={} choice={} from={} to={} reason=\"{}\"",
      choice.plan.request_id(), index, old->lease().address(), lease.address(),
      choice.leave_reason);
  old->lease().ReportMoved();
  choice.doubtful = false;
  StartAttempt(index, std::move(lease));
  old->Cancel();
}

void Generation::OnRouterFound(size_t index, uint64_t wait_id,
                               std::optional<RouterLease> lease) {
  absl::MutexLock lock(&mu_);
  if (ending_) return;
  GenerationChoice& choice = choices_[index];
  if (choice.wait_id != wait_id) return;  // no longer wanted
  choice.wait_id = 0;
  if (lease && choice.attempt == nullptr) {
    StartAttempt(index, *std::move(lease));
  } else if (lease) {
    Replace(index, *std::move(lease));
  } else if (choice.attempt == nullptr || choice.doubtful) {
    End(NoRouter(choice.leave_reason));
  } else {
    choice.attempt->WatchAgain(LeaveOf(index));  // it stays where it is
  }
}

void Generation::End(const grpc::Status& status) {
  if (!ending_) {
    ending_ = true;
    final_status_ = status;
    for (GenerationChoice& choice : choices_) {
      StopWaiting(choice);
      if (choice.attempt != nullptr && !choice.done) choice.attempt->Cancel();
      if (choice.attempt != nullptr) choice.attempt->Resume();
    }
  }
  Pump();
}

void Generation::Pump() {
  if (writing_ || finished_) return;
  while (!outbox_.empty()) {
    v1::GenerateResponse response = std::move(outbox_.front());
    outbox_.pop_front();
    if (client_.Write(std::move(response))) continue;
    writing_ = true;
    return;
  }
  if (ending_) {
    finished_ = true;
    // Before the client knows: its next call finds the place free and the
    // counters right.
    CountAndLog();
    ticket_ = Admission::Ticket();
    lease_ = KeyLease();
    client_.Finish(final_status_);
  }
}

void Generation::OnWritten(bool ok) {
  const auto self = shared_from_this();  // Finish may drop the last owner
  absl::MutexLock lock(&mu_);
  writing_ = false;
  if (!ok) {
    outbox_.clear();
    End(grpc::Status(grpc::StatusCode::CANCELLED, "the client went away"));
    return;
  }
  if (outbox_.size() <= context_.max_pending_responses / 2) {
    for (GenerationChoice& choice : choices_) {
      if (choice.attempt != nullptr) choice.attempt->Resume();
    }
  }
  Pump();
}

void Generation::Cancel() {
  const auto self = shared_from_this();
  absl::MutexLock lock(&mu_);
  outbox_.clear();
  // gRPC's timer may be a little ahead of ours.
  const bool late =
      deadline_ != kNoDeadline && Now() + milliseconds(20) >= deadline_;
  End(late ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED,
                          "the deadline of the call has passed")
           : grpc::Status(grpc::StatusCode::CANCELLED,
                          "cancelled by the client"));
}

void Generation::CountAndLog() {
  GatewayCounters& counters = context_.counters;
  const size_t completion_tokens = NumGenerated(choices_);
  counters.completion_tokens += completion_tokens;
  const double total_ms = MillisecondsSince(start_);
  context_.metrics.CountEnd(final_status_.error_code());
  if (ttft_ms_ != 0) --context_.metrics.generating;
  for (const GenerationChoice& choice : choices_) {
    if (!choice.done) context_.metrics.Count(ChoiceEnd::kAbort);
  }
  switch (final_status_.error_code()) {
    case grpc::StatusCode::OK:
      ++counters.ok;
      context_.metrics.request_seconds.Observe(1e-3 * total_ms);
      context_.metrics.prompt_tokens.Observe(
          static_cast<double>(num_prompt_tokens_));
      context_.metrics.generation_tokens.Observe(
          static_cast<double>(completion_tokens));
      context_.admission.RecordDuration(total_ms);
      break;
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      ++counters.cancelled;
      break;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      ++counters.refused;
      break;
    default:
      ++counters.failed;
  }
  spdlog::info(
      "request request_id={} key={} outcome={} code={} prompt_tokens={} "
      "completion_tokens={} moves={} ttft_ms={:.1f} total_ms={:.1f}",
      request_id_, lease_.name().empty() ? "-" : lease_.name(),
      OutcomeOf(final_status_.error_code()),
      static_cast<int>(final_status_.error_code()), num_prompt_tokens_,
      completion_tokens, NumMoves(choices_), ttft_ms_, total_ms);
}

}  // namespace troupe

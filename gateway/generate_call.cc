#include "gateway/generate_call.h"

#include <sys/random.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cluster/copy_usage.h"
#include "common/check.h"
#include "common/logging.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/status.h"
#include "gateway/choice_text.h"
#include "protos/router.grpc.pb.h"

namespace troupe {
namespace {

// Longer texts are tokenized outside of gRPC's callback threads.
constexpr size_t kInlineTextBytes = 16 << 10;
// Prompt tokens per response with echo: log-probabilities with alternatives of
// a long prompt would not fit the 4 MiB that clients accept by default.
constexpr size_t kEchoTokensPerResponse = 256;
// How often a router may fail one sequence: a sequence that breaks routers must
// end. That many new tokens make up for one failure. Moves from a router that
// drains or says nothing do not count; the pool's budget bounds them.
constexpr int kMaxFailures = 3;
constexpr size_t kTokensPerFailure = 16;

SteadyTime Now() { return Clock::Real().Now(); }

double MillisecondsSince(SteadyTime start) {
  return std::chrono::duration<double, std::milli>(Now() - start).count();
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

const char* Outcome(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::OK:
      return "ok";
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "cancelled";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return "refused";
    default:
      return "failed";
  }
}

class GenerateCall;

// One Router.Generate call of one choice. Deletes itself when it is done;
// `call` is alive until then. Its public functions are called with the lock of
// its GenerateCall held.
class RouterAttempt final
    : public grpc::ClientReadReactor<v1::RouterGenerateResponse> {
 public:
  RouterAttempt(std::shared_ptr<GenerateCall> call, size_t choice,
                RouterLease lease, v1::RouterGenerateRequest request)
      : call_(std::move(call)),
        choice_(choice),
        lease_(std::move(lease)),
        request_(std::move(request)) {}

  void Begin(SteadyTime deadline, RouterLease::Leave leave) {
    lease_.Watch(std::move(leave));
    SetDeadline(context_, deadline);
    lease_.stub().async()->Generate(&context_, &request_, this);
    AddHold();  // for reads that start outside of a reaction
    StartRead(&response_);
    StartCall();
  }

  // No read is in flight; the next one waits for Resume.
  void Pause() { paused_ = true; }
  void Resume() {
    if (!std::exchange(paused_, false)) return;
    StartRead(&response_);
  }
  void Cancel() {
    context_.TryCancel();
    Resume();
  }

  // As in Begin: the pool's word of before was wrong.
  void WatchAgain(RouterLease::Leave leave) { lease_.Watch(std::move(leave)); }

  const RouterLease& lease() const { return lease_; }

 private:
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  const std::shared_ptr<GenerateCall> call_;
  const size_t choice_;
  RouterLease lease_;
  const v1::RouterGenerateRequest request_;
  grpc::ClientContext context_;
  v1::RouterGenerateResponse response_;
  bool paused_ = false;
};

// Refuses, or tokenizes, starts one router stream per choice, turns tokens
// into responses and writes these one after the other.
//
// Owned by itself (until OnDone) and by its attempts, through shared_ptr. All
// reactions take mu_; gRPC never runs one inside of a call that we make, so
// operations are started with it held.
class GenerateCall final
    : public grpc::ServerWriteReactor<v1::GenerateResponse>,
      public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(GatewayContext& context,
               grpc::CallbackServerContext* server_context,
               const v1::GenerateRequest& request)
      : live_(context.live_calls),
        context_(context),
        request_(request),
        start_(Now()),
        deadline_(ToSteadyTime(server_context->deadline())),
        answer_by_(AnswerBy(deadline_)),
        seed_(request.has_seed()               ? request.seed()
              : request.sampling().seed() != 0 ? request.sampling().seed()
                                               : RandomSeed()),
        request_id_(request.request_id().empty()
                        ? absl::StrFormat("%016x", RandomSeed())
                        : request.request_id()) {}

  void Begin();

  // Of an attempt. True: read on.
  bool OnRouterResponse(size_t index, RouterAttempt* attempt,
                        const v1::RouterGenerateResponse& response);
  void OnRouterDone(size_t index, RouterAttempt* attempt,
                    const grpc::Status& status);

 private:
  struct Choice {
    v1::RouterGenerateRequest plan;
    std::unique_ptr<ChoiceText> text;
    std::vector<uint32_t> generated;
    bool echoed = false;
    bool done = false;
    uint32_t moves = 0;
    int failures = 0;
    size_t tokens_at_failure = 0;      // generated when it was counted
    std::vector<uint64_t> refused_by;  // router ids
    v1::RouterUsage usage;             // of the last attempt
    v1::CopyUsage copies_of_earlier;   // attempts, as far as they were told
    uint32_t moved_before = 0;         // experts_moved_version of earlier ones
    RouterAttempt* attempt = nullptr;  // deletes itself
    uint64_t attempt_id = 0;           // of that one; pointers come again
    uint64_t heard_attempt_id = 0;     // that the newest response came from
    // Of the pool's call that is awaited, 0: none. With an attempt: its router
    // is to be left as soon as there is another, `doubtful` if the attempt may
    // not get on meanwhile.
    uint64_t wait_id = 0;
    bool doubtful = false;
    std::string leave_reason;
  };

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  grpc::Status Admit();
  void Prepare();
  absl::StatusOr<std::vector<Choice>> Plan() const;
  RouterPool::Wish WishOf(const Choice& choice, bool is_retry) const;
  void StartAttempt(size_t index, RouterLease lease)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Calls OnRouterFound when a router is ready, or in vain when the wait is
  // over. A request waits, since `exact` prefers late to never, and its place
  // in the admission bounds how many do. False when the gateway is ending.
  bool AwaitRouter(size_t index, const RouterPool::Wish& wish)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StopWaiting(Choice& choice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  grpc::Status NoRouter(const std::string& reason) const;
  void OnRouterFound(size_t index, uint64_t wait_id,
                     std::optional<RouterLease> lease);
  // After an attempt ended early: elsewhere, if that makes sense.
  void Move(size_t index, const grpc::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What the pool calls when the choice's attempt had better go elsewhere.
  RouterLease::Leave LeaveOf(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnLeave(size_t index, uint64_t attempt_id, bool doubtful,
               const std::string& reason);
  // The attempt's stream goes on there: prompt and tokens so far are prefilled
  // again. What the old one still says is not heard.
  void Replace(size_t index, RouterLease lease)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Counts a failure.
  bool MayFailAgain(Choice& choice) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  void Echo(size_t index, const v1::RouterGenerateResponse& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddToken(Choice& choice, const v1::TokenOutput& token,
                bool is_stop_token, v1::GenerateResponse& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  v1::GeneratedToken Describe(const v1::TokenOutput& token,
                              bool has_logprob) const;
  void FinishChoice(Choice& choice, v1::FinishReason reason,
                    v1::GenerateResponse& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AllDone() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint32_t NumMoves() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  v1::Usage MakeUsage() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // The call ends with `status` once what waits is written; routers are told
  // at once. Only the first counts.
  void End(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CountAndLog() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const LiveCalls::Guard live_;
  GatewayContext& context_;
  const v1::GenerateRequest request_;
  const SteadyTime start_;
  const SteadyTime deadline_;
  const SteadyTime answer_by_;
  const uint64_t seed_;
  const std::string request_id_;

  absl::Mutex mu_;
  std::shared_ptr<GenerateCall> self_ ABSL_GUARDED_BY(mu_);
  Admission::Ticket ticket_ ABSL_GUARDED_BY(mu_);
  std::vector<Choice> choices_ ABSL_GUARDED_BY(mu_);
  size_t num_prompt_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  double ttft_ms_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<v1::GenerateResponse> outbox_ ABSL_GUARDED_BY(mu_);
  v1::GenerateResponse writing_response_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status final_status_ ABSL_GUARDED_BY(mu_);
};

void RouterAttempt::OnReadDone(bool ok) {
  if (!ok) {
    RemoveHold();
    return;
  }
  lease_.Heard();
  if (call_->OnRouterResponse(choice_, this, response_)) {
    StartRead(&response_);
  }
}

void RouterAttempt::OnDone(const grpc::Status& status) {
  call_->OnRouterDone(choice_, this, status);
  delete this;
}

void GenerateCall::Begin() {
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

grpc::Status GenerateCall::Admit() {
  absl::MutexLock lock(&mu_);
  self_ = shared_from_this();
  if (context_.draining) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE,
                        "this gateway is draining");
  }
  ticket_ = context_.admission.TryEnter();
  if (!ticket_) {
    return ResourceExhaustedStatus(
        absl::ResourceExhaustedError(absl::StrCat(
            "the queue is full: ", context_.admission.max_requests(),
            " requests are being served")),
        context_.admission.RetryDelayMs());
  }
  return ToGrpcStatus(
      CheckGenerateRequest(request_, context_.model, context_.limits));
}

absl::StatusOr<std::vector<GenerateCall::Choice>> GenerateCall::Plan() const {
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
  std::vector<Choice> choices(NumChoices(request_));
  for (uint32_t i = 0; i < choices.size(); ++i) {
    choices[i].plan = PlanChoice(request_, model, *prompt, *max_tokens, seed_,
                                 request_id_, i);
    choices[i].text = std::make_unique<ChoiceText>(*model.tokenizer,
                                                   PlanText(request_), *prompt);
  }
  return choices;
}

void GenerateCall::Prepare() {
  absl::StatusOr<std::vector<Choice>> choices = Plan();
  absl::MutexLock lock(&mu_);
  if (ending_) return;  // cancelled meanwhile
  if (!choices.ok()) {
    End(ToGrpcStatus(choices.status()));
    return;
  }
  choices_ = *std::move(choices);
  num_prompt_tokens_ =
      static_cast<size_t>(choices_[0].plan.prompt_token_ids_size());
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

grpc::Status GenerateCall::NoRouter(const std::string& reason) const {
  return grpc::Status(
      grpc::StatusCode::UNAVAILABLE,
      absl::StrCat("no router is ready: ", reason, reason.empty() ? "" : "; ",
                   context_.routers.Explain()));
}

RouterPool::Wish GenerateCall::WishOf(const Choice& choice,
                                      bool is_retry) const {
  RouterPool::Wish wish;
  wish.excluded = choice.refused_by;
  wish.min_context =
      static_cast<uint32_t>(choice.plan.prompt_token_ids_size()) +
      choice.plan.max_tokens();
  wish.is_retry = is_retry;
  return wish;
}

bool GenerateCall::AwaitRouter(size_t index, const RouterPool::Wish& wish) {
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

void GenerateCall::StopWaiting(Choice& choice) {
  choice.doubtful = false;
  if (choice.wait_id == 0) return;
  context_.routers.CancelWait(std::exchange(choice.wait_id, 0));
}

void GenerateCall::StartAttempt(size_t index, RouterLease lease) {
  Choice& choice = choices_[index];
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

RouterLease::Leave GenerateCall::LeaveOf(size_t index) {
  return [self = shared_from_this(), index,
          attempt_id = choices_[index].attempt_id](bool doubtful,
                                                   const std::string& reason) {
    self->OnLeave(index, attempt_id, doubtful, reason);
  };
}

bool GenerateCall::OnRouterResponse(
    size_t index, RouterAttempt* attempt,
    const v1::RouterGenerateResponse& response) {
  absl::MutexLock lock(&mu_);
  Choice& choice = choices_[index];
  if (ending_ || choice.done || choice.attempt != attempt) return true;
  if (choice.doubtful) {  // it gets on after all
    StopWaiting(choice);
    attempt->WatchAgain(LeaveOf(index));
  }
  const uint64_t heard_before =
      std::exchange(choice.heard_attempt_id, choice.attempt_id);
  if (heard_before != 0 && heard_before != choice.attempt_id) {
    ++choice.moves;
    ++context_.counters.moved_streams;
  }
  // Before the text may end the choice.
  if (response.has_usage()) choice.usage.MergeFrom(response.usage());
  if (request_.echo() && !choice.echoed) Echo(index, response);
  v1::GenerateResponse output;
  output.set_index(static_cast<uint32_t>(index));
  for (int i = 0; i < response.tokens_size() && !choice.done; ++i) {
    const v1::TokenOutput& token = response.tokens(i);
    const auto& stops = choice.plan.stop_token_ids();
    const bool is_stop_token =
        i + 1 == response.tokens_size() &&
        response.finish_reason() == v1::FINISH_REASON_STOP &&
        std::find(stops.begin(), stops.end(), token.token_id()) != stops.end();
    AddToken(choice, token, is_stop_token, output);
  }
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

void GenerateCall::Echo(size_t index,
                        const v1::RouterGenerateResponse& response) {
  Choice& choice = choices_[index];
  choice.echoed = true;
  const auto& prompt = choice.plan.prompt_token_ids();
  const bool has_logprobs = response.prompt_size() == prompt.size();
  std::string text = request_.text();
  if (!request_.has_text()) {
    const std::vector<int32_t> token_ids(prompt.begin(), prompt.end());
    // Ids without text in the tokenizer leave a gap, as in the output.
    StreamDecoder decoder(
        *context_.model.tokenizer,
        {.skip_special_tokens = !request_.keep_special_tokens()});
    for (const int32_t token_id : token_ids) text += decoder.Append(token_id);
    text += decoder.Finish();
  }
  v1::GenerateResponse output;
  output.set_text(std::move(text));
  for (int i = 0; i < prompt.size(); ++i) {
    v1::TokenOutput token;
    if (has_logprobs) token = response.prompt(i);
    token.set_token_id(prompt[i]);
    *output.add_tokens() =
        Describe(token, /*has_logprob=*/has_logprobs && i > 0);
    output.mutable_tokens()->rbegin()->set_is_prompt(true);
    if (i + 1 == prompt.size() ||
        output.tokens_size() == static_cast<int>(kEchoTokensPerResponse)) {
      output.set_index(static_cast<uint32_t>(index));
      outbox_.push_back(std::exchange(output, v1::GenerateResponse()));
    }
  }
}

void GenerateCall::AddToken(Choice& choice, const v1::TokenOutput& token,
                            bool is_stop_token,
                            v1::GenerateResponse& response) {
  if (ttft_ms_ == 0) ttft_ms_ = MillisecondsSince(start_);
  choice.generated.push_back(token.token_id());
  *response.add_tokens() = Describe(token, request_.logprobs());
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

v1::GeneratedToken GenerateCall::Describe(const v1::TokenOutput& token,
                                          bool has_logprob) const {
  const Tokenizer& tokenizer = *context_.model.tokenizer;
  v1::GeneratedToken described;
  described.set_token_id(token.token_id());
  described.set_text(TokenText(tokenizer, token.token_id()));
  if (!has_logprob) return described;
  described.set_has_logprob(true);
  described.set_logprob(token.logprob());
  for (const v1::TokenLogprob& top : token.top_logprobs()) {
    v1::GeneratedToken::Alternative* alternative = described.add_top_logprobs();
    alternative->set_token_id(top.token_id());
    alternative->set_text(TokenText(tokenizer, top.token_id()));
    alternative->set_logprob(top.logprob());
  }
  return described;
}

void GenerateCall::FinishChoice(Choice& choice, v1::FinishReason reason,
                                v1::GenerateResponse& response) {
  choice.done = true;
  StopWaiting(choice);
  response.set_finish_reason(reason);
  if (AllDone()) *response.mutable_usage() = MakeUsage();
}

bool GenerateCall::AllDone() const {
  return std::all_of(choices_.begin(), choices_.end(),
                     [](const Choice& choice) { return choice.done; });
}

uint32_t GenerateCall::NumMoves() const {
  uint32_t moves = 0;
  for (const Choice& choice : choices_) moves += choice.moves;
  return moves;
}

v1::Usage GenerateCall::MakeUsage() const {
  v1::Usage usage;
  size_t completion_tokens = 0;
  uint32_t preemptions = 0;
  double queue_ms = 0;
  uint32_t experts_moved = 0;
  std::set<std::string> snapshots;
  uint32_t cached_tokens = std::numeric_limits<uint32_t>::max();
  for (const Choice& choice : choices_) {
    completion_tokens += choice.generated.size();
    preemptions += choice.usage.preemptions();
    queue_ms = std::max(queue_ms, choice.usage.queue_ms());
    cached_tokens = std::min(cached_tokens, choice.usage.cached_tokens());
    experts_moved += choice.moved_before + choice.usage.experts_moved_version();
    if (!choice.usage.snapshot().empty()) {
      snapshots.insert(choice.usage.snapshot());
    }
    AddCopies(choice.copies_of_earlier, *usage.mutable_copies());
    AddCopies(choice.usage.copies(), *usage.mutable_copies());
  }
  usage.set_experts_moved_version(experts_moved);
  usage.mutable_snapshots()->Assign(snapshots.begin(), snapshots.end());
  usage.set_prompt_tokens(static_cast<uint32_t>(num_prompt_tokens_));
  usage.set_completion_tokens(static_cast<uint32_t>(completion_tokens));
  usage.set_total_tokens(
      static_cast<uint32_t>(num_prompt_tokens_ + completion_tokens));
  usage.set_seed(seed_);
  usage.set_request_id(request_id_);
  usage.set_preemptions(preemptions);
  usage.set_queue_ms(queue_ms);
  // What a router says may be any number.
  usage.set_cached_tokens(
      std::min(cached_tokens, static_cast<uint32_t>(num_prompt_tokens_)));
  usage.set_ttft_ms(ttft_ms_);
  usage.set_total_ms(MillisecondsSince(start_));
  usage.set_moved_streams(NumMoves());
  return usage;
}

void GenerateCall::OnRouterDone(size_t index, RouterAttempt* attempt,
                                const grpc::Status& status) {
  absl::MutexLock lock(&mu_);
  Choice& choice = choices_[index];
  if (choice.attempt != attempt) return;  // was replaced
  choice.attempt = nullptr;
  if (ending_ || choice.done) return;
  StopWaiting(choice);
  const RouterLease& lease = attempt->lease();
  if (!status.ok()) {
    spdlog::warn("router call ended early request_id={} router={} code={} {}",
                 choice.plan.request_id(), lease.address(),
                 static_cast<int>(status.error_code()), status.error_message());
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

void GenerateCall::Move(size_t index, const grpc::Status& status) {
  Choice& choice = choices_[index];
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
    const int delay_ms = RetryDelayMs(status);
    End(ResourceExhaustedStatus(
        FromGrpcStatus(status),
        delay_ms >= 0 ? delay_ms : context_.admission.RetryDelayMs()));
    return;
  }
  choice.leave_reason = status.error_message();
  if (!AwaitRouter(index, wish)) End(status);
}

bool GenerateCall::MayFailAgain(Choice& choice) const {
  const size_t earned =
      (choice.generated.size() - choice.tokens_at_failure) / kTokensPerFailure;
  choice.failures = std::max(0, choice.failures - static_cast<int>(earned));
  choice.tokens_at_failure = choice.generated.size();
  return ++choice.failures <= kMaxFailures;
}

void GenerateCall::OnLeave(size_t index, uint64_t attempt_id, bool doubtful,
                           const std::string& reason) {
  absl::MutexLock lock(&mu_);
  if (ending_) return;
  Choice& choice = choices_[index];
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

void GenerateCall::Replace(size_t index, RouterLease lease) {
  Choice& choice = choices_[index];
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

void GenerateCall::OnRouterFound(size_t index, uint64_t wait_id,
                                 std::optional<RouterLease> lease) {
  absl::MutexLock lock(&mu_);
  if (ending_) return;
  Choice& choice = choices_[index];
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

void GenerateCall::End(const grpc::Status& status) {
  if (!ending_) {
    ending_ = true;
    final_status_ = status;
    for (Choice& choice : choices_) {
      StopWaiting(choice);
      if (choice.attempt != nullptr && !choice.done) choice.attempt->Cancel();
      if (choice.attempt != nullptr) choice.attempt->Resume();
    }
  }
  Pump();
}

void GenerateCall::Pump() {
  if (writing_ || finished_) return;
  if (!outbox_.empty()) {
    writing_ = true;
    writing_response_ = std::move(outbox_.front());
    outbox_.pop_front();
    StartWrite(&writing_response_);
    return;
  }
  if (ending_) {
    finished_ = true;
    // Before the client knows: its next call finds the place free and the
    // counters right.
    ticket_ = Admission::Ticket();
    CountAndLog();
    Finish(final_status_);
  }
}

void GenerateCall::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mu_);
  writing_ = false;
  if (!ok) {
    outbox_.clear();
    End(grpc::Status(grpc::StatusCode::CANCELLED, "the client went away"));
    return;
  }
  if (outbox_.size() <= context_.max_pending_responses / 2) {
    for (Choice& choice : choices_) {
      if (choice.attempt != nullptr) choice.attempt->Resume();
    }
  }
  Pump();
}

void GenerateCall::OnCancel() {
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

void GenerateCall::OnDone() {
  std::shared_ptr<GenerateCall> self;
  absl::MutexLock lock(&mu_);
  self = std::move(self_);
}

void GenerateCall::CountAndLog() {
  GatewayCounters& counters = context_.counters;
  size_t completion_tokens = 0;
  for (const Choice& choice : choices_) {
    completion_tokens += choice.generated.size();
  }
  counters.completion_tokens += completion_tokens;
  const double total_ms = MillisecondsSince(start_);
  switch (final_status_.error_code()) {
    case grpc::StatusCode::OK:
      ++counters.ok;
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
      "request request_id={} outcome={} code={} prompt_tokens={} "
      "completion_tokens={} moves={} ttft_ms={:.1f} total_ms={:.1f}",
      request_id_, Outcome(final_status_),
      static_cast<int>(final_status_.error_code()), num_prompt_tokens_,
      completion_tokens, NumMoves(), ttft_ms_, total_ms);
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerateCall(
    GatewayContext& context, grpc::CallbackServerContext* server_context,
    const v1::GenerateRequest* request) {
  auto call = std::make_shared<GenerateCall>(context, server_context, *request);
  call->Begin();
  return call.get();
}

}  // namespace troupe

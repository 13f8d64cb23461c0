#include "router_service/router_server.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/process_memory.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/status.h"

namespace troupe {
namespace {

constexpr uint32_t kMaxTopLogprobs = 20;
constexpr size_t kMaxSaltBytes = 256;
constexpr size_t kMaxSnapshotBytes = 4096;

absl::Status OutOfRange(absl::string_view field, double value, double low,
                        double high) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", not in [", low, ", ", high, "]"));
}

// NaN is in no range.
absl::Status CheckRange(absl::string_view field, double value, double low,
                        double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return OutOfRange(field, value, low, high);
}

absl::Status AppendTokens(
    absl::string_view field,
    const google::protobuf::RepeatedField<uint32_t>& token_ids,
    size_t vocab_size, std::vector<int32_t>& tokens) {
  for (const uint32_t token : token_ids) {
    if (token >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": token ", token,
                       " is not in the vocabulary of ", vocab_size));
    }
    tokens.push_back(static_cast<int32_t>(token));
  }
  return absl::OkStatus();
}

absl::StatusOr<SamplingOptions> ToSamplingOptions(
    const v1::SamplingParams& params, size_t vocab_size) {
  for (const absl::Status& status :
       {CheckRange("sampling.temperature", params.temperature(), 0, 100),
        CheckRange("sampling.top_p", params.top_p(), 0, 1),
        CheckRange("sampling.min_p", params.min_p(), 0, 1),
        CheckRange("sampling.repetition_penalty", params.repetition_penalty(),
                   0, 100),
        CheckRange("sampling.presence_penalty", params.presence_penalty(), -2,
                   2),
        CheckRange("sampling.frequency_penalty", params.frequency_penalty(), -2,
                   2)}) {
    if (!status.ok()) return status;
  }
  SamplingOptions options;
  options.temperature = params.temperature();
  options.top_k = params.top_k();
  options.top_p = params.top_p() == 0.0f ? 1.0f : params.top_p();
  options.min_p = params.min_p();
  options.repetition_penalty =
      params.repetition_penalty() == 0.0f ? 1.0f : params.repetition_penalty();
  options.presence_penalty = params.presence_penalty();
  options.frequency_penalty = params.frequency_penalty();
  options.seed = params.seed();
  for (const auto& [token, bias] : params.logit_bias()) {
    if (token >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.logit_bias: token ", token,
                       " is not in the vocabulary of ", vocab_size));
    }
    if (!(bias >= -100.0f && bias <= 100.0f)) {
      return OutOfRange("sampling.logit_bias", bias, -100, 100);
    }
    options.logit_bias.emplace_back(static_cast<int32_t>(token), bias);
  }
  return options;
}

void AddToken(const SequenceToken& token, v1::TokenOutput* output) {
  output->set_token_id(static_cast<uint32_t>(token.token_id));
  if (!token.has_logprob) return;
  output->set_logprob(token.logprob.logprob);
  for (const TokenLogprobValue& top : token.logprob.top) {
    v1::TokenLogprob* alternative = output->add_top_logprobs();
    alternative->set_token_id(static_cast<uint32_t>(top.token_id));
    alternative->set_logprob(top.logprob);
  }
}

}  // namespace

absl::StatusOr<SequenceRequest> ToSequenceRequest(
    const v1::RouterGenerateRequest& request, const ModelConfig& config,
    size_t max_context, const FallbackPolicy& default_fallback) {
  SequenceRequest sequence;
  sequence.request_id = request.request_id();
  if (request.prompt_token_ids().empty()) {
    return absl::InvalidArgumentError("prompt_token_ids is empty");
  }
  absl::Status status =
      AppendTokens("prompt_token_ids", request.prompt_token_ids(),
                   config.vocab_size, sequence.tokens);
  if (!status.ok()) return status;
  sequence.prompt_length = sequence.tokens.size();
  status = AppendTokens("generated_token_ids", request.generated_token_ids(),
                        config.vocab_size, sequence.tokens);
  if (!status.ok()) return status;
  status = AppendTokens("stop_token_ids", request.stop_token_ids(),
                        config.vocab_size, sequence.stop_token_ids);
  if (!status.ok()) return status;
  sequence.max_tokens = request.max_tokens();
  if (sequence.prompt_length + sequence.max_tokens > max_context) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt of ", sequence.prompt_length,
                     " tokens and max_tokens ", sequence.max_tokens,
                     " do not fit the context of ", max_context, " tokens"));
  }
  if (sequence.tokens.size() > sequence.prompt_length + sequence.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "generated_token_ids has ", request.generated_token_ids_size(),
        " tokens, max_tokens is ", sequence.max_tokens));
  }
  if (request.top_logprobs() > kMaxTopLogprobs) {
    return OutOfRange("top_logprobs", request.top_logprobs(), 0,
                      kMaxTopLogprobs);
  }
  absl::StatusOr<SamplingOptions> sampling =
      ToSamplingOptions(request.sampling(), config.vocab_size);
  if (!sampling.ok()) return sampling.status();
  sequence.sampling = *std::move(sampling);
  sequence.min_tokens = request.min_tokens();
  sequence.logprobs = request.logprobs();
  sequence.top_logprobs = request.top_logprobs();
  sequence.prompt_logprobs = request.prompt_logprobs();
  if (request.cache_salt().size() > kMaxSaltBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("cache_salt has ", request.cache_salt().size(),
                     " bytes, at most ", kMaxSaltBytes));
  }
  sequence.cache_salt = request.cache_salt();
  if (request.snapshot().size() > kMaxSnapshotBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("snapshot has ", request.snapshot().size(),
                     " bytes, at most ", kMaxSnapshotBytes));
  }
  sequence.snapshot = request.snapshot();
  absl::StatusOr<FallbackPolicy> fallback =
      FromProto(request.fallback(), default_fallback);
  if (!fallback.ok()) return fallback.status();
  sequence.fallback = *fallback;
  return sequence;
}

// One call. The reactor belongs to gRPC until OnDone; the serving loop's
// callback shares the state, so that an event after the end meets nobody.
class RouterServer::Call final
    : public grpc::ServerWriteReactor<v1::RouterGenerateResponse> {
 public:
  explicit Call(ServingLoop& loop) : loop_(loop) {
    state_ = std::make_shared<State>();
    absl::MutexLock lock(&state_->mu);
    state_->call = this;
  }

  void Start(SequenceRequest request) {
    request.on_event = [state = state_](SequenceEvent event) {
      OnEvent(*state, std::move(event));
    };
    const absl::StatusOr<uint64_t> seq_id = loop_.Submit(std::move(request));
    if (!seq_id.ok()) {
      // The queue is full, or the router drains.
      End(RefusedStatus(seq_id.status(), 1000));
      return;
    }
    absl::MutexLock lock(&state_->mu);
    state_->seq_id = *seq_id;
    // OnCancel may have come before the id was known.
    if (state_->cancelled) loop_.Cancel(*seq_id);
  }

  void End(const grpc::Status& status) {
    absl::MutexLock lock(&state_->mu);
    state_->ending = true;
    state_->status = status;
    FinishIfIdle(*state_);
  }

 private:
  struct State {
    absl::Mutex mu;
    Call* call ABSL_GUARDED_BY(mu) = nullptr;  // null after OnDone
    // The front one is being written.
    std::deque<v1::RouterGenerateResponse> responses ABSL_GUARDED_BY(mu);
    uint64_t seq_id ABSL_GUARDED_BY(mu) = 0;
    bool cancelled ABSL_GUARDED_BY(mu) = false;
    bool has_begun ABSL_GUARDED_BY(mu) = false;
    bool ending ABSL_GUARDED_BY(mu) = false;
    bool finished ABSL_GUARDED_BY(mu) = false;
    grpc::Status status ABSL_GUARDED_BY(mu);
  };

  static void OnEvent(State& state, SequenceEvent event) {
    v1::RouterGenerateResponse response;
    for (const SequenceToken& token : event.prompt) {
      AddToken(token, response.add_prompt());
    }
    for (const SequenceToken& token : event.tokens) {
      AddToken(token, response.add_tokens());
    }
    const bool is_last = event.finish != Finish::kNot || !event.status.ok();
    if (is_last) {
      response.set_finish_reason(event.finish == Finish::kStop
                                     ? v1::FINISH_REASON_STOP
                                     : v1::FINISH_REASON_LENGTH);
    }
    absl::MutexLock lock(&state.mu);
    if (state.call == nullptr || state.ending) return;
    v1::RouterUsage& usage = *response.mutable_usage();
    *usage.mutable_copies() = std::move(event.copies);
    if (is_last || !std::exchange(state.has_begun, true) ||
        !event.snapshot.empty()) {
      usage.set_preemptions(event.preemptions);
      usage.set_queue_ms(event.queue_ms);
      usage.set_cached_tokens(static_cast<uint32_t>(event.cached_tokens));
      usage.set_snapshot(event.snapshot);
      usage.set_experts_moved_version(
          static_cast<uint32_t>(event.experts_moved_version));
    }
    if (event.status.ok()) {
      state.responses.push_back(std::move(response));
      if (state.responses.size() == 1) {
        state.call->StartWrite(&state.responses.front());
      }
    }
    if (is_last) {
      state.ending = true;
      state.status = ToGrpcStatus(event.status);
      FinishIfIdle(state);
    }
  }

  static void FinishIfIdle(State& state)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state.mu) {
    if (!state.ending || state.finished || !state.responses.empty()) return;
    state.finished = true;
    state.call->Finish(state.status);
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&state_->mu);
    state_->responses.pop_front();
    if (!ok) {
      // The client is gone: OnCancel ends the sequence.
      state_->responses.clear();
      state_->ending = true;
      state_->status = grpc::Status::CANCELLED;
    } else if (!state_->responses.empty()) {
      StartWrite(&state_->responses.front());
    }
    FinishIfIdle(*state_);
  }

  void OnCancel() override {
    absl::MutexLock lock(&state_->mu);
    state_->cancelled = true;
    if (state_->seq_id != 0) loop_.Cancel(state_->seq_id);
  }

  void OnDone() override {
    {
      absl::MutexLock lock(&state_->mu);
      state_->call = nullptr;
    }
    delete this;
  }

  ServingLoop& loop_;
  std::shared_ptr<State> state_;
};

RouterServer::RouterServer(RouterServerOptions options,
                           const ModelConfig& config, ServingLoop& loop,
                           ExpertPool* experts)
    : options_(std::move(options)),
      config_(config),
      loop_(loop),
      experts_(experts) {}

v1::RouterDescription RouterServer::Description() const {
  v1::RouterDescription description;
  description.set_name(options_.name);
  description.set_model_fingerprint(options_.model_fingerprint);
  description.set_max_context(static_cast<uint32_t>(loop_.max_context()));
  description.set_max_queued_sequences(options_.max_queued_sequences);
  description.set_state(v1::SERVING_STATE_READY);
  if (experts_ != nullptr) {
    if (const auto missing = experts_->placement()->Missing()) {
      description.set_state(v1::SERVING_STATE_LOADING);
      description.set_detail(*missing);
    }
  }
  description.set_sequences(static_cast<uint32_t>(loop_.num_sequences()));
  description.set_progress(loop_.progress());
  description.set_kv_blocks(loop_.num_kv_blocks());
  description.set_free_kv_blocks(loop_.num_free_kv_blocks());
  description.set_numeric_format(options_.numeric_format);
  if (draining_) {
    description.set_state(v1::SERVING_STATE_DRAINING);
    const SteadyTime::duration left = leave_at_.load() - Clock::Real().Now();
    description.set_leave_in_ms(static_cast<uint32_t>(std::max<int64_t>(
        0, std::chrono::duration_cast<milliseconds>(left).count())));
  }
  return description;
}

void RouterServer::StartDraining(milliseconds leave_after) {
  leave_at_ = Clock::Real().Now() + leave_after;
  draining_ = true;
  loop_.StartDraining();
}

grpc::ServerWriteReactor<v1::RouterGenerateResponse>* RouterServer::Generate(
    grpc::CallbackServerContext* context,
    const v1::RouterGenerateRequest* request) {
  auto* call = new Call(loop_);
  absl::StatusOr<SequenceRequest> sequence = ToSequenceRequest(
      *request, config_, loop_.max_context(), options_.default_fallback);
  if (!sequence.ok()) {
    call->End(ToGrpcStatus(sequence.status()));
    return call;
  }
  sequence->deadline = AnswerBy(ToSteadyTime(context->deadline()));
  call->Start(*std::move(sequence));
  return call;
}

v1::RouterStats RouterServer::Statistics() const {
  v1::RouterStats stats;
  loop_.GetStats(stats);
  stats.set_name(options_.name);
  stats.set_model_fingerprint(options_.model_fingerprint);
  stats.set_capacity_factor(options_.capacity_factor);
  stats.set_refuse(Name(options_.refuse));
  stats.set_fallback(Name(options_.default_fallback));
  stats.set_pid(getpid());
  stats.set_resident_bytes(ResidentBytes());
  if (experts_ != nullptr) {
    const std::shared_ptr<const Placement> placement = experts_->placement();
    stats.set_placement_epoch(placement->epoch());
    stats.set_current_snapshot(placement->current()->id_text());
    if (placement->canary() != nullptr) {
      stats.set_canary_snapshot(placement->canary()->id_text());
    }
    if (placement->rollout() != nullptr) {
      *stats.mutable_rollout() = *placement->rollout();
    }
    for (v1::ExpertPeer& peer : experts_->Describe()) {
      *stats.add_peers() = std::move(peer);
    }
    experts_->AddFailoverStats(*stats.mutable_failover());
  }
  if (options_.add_stats != nullptr) options_.add_stats(stats);
  return stats;
}

grpc::ServerUnaryReactor* RouterServer::GetStats(
    grpc::CallbackServerContext* context,
    const v1::GetRouterStatsRequest* request, v1::RouterStats* response) {
  *response = Statistics();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (request->check_integrity()) {
    loop_.CheckBetweenSteps([response, reactor](const absl::Status& sound) {
      if (!sound.ok()) {
        response->add_integrity_errors(std::string(sound.message()));
      }
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* RouterServer::Describe(
    grpc::CallbackServerContext* context, const v1::DescribeRouterRequest*,
    v1::RouterDescription* response) {
  *response = Description();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace troupe

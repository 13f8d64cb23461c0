#include "tests/robustness/open_loop_load.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/rpc/rpc_channel.h"

namespace troupe {
namespace {

constexpr size_t kNumConnections = 4;
constexpr milliseconds kCallAgainAfter{50};
// How long after its deadline a request may end: gRPC ends it by itself.
constexpr int kGraceMs = 3000;

// In (0, 1]; the same on every machine.
double Uniform(std::mt19937_64& random) {
  return (static_cast<double>(random() >> 11) + 1.0) * 0x1p-53;
}

// What another gateway, or the same one later, may answer better.
bool IsLostGateway(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::CANCELLED ||
         status.error_code() == grpc::StatusCode::UNKNOWN;
}

uint64_t NumCopies(const v1::CopyUsage& copies) {
  return copies.first_choice() + copies.by_replica() + copies.after_wait() +
         copies.other_version() + copies.next_best() + copies.dropped();
}

}  // namespace

std::vector<LoadTemplate> MakeTemplates(size_t count, uint32_t vocab_size,
                                        size_t max_prompt, uint32_t max_tokens,
                                        bool policies, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<LoadTemplate> templates(count);
  for (size_t i = 0; i < count; ++i) {
    v1::GenerateRequest& request = templates[i].request;
    const size_t prompt_length = 1 + random() % max_prompt;
    for (size_t t = 0; t < prompt_length; ++t) {
      request.mutable_tokens()->add_token_ids(
          static_cast<uint32_t>(random() % vocab_size));
    }
    // Many short ones and a few long ones.
    const double share = std::pow(Uniform(random), 2.0);
    request.set_max_tokens(
        8 + static_cast<uint32_t>(share * static_cast<double>(max_tokens - 8)));
    request.set_ignore_eos(true);
    request.set_seed(seed + 1000 + i);
    v1::SamplingParams& sampling = *request.mutable_sampling();
    if (i % 4 != 0) sampling.set_temperature(0.5f + 0.1f * float(i % 7));
    if (i % 3 == 1) sampling.set_top_k(20);
    if (i % 3 == 2) sampling.set_top_p(0.9f);
    if (i % 5 == 1) sampling.set_min_p(0.02f);
    if (i % 5 == 2) sampling.set_repetition_penalty(1.2f);
    if (i % 5 == 3) sampling.set_presence_penalty(0.7f);
    if (i % 5 == 4) sampling.set_frequency_penalty(0.3f);
    if (i % 2 == 0) {
      request.set_logprobs(true);
      request.set_top_logprobs(static_cast<uint32_t>(i % 4));
    }
    if (i % 8 == 3) request.set_n(2);
    if (i % 8 == 6) request.set_echo(true);
    if (i % 8 == 5) templates[i].leave_after = 4;
    if (policies && i % 4 == 1) {
      templates[i].exact = false;
      request.mutable_fallback()->set_preset(
          i % 8 == 1 ? v1::FallbackPolicy::PRESET_BALANCED
                     : v1::FallbackPolicy::PRESET_FAST);
    }
  }
  return templates;
}

void ResponseBytes::Add(const v1::GenerateResponse& response) {
  if (response.index() >= 16) return;
  if (response.index() >= choices_.size()) {
    choices_.resize(response.index() + 1);
  }
  Choice& choice = choices_[response.index()];
  choice.text += response.text();
  for (const v1::GeneratedToken& token : response.tokens()) {
    num_tokens_ += response.index() == 0 && !token.is_prompt() ? 1 : 0;
    absl::StrAppend(&choice.tokens, token.is_prompt() ? "p" : "t",
                    token.token_id(), ":",
                    absl::Hex(std::bit_cast<uint32_t>(token.logprob())));
    for (const auto& top : token.top_logprobs()) {
      absl::StrAppend(&choice.tokens, ",", top.token_id(), ":",
                      absl::Hex(std::bit_cast<uint32_t>(top.logprob())));
    }
    choice.tokens += "\n";
  }
  if (response.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    choice.end = absl::StrCat(v1::FinishReason_Name(response.finish_reason()),
                              " ", response.stop_reason());
  }
}

std::string ResponseBytes::Get() const {
  std::string bytes;
  for (const Choice& choice : choices_) {
    absl::StrAppend(&bytes, choice.text, "\n", choice.tokens, choice.end, "\n");
  }
  return bytes;
}

bool ResponseBytes::IsBeginningOf(const ResponseBytes& whole) const {
  if (choices_.size() > whole.choices_.size()) return false;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& other = whole.choices_[i];
    if (!absl::StartsWith(other.text, choices_[i].text) ||
        !absl::StartsWith(other.tokens, choices_[i].tokens) ||
        !absl::StartsWith(other.end, choices_[i].end)) {
      return false;
    }
  }
  return true;
}

LoneOutcome GenerateAlone(v1::Gateway::Stub& stub,
                          const v1::GenerateRequest& request, int timeout_ms) {
  const SteadyTime start = std::chrono::steady_clock::now();
  grpc::ClientContext context;
  SetDeadline(context, start + milliseconds(timeout_ms));
  LoneOutcome outcome;
  const auto reader = stub.Generate(&context, request);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    outcome.bytes.Add(response);
    if (response.has_usage()) outcome.usage = response.usage();
  }
  outcome.status = reader->Finish();
  outcome.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
          .count();
  return outcome;
}

// One attempt of one request. Deletes itself.
class OpenLoopLoad::Call final
    : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Call(OpenLoopLoad& load, size_t index, StreamRecord& record, int attempt)
      : load_(load),
        index_(index),
        record_(record),
        request_(load.templates_[record.template_index]),
        attempt_(attempt) {}

  void Begin() {
    SetDeadline(context_,
                load_.start_ +
                    std::chrono::duration_cast<SteadyTime::duration>(
                        std::chrono::duration<double>(record_.due_s)) +
                    milliseconds(load_.options_.timeout_ms));
    const size_t connection =
        (index_ + static_cast<size_t>(attempt_)) % load_.stubs_.size();
    load_.stubs_[connection]->async()->Generate(&context_, &request_.request,
                                                this);
    StartRead(&response_);
    StartCall();
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    const size_t before = bytes_.num_tokens();
    bytes_.Add(response_);
    if (response_.has_usage()) usage_ = response_.usage();
    const double now = load_.Now();
    {
      absl::MutexLock lock(&load_.mu_);
      // Tokens that came again are no news.
      for (size_t i = before; i < bytes_.num_tokens(); ++i) {
        if (i >= record_.token_s.size()) record_.token_s.push_back(now);
      }
      if (!streaming_ && bytes_.num_tokens() > 0) {
        streaming_ = true;
        ++load_.num_streaming_;
      }
    }
    if (request_.leave_after > 0 &&
        bytes_.num_tokens() >= request_.leave_after) {
      left_ = true;
      context_.TryCancel();
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    const double now = load_.Now();
    {
      absl::MutexLock lock(&load_.mu_);
      Finish(status, now);
    }
    delete this;
  }

  void Finish(const grpc::Status& status, double now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(load_.mu_) {
    if (streaming_) --load_.num_streaming_;
    const ResponseBytes& reference = load_.references_[record_.template_index];
    // What came must be right even when the call broke.
    if (request_.exact && !bytes_.IsBeginningOf(reference)) {
      record_.same_bytes = false;
    }
    const bool ok = status.ok() || left_;
    if (!ok && record_.broken_s < 0) {
      record_.broken_s = now;
      record_.error =
          absl::StrCat(status.error_code(), " ", status.error_message());
    }
    const bool has_time =
        (now - record_.due_s) * 1e3 < load_.options_.timeout_ms;
    if (!ok && load_.options_.call_again && has_time && !load_.stopped_ &&
        IsLostGateway(status)) {
      ++record_.attempts;
      load_.again_.emplace_back(
          std::chrono::steady_clock::now() + kCallAgainAfter, index_);
      return;
    }
    if (status.ok()) {
      if (request_.exact && bytes_.Get() != reference.Get()) {
        record_.same_bytes = false;
      }
      if (load_.options_.copies_per_token > 0) {
        record_.accounted =
            usage_.copies().computed_tokens() > 0 &&
            NumCopies(usage_.copies()) == usage_.copies().computed_tokens() *
                                              load_.options_.copies_per_token;
      }
    }
    record_.ok = ok;
    record_.end_s = now;
    --load_.num_running_;
  }

  OpenLoopLoad& load_;
  const size_t index_;
  StreamRecord& record_;  // fields of attempts are guarded by the load's mu_
  const LoadTemplate& request_;
  const int attempt_;
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
  v1::Usage usage_;
  ResponseBytes bytes_;
  bool streaming_ = false;
  bool left_ = false;
};

OpenLoopLoad::OpenLoopLoad(OpenLoopOptions options,
                           std::vector<LoadTemplate> templates,
                           std::vector<ResponseBytes> references)
    : options_(std::move(options)),
      templates_(std::move(templates)),
      references_(std::move(references)),
      start_(std::chrono::steady_clock::now()) {
  CHECK_EQ(templates_.size(), references_.size());
  std::mt19937_64 random(options_.seed);
  double at = 0;
  size_t next = 0;
  while (true) {
    at -= std::log(Uniform(random)) / options_.rate_per_s;
    if (at >= options_.period_s) break;
    // In turn, so that every period has all kinds.
    arrivals_.push_back({at, next++ % templates_.size()});
  }
  for (size_t i = 0; i < kNumConnections; ++i) {
    stubs_.push_back(v1::Gateway::NewStub(MakeChannel(options_.address)));
  }
  thread_ = std::thread([this] { Run(); });
}

OpenLoopLoad::~OpenLoopLoad() {
  Stop();
  // Calls refer to this object.
  absl::MutexLock lock(&mu_);
  CHECK_EQ(num_running_, 0u);
}

double OpenLoopLoad::Now() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() -
                                       start_)
      .count();
}

size_t OpenLoopLoad::num_streaming() const {
  absl::MutexLock lock(&mu_);
  return num_streaming_;
}

size_t OpenLoopLoad::num_running() const {
  absl::MutexLock lock(&mu_);
  return num_running_;
}

std::vector<StreamRecord> OpenLoopLoad::Records(double since_s) const {
  absl::MutexLock lock(&mu_);
  std::vector<StreamRecord> records;
  for (const auto& record : records_) {
    if (record->due_s >= since_s || record->end_s < 0 ||
        record->end_s > since_s) {
      records.push_back(*record);
    }
  }
  return records;
}

void OpenLoopLoad::StartCall(size_t index, int attempt) {
  StreamRecord* record = nullptr;
  {
    absl::MutexLock lock(&mu_);
    record = records_[index].get();
  }
  (new Call(*this, index, *record, attempt))->Begin();
}

void OpenLoopLoad::Run() {
  size_t next = 0;
  while (true) {
    std::vector<std::pair<size_t, int>> due;
    {
      absl::MutexLock lock(&mu_);
      const double due_s =
          arrivals_.empty()
              ? 1e9
              : options_.period_s *
                        static_cast<double>(next / arrivals_.size()) +
                    arrivals_[next % arrivals_.size()].offset_s;
      SteadyTime until =
          start_ + std::chrono::duration_cast<SteadyTime::duration>(
                       std::chrono::duration<double>(due_s));
      if (stopping_) until = kNoDeadline;
      for (const auto& again : again_) until = std::min(until, again.first);
      const SteadyTime now = std::chrono::steady_clock::now();
      const auto news = [this, stopping = stopping_, size = again_.size()]()
                            ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
                              return stopped_ || stopping_ != stopping ||
                                     again_.size() != size;
                            };
      const absl::Duration wait = until == kNoDeadline
                                      ? absl::InfiniteDuration()
                                      : absl::FromChrono(until - now);
      mu_.AwaitWithTimeout(absl::Condition(&news), wait);
      if (stopped_) return;
      const SteadyTime woken = std::chrono::steady_clock::now();
      for (auto it = again_.begin(); it != again_.end();) {
        if (it->first > woken) {
          ++it;
          continue;
        }
        due.emplace_back(it->second, records_[it->second]->attempts);
        it = again_.erase(it);
      }
      if (!stopping_ && !arrivals_.empty() && Now() >= due_s) {
        auto record = std::make_unique<StreamRecord>();
        record->due_s = due_s;
        record->template_index =
            arrivals_[next % arrivals_.size()].template_index;
        due.emplace_back(records_.size(), 1);
        records_.push_back(std::move(record));
        ++num_running_;
        ++next;
      }
    }
    for (const auto& [index, attempt] : due) StartCall(index, attempt);
  }
}

size_t OpenLoopLoad::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  size_t left = 0;
  {
    absl::MutexLock lock(&mu_);
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return num_running_ == 0;
    };
    mu_.AwaitWithTimeout(absl::Condition(&none),
                         absl::Milliseconds(options_.timeout_ms + kGraceMs));
    left = num_running_;
    stopped_ = true;
  }
  if (thread_.joinable()) thread_.join();
  return left;
}

}  // namespace troupe

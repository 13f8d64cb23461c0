#include "tests/fakes/fake_expert_process.h"

#include <cstring>
#include <deque>
#include <functional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/check.h"
#include "tests/fakes/expert_frames.h"

namespace troupe {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

// What a batch says about its tokens must agree with the closed form.
v1::ExpertOutput Compute(const v1::ExpertBatch& batch) {
  CHECK_GT(batch.num_tokens(), 0u);
  const size_t hidden_size =
      batch.hidden_states().size() / sizeof(float) / batch.num_tokens();
  CHECK_EQ(batch.hidden_states().size(),
           batch.num_tokens() * hidden_size * sizeof(float));
  std::vector<size_t> tokens;
  for (size_t row = 0; row < batch.num_tokens(); ++row) {
    std::vector<float> values(hidden_size);
    std::memcpy(
        values.data(),
        batch.hidden_states().data() + row * hidden_size * sizeof(float),
        hidden_size * sizeof(float));
    const size_t token = static_cast<size_t>(values[0]) / 64;
    for (size_t c = 0; c < hidden_size; ++c) {
      CHECK_EQ(values[c], FakeHidden(token, c));
    }
    tokens.push_back(token);
  }
  v1::ExpertOutput output;
  std::string& bytes = *output.mutable_outputs();
  int copy = 0;
  for (int i = 0; i < batch.expert_ids_size(); ++i) {
    for (uint32_t n = 0; n < batch.copies_per_expert(i); ++n) {
      const size_t token = tokens.at(batch.row_of_copy(copy++));
      for (size_t c = 0; c < hidden_size; ++c) {
        const float value = FakeOutput(token, batch.expert_ids(i), c);
        bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
      }
    }
  }
  CHECK_EQ(copy, batch.row_of_copy_size());
  output.set_verdict(v1::ExpertOutput::VERDICT_COMPUTED);
  return output;
}

v1::ExpertOutput ComputeSome(const v1::ExpertBatch& batch) {
  v1::ExpertOutput output = Compute(batch);
  const std::string all = output.outputs();
  const size_t num_copies = static_cast<size_t>(batch.row_of_copy_size());
  const size_t row_bytes = all.size() / num_copies;
  output.clear_outputs();
  for (size_t copy = 0; copy < num_copies; ++copy) {
    if (copy % 2 == 0) {
      output.mutable_outputs()->append(all, copy * row_bytes, row_bytes);
    } else {
      output.add_refused_copies(static_cast<uint32_t>(copy));
    }
  }
  output.set_verdict(num_copies == 1 ? v1::ExpertOutput::VERDICT_COMPUTED
                                     : v1::ExpertOutput::VERDICT_PARTIAL);
  return output;
}

}  // namespace

v1::ExpertDescription FakeDescription(const std::string& name,
                                      const std::vector<uint32_t>& experts,
                                      uint32_t num_layers,
                                      const std::string& version) {
  v1::ExpertDescription description;
  description.set_name(name);
  description.set_state(v1::SERVING_STATE_READY);
  description.set_queue_capacity_rows(1000);
  for (const uint32_t expert : experts) {
    v1::ExpertVersion& owned = *description.add_experts();
    owned.mutable_range()->set_layer_end(num_layers);
    owned.mutable_range()->set_expert_begin(expert);
    owned.mutable_range()->set_expert_end(expert + 1);
    owned.set_content_hash(absl::StrCat(version, "-", expert));
  }
  return description;
}

class FakeExpertProcess::State {
 public:
  struct Job {
    v1::ExpertBatch batch;
    FakeAnswer answer = FakeAnswer::kCompute;
    ExpertPeer::OutputCallback done;
  };

  State(v1::ExpertDescription description, bool own_thread)
      : own_thread_(own_thread), description_(std::move(description)) {
    if (own_thread_) thread_ = std::thread([this] { Run(); });
  }

  void Stop() {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    if (thread_.joinable()) thread_.join();
  }

  void Connect(ExpertPeer::Listener* listener) {
    bool reachable = false;
    v1::ExpertDescription description;
    {
      absl::MutexLock lock(&mu_);
      reachable = reachable_;
      description = description_;
      if (reachable) {
        CHECK(!connected_);
        connected_ = true;
        listener_ = listener;
      }
    }
    if (reachable) {
      listener->OnDescription(description);
    } else {
      listener->OnLost(absl::UnavailableError("fake: nobody listens"));
    }
    absl::MutexLock lock(&mu_);
    ++num_connects_;
    known_ = reachable;
  }

  void Send(v1::ExpertBatch batch, ExpertPeer::OutputCallback done) {
    Job job;
    {
      absl::MutexLock lock(&mu_);
      batches_.push_back(batch);
      job = {std::move(batch), rest_, std::move(done)};
      if (!script_.empty()) {
        job.answer = script_.front();
        script_.pop_front();
      }
      if (!connected_) {
        job.answer = FakeAnswer::kFail;
      } else if (job.answer == FakeAnswer::kHold) {
        held_.push_back(std::move(job));
        return;
      } else if (own_thread_) {
        queue_.push_back(std::move(job));
        return;
      }
    }
    Answer(job);
  }

  void Answer(Job& job) {
    uint64_t free_rows = 0;
    {
      absl::MutexLock lock(&mu_);
      free_rows = free_rows_;
    }
    if (job.answer == FakeAnswer::kFail) {
      job.done(absl::StatusOr<ExpertOutput>(
          absl::UnavailableError("fake: the connection broke")));
      return;
    }
    v1::ExpertOutput output;
    switch (job.answer) {
      case FakeAnswer::kRefuse:
        output.set_verdict(v1::ExpertOutput::VERDICT_REFUSED);
        break;
      case FakeAnswer::kDrain:
        output.set_verdict(v1::ExpertOutput::VERDICT_DRAINING);
        break;
      case FakeAnswer::kGone:
        output.set_verdict(v1::ExpertOutput::VERDICT_GONE);
        break;
      case FakeAnswer::kPartial:
      case FakeAnswer::kBadPartial:
        output = ComputeSome(job.batch);
        break;
      case FakeAnswer::kUnspecified:
        break;
      default:
        output = Compute(job.batch);
    }
    if (job.answer == FakeAnswer::kBadPartial) {
      output.mutable_refused_copies()->Set(0, 1u << 30);
    }
    if (job.answer == FakeAnswer::kShort) {
      output.mutable_outputs()->pop_back();
    } else if (job.answer == FakeAnswer::kLong) {
      output.mutable_outputs()->append(
          job.batch.hidden_states().size() / job.batch.num_tokens(), '\0');
    }
    output.set_attempt_id(job.batch.attempt_id());
    output.set_free_rows(free_rows);
    output.set_dtype(job.batch.dtype());
    job.done(FromProto(output));
  }

  // Gives everything that is in flight an error, and waits for the thread.
  void FailAll(const absl::Status& status) {
    std::deque<Job> failed;
    {
      absl::MutexLock lock(&mu_);
      connected_ = false;
      failed = std::move(held_);
      held_.clear();
      for (Job& job : queue_) failed.push_back(std::move(job));
      queue_.clear();
    }
    for (Job& job : failed) job.done(status);
    absl::MutexLock lock(&mu_);
    const auto idle = [this]()
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !busy_; };
    mu_.Await(absl::Condition(&idle));
  }

  void Lose(bool reachable) {
    ExpertPeer::Listener* listener = nullptr;
    {
      absl::MutexLock lock(&mu_);
      reachable_ = reachable;
      if (connected_) {
        // The loss is not told before the description.
        mu_.Await(absl::Condition(&known_));
        listener = listener_;
      }
      known_ = false;
    }
    if (listener == nullptr) return;
    FailAll(absl::UnavailableError("fake: the connection broke"));
    listener->OnLost(absl::UnavailableError("fake: the connection broke"));
  }

  void Release() {
    std::deque<Job> held;
    {
      absl::MutexLock lock(&mu_);
      held = std::move(held_);
      held_.clear();
    }
    for (Job& job : held) {
      job.answer = FakeAnswer::kCompute;
      Answer(job);
    }
  }

  void Describe(const v1::ExpertDescription& description) {
    ExpertPeer::Listener* listener = nullptr;
    {
      absl::MutexLock lock(&mu_);
      description_ = description;
      if (connected_) listener = listener_;
    }
    if (listener != nullptr) listener->OnDescription(description);
  }

  template <typename Condition>
  void WaitFor(const Condition& condition) {
    absl::MutexLock lock(&mu_);
    CHECK(mu_.AwaitWithTimeout(absl::Condition(&condition), kPatience));
  }

  mutable absl::Mutex mu_;
  const bool own_thread_;
  v1::ExpertDescription description_ ABSL_GUARDED_BY(mu_);
  ExpertPeer::Listener* listener_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool reachable_ ABSL_GUARDED_BY(mu_) = true;
  bool connected_ ABSL_GUARDED_BY(mu_) = false;
  bool known_ ABSL_GUARDED_BY(mu_) = false;  // OnDescription has returned
  bool busy_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t free_rows_ ABSL_GUARDED_BY(mu_) = 1000;
  std::deque<FakeAnswer> script_ ABSL_GUARDED_BY(mu_);
  FakeAnswer rest_ ABSL_GUARDED_BY(mu_) = FakeAnswer::kCompute;
  std::deque<Job> queue_ ABSL_GUARDED_BY(mu_);
  std::deque<Job> held_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::ExpertBatch> batches_ ABSL_GUARDED_BY(mu_);
  size_t num_connects_ ABSL_GUARDED_BY(mu_) = 0;

 private:
  void Run() {
    while (true) {
      Job job;
      {
        absl::MutexLock lock(&mu_);
        busy_ = false;
        const auto woken = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
          return stopping_ || !queue_.empty();
        };
        mu_.Await(absl::Condition(&woken));
        if (queue_.empty()) return;
        job = std::move(queue_.front());
        queue_.pop_front();
        busy_ = true;
      }
      Answer(job);
    }
  }

  std::thread thread_;
};

class FakeExpertProcess::Peer final : public ExpertPeer {
 public:
  explicit Peer(std::shared_ptr<State> state) : state_(std::move(state)) {}
  ~Peer() override {
    state_->FailAll(absl::CancelledError("fake: the peer is destroyed"));
  }
  void Connect(Listener* listener) override { state_->Connect(listener); }
  void Send(const ExpertBatch& batch, size_t payload_bytes, WritePayload write,
            OutputCallback done) override {
    std::string hidden_states(payload_bytes, '\0');
    write(hidden_states.data());
    state_->Send(ToProto(batch, hidden_states), std::move(done));
  }
  const char* transport() const override { return "fake"; }

 private:
  const std::shared_ptr<State> state_;
};

FakeExpertProcess::FakeExpertProcess(v1::ExpertDescription description,
                                     bool own_thread)
    : state_(std::make_shared<State>(std::move(description), own_thread)) {}

FakeExpertProcess::~FakeExpertProcess() { state_->Stop(); }

std::unique_ptr<ExpertPeer> FakeExpertProcess::MakePeer() {
  return std::make_unique<Peer>(state_);
}

void FakeExpertProcess::SetReachable(bool reachable) {
  absl::MutexLock lock(&state_->mu_);
  state_->reachable_ = reachable;
}

void FakeExpertProcess::Script(std::vector<FakeAnswer> next, FakeAnswer rest) {
  absl::MutexLock lock(&state_->mu_);
  state_->script_.assign(next.begin(), next.end());
  state_->rest_ = rest;
}

void FakeExpertProcess::SetFreeRows(uint64_t free_rows) {
  absl::MutexLock lock(&state_->mu_);
  state_->free_rows_ = free_rows;
}

void FakeExpertProcess::Describe(const v1::ExpertDescription& description) {
  state_->Describe(description);
}

void FakeExpertProcess::Lose(bool reachable) { state_->Lose(reachable); }

void FakeExpertProcess::Release() { state_->Release(); }

std::vector<v1::ExpertBatch> FakeExpertProcess::batches() const {
  absl::MutexLock lock(&state_->mu_);
  return state_->batches_;
}

size_t FakeExpertProcess::num_held() const {
  absl::MutexLock lock(&state_->mu_);
  return state_->held_.size();
}

size_t FakeExpertProcess::num_connects() const {
  absl::MutexLock lock(&state_->mu_);
  return state_->num_connects_;
}

void FakeExpertProcess::WaitForBatches(size_t count) const {
  state_->WaitFor([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return state_->batches_.size() >= count;
  });
}

void FakeExpertProcess::WaitForConnects(size_t count) const {
  state_->WaitFor([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return state_->num_connects_ >= count;
  });
}

void FakeExpertProcess::WaitUntilKnown() const {
  state_->WaitFor(
      [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return state_->known_; });
}

}  // namespace troupe

// Versions of experts in running processes (docs/versions.md): rolling updates
// under load, canaries, promotion, roll-back, files that are wrong, updates
// that fail half way. What a sequence computes is bytes of one snapshot.
#include <signal.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "cluster/rollout.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "model/file_hash.h"
#include "model/safetensors_writer.h"
#include "tests/fakes/process_cluster.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/mixed_requests.h"
#include "tools/cli/experts_update.h"

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr uint32_t kVocabSize = 4096;

const std::string& DemoDir() {
  static const std::string dir = TROUPE_SOURCE_DIR "/models/demo";
  return dir;
}

// A model with other experts, and the file that holds these alone.
class NewModel {
 public:
  // One bit of every weight of every expert is another one: finite ones stay
  // finite. `bit` makes different models.
  explicit NewModel(int bit) {
    for (const char* name : {"config.json", "generation_config.json",
                             "tokenizer.json", "tokenizer_config.json"}) {
      std::filesystem::copy_file(DemoDir() + "/" + name, dir_.File(name));
    }
    const SafetensorsFile old =
        *SafetensorsFile::Open(DemoDir() + "/model.safetensors");
    std::vector<TensorInfo> experts;
    for (const TensorInfo& tensor : old.tensors()) {
      if (IsExpert(tensor)) experts.push_back(tensor);
    }
    SafetensorsWriter all = *SafetensorsWriter::Create(
        dir_.File("model.safetensors"), old.tensors());
    SafetensorsWriter some = *SafetensorsWriter::Create(file(), experts);
    for (const TensorInfo& tensor : old.tensors()) {
      std::string bytes = *old.Read(tensor);
      if (IsExpert(tensor)) {
        CHECK(tensor.type == SafetensorsType::kBF16);
        for (size_t i = 0; i < bytes.size(); i += 2) {
          bytes[i] = static_cast<char>(bytes[i] ^ (1 << bit));
        }
        CHECK(some.Append(bytes.data(), bytes.size()).ok());
      }
      CHECK(all.Append(bytes.data(), bytes.size()).ok());
    }
    CHECK(all.Finish().ok());
    CHECK(some.Finish().ok());
  }

  const std::string& dir() const { return dir_.path(); }
  std::string file() const { return dir_.File("experts.safetensors"); }

  static bool IsExpert(const TensorInfo& tensor) {
    return absl::StrContains(tensor.name, ".experts.");
  }

 private:
  TempDir dir_;
};

// Requests with ids of their own, since these decide who is a canary.
std::vector<v1::RouterGenerateRequest> Requests() {
  std::vector<v1::RouterGenerateRequest> requests = MixedRequests(kVocabSize);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].set_request_id(absl::StrCat("request-", i));
  }
  return requests;
}

std::vector<std::string> BytesOf(const std::vector<Outcome>& outcomes) {
  std::vector<std::string> bytes;
  for (const Outcome& outcome : outcomes) bytes.push_back(outcome.Bytes());
  return bytes;
}

const v1::RouterUsage& UsageOf(const Outcome& outcome) {
  CHECK(!outcome.responses.empty());
  return outcome.responses.back().usage();
}

class VersionsTest : public testing::Test {
 protected:
  // What both models answer, in processes of their own.
  static void SetUpTestSuite() {
    new_model_ = new NewModel(4);
    old_bytes_ = new std::vector<std::string>(Reference(DemoDir()));
    new_bytes_ = new std::vector<std::string>(Reference(new_model_->dir()));
    for (size_t i = 0; i < old_bytes_->size(); ++i) {
      ASSERT_NE((*old_bytes_)[i], (*new_bytes_)[i]) << i;
    }
  }
  static void TearDownTestSuite() {
    delete new_model_;
    delete old_bytes_;
    delete new_bytes_;
  }
  static std::vector<std::string> Reference(const std::string& dir) {
    ProcessClusterOptions options;
    options.model_dir = dir;
    ProcessCluster cluster(options);
    std::vector<std::string> bytes;
    for (const v1::RouterGenerateRequest& request : Requests()) {
      const Outcome outcome = Generate(cluster.stub(), request);
      CHECK(outcome.status.ok());
      bytes.push_back(outcome.Bytes());
    }
    return bytes;
  }

  void Start(size_t num_replicas = 1, size_t num_routers = 1) {
    ProcessClusterOptions options;
    options.model_dir = DemoDir();
    options.expert_ranges = {"0-3", "4-7"};
    options.num_replicas = num_replicas;
    options.num_routers = num_routers;
    options.expert_flags = {"--label", "v1"};
    cluster_ = std::make_unique<ProcessCluster>(options);
    client_ = std::make_unique<ExpertsClient>(cluster_->expert_addresses());
  }
  ExpertsUpdateOptions Options(const std::string& label = "v2") {
    ExpertsUpdateOptions options;
    options.label = label;
    options.file = new_model_->file();
    options.checksum = *FileHash(options.file);
    options.run_id = absl::StrCat("run", ++num_runs_);
    options.say = [this](const std::string& line) {
      said_ += line + "\n";
      if (on_say_) on_say_(line);
    };
    options.await_routers = [this](uint64_t revision) {
      for (size_t i = 0; i < 1; ++i) {
        while (cluster_->Stats(i).rollout().revision() < revision) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      }
    };
    return options;
  }
  // Calls `begin` when the new versions are loaded and not yet used, and waits
  // until its sequence runs.
  void WhenLoaded(std::function<void()> begin) {
    on_say_ = [this, begin](const std::string& line) {
      if (!absl::StrContains(line, "load version") ||
          !absl::StrContains(line, "done") || begun_) {
        return;
      }
      begun_ = true;
      begin();
      while (cluster_->Stats().running_sequences() == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    };
  }
  std::vector<std::string> GenerateNow(size_t router = 0) {
    return BytesOf(GenerateAll(cluster_->stub(router), Requests()));
  }
  // By label, how many experts all processes have.
  std::map<std::string, size_t> Loaded() {
    std::map<std::string, size_t> loaded;
    const std::vector<ExpertProcess> processes = *client_->List();
    for (const ExpertProcess& process : processes) {
      for (const v1::LoadedExpert& expert : process.list.experts()) {
        ++loaded[expert.version().label()];
      }
    }
    return loaded;
  }

  static NewModel* new_model_;
  static std::vector<std::string>* old_bytes_;
  static std::vector<std::string>* new_bytes_;

  std::unique_ptr<ProcessCluster> cluster_;
  std::unique_ptr<ExpertsClient> client_;
  std::string said_;
  std::function<void(const std::string&)> on_say_;
  bool begun_ = false;
  int num_runs_ = 0;
};
NewModel* VersionsTest::new_model_ = nullptr;
std::vector<std::string>* VersionsTest::old_bytes_ = nullptr;
std::vector<std::string>* VersionsTest::new_bytes_ = nullptr;

// Clients that send the requests again and again, until told to stop.
class Load {
 public:
  struct Done {
    size_t request;
    Outcome outcome;
  };

  Load(ProcessCluster& cluster, size_t num_clients) {
    for (size_t client = 0; client < num_clients; ++client) {
      threads_.emplace_back([this, &cluster, client] {
        const std::vector<v1::RouterGenerateRequest> requests = Requests();
        for (size_t i = client; !stop_; ++i) {
          const size_t which = i % requests.size();
          Outcome outcome = Generate(cluster.stub(), requests[which]);
          absl::MutexLock lock(&mu_);
          done_.push_back({which, std::move(outcome)});
        }
      });
    }
  }
  ~Load() { Stop(); }
  void WaitFor(size_t count) {
    absl::MutexLock lock(&mu_);
    const size_t wanted = done_.size() + count;
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return done_.size() >= wanted;
    };
    mu_.Await(absl::Condition(&enough));
  }
  std::vector<Done> Stop() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    absl::MutexLock lock(&mu_);
    return std::move(done_);
  }

 private:
  std::atomic<bool> stop_{false};
  absl::Mutex mu_;
  std::vector<Done> done_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
};

// Every expert is replaced while clients are served, and back: no request
// fails, and each has the bytes of one model from its begin to its end.
TEST_F(VersionsTest, ARollingUpdateUnderLoad) {
  Start();
  EXPECT_EQ(GenerateNow(), *old_bytes_);
  Load load(*cluster_, 6);
  load.WaitFor(12);
  absl::Status status = UpdateExperts(*client_, Options());
  ASSERT_TRUE(status.ok()) << status << "\n" << said_;
  load.WaitFor(12);
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v2", 48}}));
  status = RollBack(*client_, Options());
  ASSERT_TRUE(status.ok()) << status << "\n" << said_;
  load.WaitFor(12);
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v1", 48}}));
  const std::vector<Load::Done> done = load.Stop();
  size_t num_old = 0;
  size_t num_new = 0;
  for (const Load::Done& one : done) {
    ASSERT_TRUE(one.outcome.status.ok()) << one.outcome.status.error_message();
    const v1::RouterUsage& usage = UsageOf(one.outcome);
    EXPECT_EQ(usage.experts_moved_version(), 0u);
    const std::string bytes = one.outcome.Bytes();
    const bool is_new = absl::EndsWith(usage.snapshot(), ":v2");
    ++(is_new ? num_new : num_old);
    EXPECT_EQ(bytes, (is_new ? *new_bytes_ : *old_bytes_)[one.request]);
  }
  EXPECT_GE(num_old, 12u);
  EXPECT_GE(num_new, 6u);
  EXPECT_EQ(GenerateNow(), *old_bytes_);
  const v1::RouterStats stats = cluster_->Stats();
  EXPECT_EQ(stats.copies_moved_version(), 0u);
  EXPECT_EQ(stats.sequences_moved_version(), 0u);
  EXPECT_EQ(stats.rollout().revision(), 2u);
}

// One expert of one layer after the other: memory for one more. What a
// sequence began with it keeps.
TEST_F(VersionsTest, OneByOneUnderLoad) {
  Start(/*num_replicas=*/2);
  Load load(*cluster_, 4);
  load.WaitFor(4);
  ExpertsUpdateOptions options = Options();
  options.one_by_one = true;
  const absl::Status status = UpdateExperts(*client_, options);
  ASSERT_TRUE(status.ok()) << status << "\n" << said_;
  const std::vector<Load::Done> done = load.Stop();
  std::map<std::pair<size_t, std::string>, std::string> by_snapshot;
  std::set<std::string> snapshots;
  for (const Load::Done& one : done) {
    ASSERT_TRUE(one.outcome.status.ok()) << one.outcome.status.error_message();
    const v1::RouterUsage& usage = UsageOf(one.outcome);
    EXPECT_EQ(usage.experts_moved_version(), 0u);
    snapshots.insert(usage.snapshot());
    // One snapshot, one answer.
    const std::string bytes = one.outcome.Bytes();
    EXPECT_EQ(by_snapshot.try_emplace({one.request, usage.snapshot()}, bytes)
                  .first->second,
              bytes);
  }
  EXPECT_GT(snapshots.size(), 3u);  // also of mixtures
  EXPECT_EQ(GenerateNow(), *new_bytes_);
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v2", 96}}));
}

TEST_F(VersionsTest, ACanaryIsChosenByTheRequestId) {
  Start(/*num_replicas=*/1, /*num_routers=*/2);
  ExpertsUpdateOptions options = Options();
  options.share = 3000;
  absl::Status status = StartCanary(*client_, options);
  ASSERT_TRUE(status.ok()) << status << "\n" << said_;
  const v1::Rollout rollout = cluster_->Stats().rollout();
  while (cluster_->Stats(1).rollout().revision() < rollout.revision()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const auto expect_canaries = [&](uint32_t share) {
    v1::Rollout wanted = rollout;
    wanted.set_canary_share(share);
    size_t num_canaries = 0;
    for (const size_t router : {0, 1, 0}) {
      const std::vector<Outcome> outcomes =
          GenerateAll(cluster_->stub(router), Requests());
      num_canaries = 0;
      for (size_t i = 0; i < outcomes.size(); ++i) {
        const bool is_canary = IsCanary(wanted, absl::StrCat("request-", i));
        num_canaries += is_canary;
        EXPECT_EQ(outcomes[i].Bytes(),
                  (is_canary ? *new_bytes_ : *old_bytes_)[i])
            << "router " << router << " request " << i;
        EXPECT_EQ(UsageOf(outcomes[i]).experts_moved_version(), 0u);
      }
    }
    return num_canaries;
  };
  const size_t few = expect_canaries(3000);
  EXPECT_GT(few, 0u);
  EXPECT_GT(cluster_->Stats().sequences_canary(), 0u);
  EXPECT_NE(cluster_->Stats().canary_snapshot(),
            cluster_->Stats().current_snapshot());
  // A second one has to wait; the share may change.
  EXPECT_THAT(std::string(StartCanary(*client_, Options("v3")).message()),
              HasSubstr("there is a canary already"));
  ExpertsUpdateOptions share = Options();
  share.file.clear();
  share.share = 8000;
  status = StartCanary(*client_, share);
  ASSERT_TRUE(status.ok()) << status;
  while (cluster_->Stats(1).rollout().canary_share() != 8000) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_GT(expect_canaries(8000), few);
  // Everybody, and back: the old ones are loaded again.
  status = PromoteCanary(*client_, Options());
  ASSERT_TRUE(status.ok()) << status << "\n" << said_;
  EXPECT_EQ(GenerateNow(), *new_bytes_);
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v2", 48}}));
  status = RollBack(*client_, Options());
  ASSERT_TRUE(status.ok()) << status << "\n" << said_;
  EXPECT_EQ(GenerateNow(), *old_bytes_);
  // And forth.
  status = RollBack(*client_, Options());
  ASSERT_TRUE(status.ok()) << status << "\n" << said_;
  EXPECT_EQ(GenerateNow(), *new_bytes_);
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v2", 48}}));
}

TEST_F(VersionsTest, ARollBackEndsTheCanary) {
  Start();
  ExpertsUpdateOptions options = Options();
  options.share = kWholeShare;
  ASSERT_TRUE(StartCanary(*client_, options).ok());
  EXPECT_EQ(GenerateNow(), *new_bytes_);
  ASSERT_TRUE(RollBack(*client_, Options()).ok());
  EXPECT_EQ(GenerateNow(), *old_bytes_);
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v1", 48}}));
  EXPECT_TRUE(cluster_->Stats().canary_snapshot().empty());
}

// Some of the experts alone; the others keep their versions.
TEST_F(VersionsTest, AFileMayHoldOneExpert) {
  Start();
  const auto file =
      *SafetensorsFile::Open(new_model_->dir() + "/model.safetensors");
  TempDir dir;
  std::vector<TensorInfo> tensors;
  for (const TensorInfo& tensor : file.tensors()) {
    if (absl::StrContains(tensor.name, "layers.2.") &&
        absl::StrContains(tensor.name, ".experts.5.")) {
      tensors.push_back(tensor);
    }
  }
  ASSERT_THAT(tensors, SizeIs(3));
  SafetensorsWriter writer =
      *SafetensorsWriter::Create(dir.File("one"), tensors);
  for (const TensorInfo& tensor : tensors) {
    const std::string bytes = *file.Read(tensor);
    ASSERT_TRUE(writer.Append(bytes.data(), bytes.size()).ok());
  }
  ASSERT_TRUE(writer.Finish().ok());
  ExpertsUpdateOptions options = Options();
  options.file = dir.File("one");
  options.checksum.clear();
  const absl::Status status = UpdateExperts(*client_, options);
  ASSERT_TRUE(status.ok()) << status << "\n" << said_;
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v1", 47}, {"v2", 1}}));
  const std::vector<std::string> mixed = GenerateNow();
  EXPECT_NE(mixed, *old_bytes_);
  EXPECT_NE(mixed, *new_bytes_);
  EXPECT_EQ(mixed, GenerateNow());
  ASSERT_TRUE(RollBack(*client_, Options()).ok());
  EXPECT_EQ(GenerateNow(), *old_bytes_);
}

// The old version stays until its last sequence has ended.
TEST_F(VersionsTest, AnOldVersionDrains) {
  Start();
  v1::RouterGenerateRequest request = Requests()[2];
  request.set_max_tokens(600);
  request.clear_stop_token_ids();
  const std::string expected = Generate(cluster_->stub(), request).Bytes();
  std::atomic<bool> ended{false};
  Outcome outcome;
  std::thread stream;
  WhenLoaded([&] {
    stream = std::thread([&] {
      outcome = Generate(cluster_->stub(), request);
      ended = true;
    });
  });
  const absl::Status status = UpdateExperts(*client_, Options());
  EXPECT_TRUE(status.ok()) << status << "\n" << said_;
  // The update waited for it.
  while (!ended) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  stream.join();
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.Bytes(), expected);
  EXPECT_EQ(UsageOf(outcome).experts_moved_version(), 0u);
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v2", 48}}));
}

// Who does not end in time goes on with the new version, and says so.
TEST_F(VersionsTest, AfterTheDrainTimeASequenceMoves) {
  Start();
  v1::RouterGenerateRequest request = Requests()[2];
  request.set_max_tokens(900);
  request.clear_stop_token_ids();
  Outcome outcome;
  std::thread stream;
  WhenLoaded([&] {
    stream =
        std::thread([&] { outcome = Generate(cluster_->stub(), request); });
  });
  ExpertsUpdateOptions options = Options();
  options.drain_ms = 1;
  const absl::Status status = UpdateExperts(*client_, options);
  EXPECT_TRUE(status.ok()) << status << "\n" << said_;
  EXPECT_THAT(said_, HasSubstr("drain time was over"));
  stream.join();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.num_tokens(), 900u);
  EXPECT_GT(UsageOf(outcome).experts_moved_version(), 0u);
  EXPECT_TRUE(absl::EndsWith(UsageOf(outcome).snapshot(), ":"));
  const v1::RouterStats stats = cluster_->Stats();
  EXPECT_GT(stats.copies_moved_version(), 0u);
  EXPECT_EQ(stats.sequences_moved_version(), 1u);
  // Nobody finds what the mixture has computed.
  EXPECT_EQ(GenerateNow(), *new_bytes_);
}

// A router that starts anew, or is told by another which snapshot a sequence
// had, decides as the old one did.
TEST_F(VersionsTest, ARouterNeedsNoMemory) {
  Start(/*num_replicas=*/1, /*num_routers=*/2);
  ExpertsUpdateOptions options = Options();
  options.keep_old = true;
  ASSERT_TRUE(UpdateExperts(*client_, options).ok());
  ASSERT_EQ(GenerateNow(0), *new_bytes_);
  while (cluster_->Stats(1).rollout().revision() == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // The snapshot that one of the old ones had, on another router.
  ASSERT_TRUE(RollBack(*client_, options).ok());
  const std::vector<Outcome> old_ones =
      GenerateAll(cluster_->stub(), Requests());
  EXPECT_EQ(BytesOf(old_ones), *old_bytes_);
  ASSERT_TRUE(RollBack(*client_, options).ok());
  while (cluster_->Stats(1).rollout().revision() < 3) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(GenerateNow(1), *new_bytes_);
  for (size_t i = 0; i < old_ones.size(); ++i) {
    v1::RouterGenerateRequest request = Requests()[i];
    if (request.prompt_logprobs() || old_ones[i].num_tokens() < 4) continue;
    // Its first tokens came from the other router.
    std::vector<v1::TokenOutput> tokens;
    for (const auto& response : old_ones[i].responses) {
      tokens.insert(tokens.end(), response.tokens().begin(),
                    response.tokens().end());
    }
    for (size_t t = 0; t < 3; ++t) {
      request.add_generated_token_ids(tokens[t].token_id());
    }
    request.set_snapshot(UsageOf(old_ones[i]).snapshot());
    const Outcome rest = Generate(cluster_->stub(1), request);
    ASSERT_TRUE(rest.status.ok());
    EXPECT_EQ(UsageOf(rest).experts_moved_version(), 0u);
    EXPECT_EQ(UsageOf(rest).snapshot(), UsageOf(old_ones[i]).snapshot());
    size_t t = 3;
    for (const auto& response : rest.responses) {
      for (const v1::TokenOutput& token : response.tokens()) {
        ASSERT_LT(t, tokens.size());
        EXPECT_EQ(token.SerializeAsString(), tokens[t++].SerializeAsString());
      }
    }
    EXPECT_EQ(t, tokens.size());
  }
  // One that is not there any more: it goes on, and says so.
  v1::RouterGenerateRequest request = Requests()[0];
  request.add_generated_token_ids(7);
  request.set_snapshot("0123456789abcdef:v0");
  const Outcome moved = Generate(cluster_->stub(1), request);
  EXPECT_TRUE(moved.status.ok());
  EXPECT_EQ(UsageOf(moved).experts_moved_version(), 1u);
}

// A process of a pair fails after the other has loaded everything.
TEST_F(VersionsTest, AnUpdateThatFailsHalfWayChangesNothing) {
  Start();
  // The second process has something else under that label.
  const NewModel third(3);
  v1::LoadExpertsRequest request;
  request.set_transaction_id("first");
  request.set_label("v2");
  request.set_file(third.file());
  request.set_only_owned(true);
  ASSERT_TRUE(client_->Load(1, request).ok());
  ASSERT_TRUE(client_->Await({1}, "first", nullptr).ok());
  const auto before = Loaded();
  v1::Rollout rollout;
  rollout.set_revision(1);
  rollout.add_labels()->set_label("v1");
  std::vector<std::string> missed;
  ASSERT_TRUE(client_->SetRollout(rollout, &missed).ok());
  const absl::Status status = UpdateExperts(*client_, Options());
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(cluster_->expert_addresses()[1]),
                    HasSubstr("is here with other weights"),
                    HasSubstr("nothing has changed")));
  EXPECT_EQ(Loaded(), before);
  EXPECT_EQ(cluster_->Stats().rollout().revision(), 1u);
  EXPECT_EQ(GenerateNow(), *old_bytes_);
  // The transactions can be asked for.
  const std::vector<ExpertProcess> processes = *client_->List();
  const auto& transactions = processes[1].list.transactions();
  EXPECT_EQ(transactions.rbegin()->state(), v1::Transaction::STATE_FAILED);
  EXPECT_FALSE(transactions.rbegin()->error().empty());
}

// A replica dies in the middle of an update.
TEST_F(VersionsTest, AProcessThatDiesInAnUpdateFailsIt) {
  Start(/*num_replicas=*/2);
  Load load(*cluster_, 3);
  load.WaitFor(3);
  bool killed = false;
  on_say_ = [&](const std::string& line) {
    if (killed || !absl::StrContains(line, "checked")) return;
    killed = true;
    cluster_->expert(3).Kill(SIGKILL);
    cluster_->expert(3).Wait();
  };
  const absl::Status status = UpdateExperts(*client_, Options());
  EXPECT_TRUE(killed);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(cluster_->expert_addresses()[3]));
  on_say_ = nullptr;
  cluster_->StartExpert(3);
  cluster_->WaitUntilReady(0);
  load.WaitFor(3);
  for (const Load::Done& one : load.Stop()) {
    ASSERT_TRUE(one.outcome.status.ok()) << one.outcome.status.error_message();
    EXPECT_EQ(one.outcome.Bytes(), (*old_bytes_)[one.request]);
  }
  // What was left behind is in nobody's way: the same update again.
  const absl::Status again = UpdateExperts(*client_, Options());
  ASSERT_TRUE(again.ok()) << again << "\n" << said_;
  EXPECT_EQ(GenerateNow(), *new_bytes_);
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v2", 96}}));
}

// The command line, with files of every kind of wrong.
TEST_F(VersionsTest, TheCommandLineRefusesWrongFiles) {
  Start();
  TempDir dir;
  const auto run = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(),
                     {TROUPE_BINARY_DIR "/troupe", "experts"});
    arguments.insert(arguments.end(),
                     {"--address", "unix:/nowhere", "--experts",
                      absl::StrJoin(cluster_->expert_addresses(), ",")});
    ChildProcess child(arguments, dir.File("log"));
    const int code = child.Wait();
    return std::pair(code, child.Log());
  };
  const SafetensorsFile good = *SafetensorsFile::Open(new_model_->file());
  const auto write = [&](auto spoil) {
    std::vector<TensorInfo> tensors = good.tensors();
    std::vector<std::string> bytes;
    for (const TensorInfo& tensor : tensors) {
      bytes.push_back(*good.Read(tensor));
    }
    spoil(tensors, bytes);
    SafetensorsWriter writer =
        *SafetensorsWriter::Create(dir.File("new"), tensors);
    for (const std::string& some : bytes) {
      CHECK(writer.Append(some.data(), some.size()).ok());
    }
    CHECK(writer.Finish().ok());
  };
  using Tensors = std::vector<TensorInfo>;
  using Bytes = std::vector<std::string>;
  const struct {
    const char* name;
    std::function<void(Tensors&, Bytes&)> spoil;
    const char* message;
  } cases[] = {
      {"shape",
       [](Tensors& t, Bytes&) { std::swap(t[3].shape[0], t[3].shape[1]); },
       "has shape"},
      {"dtype", [](Tensors& t, Bytes&) { t[5].type = SafetensorsType::kF16; },
       "is F16, config.json asks for BF16"},
      {"unknown expert",
       [](Tensors& t, Bytes&) {
         t[0].name = "model.layers.0.block_sparse_moe.experts.8.w1.weight";
       },
       "experts.8.w1.weight: is not of an expert of this model"},
      {"a tensor of something else",
       [](Tensors& t, Bytes& b) {
         t.push_back(t[0]);
         t.back().name = "model.layers.0.self_attn.q_proj.weight";
         b.push_back(b[0]);
       },
       "model.layers.0.self_attn.q_proj.weight: is not of an expert"},
      {"NaN",
       [](Tensors&, Bytes& b) {
         b[7][2] = '\x80';
         b[7][3] = '\x7f';
         b[7][2] = '\xc0';
       },
       "NaN or infinite"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    write(c.spoil);
    const auto [code, log] = run({"update", dir.File("new"), "--label", "v2"});
    EXPECT_EQ(code, 1);
    EXPECT_THAT(log, AllOf(HasSubstr(dir.File("new")), HasSubstr(c.message)));
  }
  write([](Tensors&, Bytes&) {});
  std::filesystem::resize_file(dir.File("new"), 100000);
  auto [code, log] = run({"update", dir.File("new"), "--label", "v2"});
  EXPECT_EQ(code, 1);
  EXPECT_THAT(log, HasSubstr(dir.File("new")));
  std::tie(code, log) = run({"update", "/nowhere/x", "--label", "v2"});
  EXPECT_EQ(code, 1);
  EXPECT_THAT(log, HasSubstr("/nowhere/x"));
  std::tie(code, log) = run({"update", new_model_->file()});
  EXPECT_EQ(code, 1);
  EXPECT_THAT(log, HasSubstr("--label"));
  // Nothing has changed; and the right one is taken.
  EXPECT_EQ(Loaded(), (std::map<std::string, size_t>{{"v1", 48}}));
  EXPECT_EQ(GenerateNow(), *old_bytes_);
  std::tie(code, log) = run({"update", new_model_->file(), "--label", "v2"});
  EXPECT_EQ(code, 0) << log;
  EXPECT_THAT(log, HasSubstr("update: done"));
  EXPECT_EQ(GenerateNow(), *new_bytes_);
  std::tie(code, log) = run({"list"});
  EXPECT_EQ(code, 0);
  EXPECT_THAT(
      log, AllOf(HasSubstr("revision 1: labels v2"),
                 HasSubstr("experts 0-3 of layers 0-5"), HasSubstr("current")));
  std::tie(code, log) = run({"status"});
  EXPECT_EQ(code, 0);
  EXPECT_THAT(log, AllOf(HasSubstr("FAILED"), HasSubstr("DONE"),
                         HasSubstr("NaN or infinite")));
  std::tie(code, log) = run({"rollback"});
  EXPECT_EQ(code, 0) << log;
  EXPECT_EQ(GenerateNow(), *old_bytes_);
}

}  // namespace
}  // namespace troupe

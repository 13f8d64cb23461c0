// The `troupe` binary as people run it: real processes, a tiny checkpoint.
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/troupe_run.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kModel[] = TROUPE_SOURCE_DIR "/tests/goldens/mixtral_window";

class ClusterTest : public testing::Test {
 protected:
  ClusterTest() {
    // Where the cluster makes its folder for sockets.
    setenv("XDG_RUNTIME_DIR", dir_.path().c_str(), 1);
    address_ = absl::StrCat("unix:", dir_.File("gateway.sock"));
  }

  // Starts a cluster on address_ and waits until it is ready.
  std::unique_ptr<TroupeRun> Serve(std::vector<std::string> flags) {
    std::vector<std::string> arguments = {"serve",  kModel,   "--listen",
                                          address_, "--http", "none"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    auto cluster = std::make_unique<TroupeRun>(arguments);
    EXPECT_THAT(cluster->AwaitLine("ready: gateway on"), HasSubstr(address_));
    return cluster;
  }

  std::string Story(const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = {
        "serve",        kModel, "--listen", address_, "--once",        "Once",
        "--max-tokens", "24",   "--seed",   "7",      "--temperature", "0.8"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    TroupeRun once(arguments);
    EXPECT_EQ(once.Wait(), 0) << once.errors();
    EXPECT_THAT(once.errors(), HasSubstr("seed 7"));
    return once.output();
  }

  // "troupe | expert-1 is ready after 0.1 s (pid 123, ...": of its first life.
  static pid_t FirstPidOf(const std::string& process, TroupeRun& cluster) {
    const size_t at = cluster.errors().find(process + " is ready after");
    CHECK(at != std::string::npos);
    return std::stoi(
        cluster.errors().substr(cluster.errors().find("pid ", at) + 4));
  }

  // Folders for sockets that a cluster has left behind.
  size_t NumRunDirs() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
      count += entry.is_directory();
    }
    return count;
  }

  const TempDir dir_;
  std::string address_;
};

TEST_F(ClusterTest, OnceTellsTheSameStoryHoweverTheExpertsAreSpread) {
  const std::string story = Story({"--experts", "1"});
  EXPECT_THAT(story, StartsWith("Once"));
  EXPECT_GT(story.size(), 10u);
  EXPECT_EQ(Story({"--experts", "2", "--replicas", "2"}), story);
  EXPECT_EQ(Story({"--routers", "2", "--transport", "tcp"}), story);
  EXPECT_EQ(NumRunDirs(), 0u);
}

TEST_F(ClusterTest, AKilledExpertComesBackAndTheClusterDrains) {
  const auto cluster = Serve({"--experts", "2"});
  ASSERT_EQ(NumRunDirs(), 1u);
  const std::vector<std::string> generate = {
      "generate", "Once", "--address",    address_, "--seed",
      "3",        "-q",   "--max-tokens", "16"};
  TroupeRun before(generate);
  EXPECT_EQ(before.Wait(), 0) << before.errors() << cluster->errors();
  ASSERT_EQ(kill(FirstPidOf("expert-1", *cluster), SIGKILL), 0);
  EXPECT_THAT(cluster->AwaitLine("expert-1 died"), HasSubstr("signal 9"));
  cluster->AwaitLine("expert-1 is ready again");
  TroupeRun after(generate);
  EXPECT_EQ(after.Wait(), 0) << after.errors() << cluster->errors();
  EXPECT_EQ(after.output(), before.output());
  cluster->Signal(SIGTERM);
  EXPECT_EQ(cluster->Wait(), 0) << cluster->errors();
  EXPECT_EQ(NumRunDirs(), 0u);
}

// A request meanwhile is answered by the other one.
TEST_F(ClusterTest, ADeadRouterIsStartedAgain) {
  const auto cluster = Serve({"--experts", "1", "--routers", "2"});
  const std::vector<std::string> generate = {
      "generate", "Once", "--address",    address_, "--seed",
      "5",        "-q",   "--max-tokens", "16"};
  TroupeRun before(generate);
  EXPECT_EQ(before.Wait(), 0) << before.errors() << cluster->errors();
  ASSERT_EQ(kill(FirstPidOf("router-0", *cluster), SIGKILL), 0);
  for (int i = 0; i < 4; ++i) {
    TroupeRun meanwhile(generate);
    EXPECT_EQ(meanwhile.Wait(), 0) << meanwhile.errors();
    EXPECT_EQ(meanwhile.output(), before.output());
  }
  cluster->AwaitLine("router-0 is ready again");
  TroupeRun stats({"stats", "--address", address_});
  EXPECT_EQ(stats.Wait(), 0) << stats.errors();
  EXPECT_THAT(stats.output(), HasSubstr("router-1"));
  EXPECT_THAT(stats.output(), HasSubstr("streams moved"));
  cluster->Signal(SIGTERM);
  EXPECT_EQ(cluster->Wait(), 0) << cluster->errors();
}

TEST_F(ClusterTest, KeysAreMadeDemandedAndRevoked) {
  const std::string keys = dir_.File("keys.json");
  const std::string key_file = dir_.File("alice.key");
  TroupeRun add({"keys", "add", "alice", "--file", keys});
  ASSERT_EQ(add.Wait(), 0) << add.errors();
  const std::string secret = add.output().substr(0, add.output().size() - 1);
  ASSERT_THAT(secret, StartsWith("trp-"));
  WriteFile(key_file, add.output());
  const auto cluster = Serve({"--experts", "1", "--api-keys", keys});
  std::vector<std::string> generate = {
      "generate", "Once", "--address", address_, "-q", "--max-tokens", "4"};
  TroupeRun without(generate);
  EXPECT_EQ(without.Wait(), 1);
  EXPECT_THAT(without.errors(), HasSubstr("--api-key-file"));
  generate.insert(generate.end(), {"--api-key-file", key_file});
  TroupeRun with(generate);
  EXPECT_EQ(with.Wait(), 0) << with.errors();
  // Statistics are for administrators.
  TroupeRun stats({"stats", "--address", address_, "--api-key-file", key_file});
  EXPECT_EQ(stats.Wait(), 1);
  EXPECT_THAT(stats.errors(), HasSubstr("role"));
  TroupeRun list({"keys", "list", "--file", keys});
  EXPECT_EQ(list.Wait(), 0) << list.errors();
  EXPECT_THAT(list.output(), HasSubstr("alice"));
  TroupeRun revoke({"keys", "revoke", "alice", "--file", keys});
  EXPECT_EQ(revoke.Wait(), 0) << revoke.errors();
  while (true) {
    TroupeRun again(generate);
    if (again.Wait() == 0) continue;  // not yet looked at
    EXPECT_THAT(again.errors(), HasSubstr("is revoked"));
    break;
  }
  cluster->Signal(SIGTERM);
  EXPECT_EQ(cluster->Wait(), 0) << cluster->errors();
  // The secret is in no log and no list.
  for (const std::string& text :
       {cluster->errors(), list.output(), ReadFile(keys)}) {
    EXPECT_EQ(text.find(secret), std::string::npos);
  }
}

TEST_F(ClusterTest, ASecondInterruptEndsAtOnce) {
  const auto cluster = Serve({"--experts", "1"});
  // One that does not end by itself.
  const pid_t pid = FirstPidOf("router-0", *cluster);
  ASSERT_EQ(kill(pid, SIGSTOP), 0);
  cluster->Signal(SIGINT);
  cluster->AwaitLine("draining");
  cluster->Signal(SIGINT);
  EXPECT_EQ(cluster->Wait(), 130) << cluster->errors();
  EXPECT_EQ(NumRunDirs(), 0u);
}

// The client gets the cluster's word, not the time-out of its own clock.
TEST_F(ClusterTest, AStoppedExpertIsNamedBeforeTheDeadline) {
  const auto cluster = Serve({"--experts", "2"});
  const pid_t pid = FirstPidOf("expert-1", *cluster);
  ASSERT_EQ(kill(pid, SIGSTOP), 0);
  TroupeRun stalled({"generate", "Once", "--address", address_, "-q",
                     "--timeout", "4", "--max-tokens", "16"});
  EXPECT_EQ(stalled.Wait(), 1);
  ASSERT_EQ(kill(pid, SIGCONT), 0);
  EXPECT_THAT(stalled.errors(),
              testing::ContainsRegex("expert [4-6] of layer [0-9]"));
  TroupeRun after(
      {"generate", "Once", "--address", address_, "-q", "--max-tokens", "16"});
  EXPECT_EQ(after.Wait(), 0) << after.errors() << cluster->errors();
}

TEST_F(ClusterTest, StatsAndBenchOfARunningCluster) {
  const auto cluster = Serve({"--experts", "2"});
  TroupeRun bench({"bench", "--address", address_, "--requests", "6",
                   "--concurrency", "3", "--prompt-tokens", "8", "--max-tokens",
                   "8", "--json"});
  EXPECT_EQ(bench.Wait(), 0) << bench.errors();
  const auto report = nlohmann::json::parse(bench.output());
  EXPECT_EQ(report["requests"], 6);
  EXPECT_EQ(report["failures"], 0);
  EXPECT_EQ(report["output_tokens"], 48);
  EXPECT_EQ(report["prompt_tokens"], 48);
  EXPECT_GT(report["ttft_ms"]["p50"], 0);

  TroupeRun stats({"stats", "--address", address_, "--json"});
  EXPECT_EQ(stats.Wait(), 0) << stats.errors();
  const auto json = nlohmann::json::parse(stats.output());
  EXPECT_EQ(json["gateway"]["requests_ok"], "7") << "one is the warm-up";
  EXPECT_EQ(json["routers"].size(), 1u);
  EXPECT_EQ(json["experts"].size(), 2u);
  EXPECT_EQ(json["routers"][0]["copies_dropped"], "0");

  TroupeRun text({"stats", "--address", address_});
  EXPECT_EQ(text.Wait(), 0);
  EXPECT_THAT(text.output(), HasSubstr("layer   0"));
  EXPECT_THAT(text.output(), HasSubstr("expert-1"));
  EXPECT_THAT(text.output(), testing::Not(HasSubstr("\x1b")));
  cluster->Signal(SIGINT);
  EXPECT_EQ(cluster->Wait(), 0) << cluster->errors();
}

// Experts go to other processes while the cluster serves, and nobody can tell
// from the text.
TEST_F(ClusterTest, ExpertsArePlannedAndMoved) {
  const auto cluster = Serve({"--experts", "3"});
  const std::vector<std::string> generate = {
      "generate", "Once", "--address",    address_, "--seed",
      "3",        "-q",   "--max-tokens", "32"};
  TroupeRun before(generate);
  ASSERT_EQ(before.Wait(), 0) << before.errors() << cluster->errors();
  TroupeRun load({"bench", "--address", address_, "--requests", "8",
                  "--concurrency", "4", "--json"});
  ASSERT_EQ(load.Wait(), 0) << load.errors();

  const auto run = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "experts");
    arguments.insert(arguments.end(), {"--address", address_, "--min-gain",
                                       "0.5", "--spare", "100"});
    auto command = std::make_unique<TroupeRun>(arguments);
    EXPECT_EQ(command->Wait(), 0) << command->errors() << cluster->errors();
    return command;
  };
  const auto plan = nlohmann::json::parse(run({"plan", "--json"})->output());
  ASSERT_FALSE(plan["phases"].empty()) << "nothing to test: " << plan;
  EXPECT_FALSE(plan["mandatory"]);
  EXPECT_LT(plan["after"]["imbalance"], plan["before"]["imbalance"]);
  EXPECT_THAT(run({"plan"})->output(), HasSubstr("phase 1"));

  // While it is under load.
  TroupeRun busy({"bench", "--address", address_, "--requests", "24",
                  "--concurrency", "4", "--json"});
  EXPECT_THAT(run({"apply"})->errors(), HasSubstr("done: "));
  EXPECT_EQ(busy.Wait(), 0) << busy.errors();
  EXPECT_EQ(nlohmann::json::parse(busy.output())["failures"], 0);
  TroupeRun moved(generate);
  EXPECT_EQ(moved.Wait(), 0) << moved.errors() << cluster->errors();
  EXPECT_EQ(moved.output(), before.output());

  // A process is emptied, and then it is not missed.
  const auto emptied = run({"apply", "--without", "expert-2"});
  EXPECT_THAT(emptied->errors(), HasSubstr("has to change"));
  const auto rest = nlohmann::json::parse(
      run({"plan", "--json", "--without", "expert-2"})->output());
  EXPECT_FALSE(rest["mandatory"]) << rest;
  for (const auto& process : rest["processes"]) {
    if (process["name"] == "expert-2") {
      EXPECT_EQ(process["experts"], 0);
    } else {
      EXPECT_GT(process["experts"], 0);
    }
  }
  TroupeRun after(generate);
  EXPECT_EQ(after.Wait(), 0) << after.errors() << cluster->errors();
  EXPECT_EQ(after.output(), before.output());
}

TEST_F(ClusterTest, TheBalancerReportsToTheGateway) {
  const auto cluster = Serve({"--experts", "2"});
  TroupeRun balancer({"experts", "balance", "--address", address_, "--every",
                      "200ms", "--name", "tester"});
  EXPECT_THAT(balancer.AwaitLine("run 2: "), HasSubstr("too little load"));
  TroupeRun stats({"stats", "--address", address_, "--json"});
  EXPECT_EQ(stats.Wait(), 0) << stats.errors();
  const auto json = nlohmann::json::parse(stats.output());
  EXPECT_EQ(json["balancer"]["report"]["name"], "tester");
  EXPECT_EQ(json["balancer"]["report"]["verdict"], "too little load");
  EXPECT_EQ(json["balancer"]["overdue"], false);
  EXPECT_EQ(json["expert_groups"].size(), 2u);
  EXPECT_EQ(json["expert_groups"][0]["ready"], 1);
  balancer.Signal(SIGTERM);
  EXPECT_EQ(balancer.Wait(), 0);
}

TEST_F(ClusterTest, ABrokenCheckpointStartsNothing) {
  const std::string model = dir_.File("model");
  std::filesystem::copy(kModel, model);
  std::filesystem::resize_file(
      model + "/model.safetensors",
      std::filesystem::file_size(model + "/model.safetensors") / 2);
  TroupeRun serve({"serve", model, "--listen", address_, "--http", "none"});
  EXPECT_EQ(serve.Wait(), 1);
  EXPECT_THAT(serve.errors(), HasSubstr("failed at start-up"));
  EXPECT_THAT(serve.errors(), HasSubstr("model.safetensors"));
  EXPECT_EQ(NumRunDirs(), 1u) << "the model alone";
}

TEST_F(ClusterTest, AnAddressInUseStartsNothing) {
  const auto cluster = Serve({"--experts", "1"});
  TroupeRun second({"serve", kModel, "--listen", address_, "--http", "none"});
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.errors(), HasSubstr("in use"));
  EXPECT_EQ(NumRunDirs(), 1u);
}

TEST_F(ClusterTest, WrongCommandLines) {
  TroupeRun unknown({"sevre"});
  EXPECT_EQ(unknown.Wait(), 2);
  EXPECT_THAT(unknown.errors(), HasSubstr("did you mean \"serve\"?"));
  TroupeRun flag({"generate", "x", "--temperature", "-1"});
  EXPECT_EQ(flag.Wait(), 2);
  EXPECT_THAT(flag.errors(), HasSubstr("--temperature"));
  TroupeRun nobody({"generate", "x", "--address", address_});
  EXPECT_EQ(nobody.Wait(), 1);
  EXPECT_THAT(nobody.errors(), HasSubstr("troupe serve"));
}

TEST_F(ClusterTest, EveryCommandHasExamples) {
  for (const char* command : {"serve", "generate", "chat", "stats", "bench",
                              "inspect", "make-model"}) {
    TroupeRun help({command, "--help"});
    EXPECT_EQ(help.Wait(), 0);
    EXPECT_THAT(help.output(), HasSubstr("Example"));
    EXPECT_THAT(help.output(), HasSubstr(absl::StrCat("troupe ", command)));
  }
}

}  // namespace
}  // namespace troupe

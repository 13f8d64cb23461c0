#include "tools/cli/serve_plan.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/did_you_mean.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<std::string> UnixAddress(const std::string& name) {
  return absl::StrCat("unix:/run/", name, ".sock");
}

ServeOptions Options() {
  ServeOptions options;
  options.model_dir = "models/demo";
  options.binary_dir = "/bin";
  options.run_dir = "/run";
  return options;
}

// The value after a flag; empty when the flag is not there.
std::string Value(const ProcessSpec& process, const std::string& flag) {
  const auto& arguments = process.arguments;
  const auto at = std::find(arguments.begin(), arguments.end(), flag);
  return at == arguments.end() || at + 1 == arguments.end() ? "" : *(at + 1);
}

std::vector<std::string> Names(const std::vector<ProcessSpec>& processes) {
  std::vector<std::string> names;
  for (const ProcessSpec& process : processes) names.push_back(process.name);
  return names;
}

TEST(PlanProcessesTest, TheDefaultCluster) {
  const auto plan = PlanProcesses(Options(), 8, UnixAddress);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Names(*plan), ElementsAre("expert-0", "expert-1", "expert-2",
                                        "expert-3", "router-0", "gateway"));
  const ProcessSpec& expert = (*plan)[1];
  EXPECT_EQ(expert.arguments[0], "/bin/troupe-expert");
  EXPECT_EQ(expert.arguments[1], "models/demo");
  EXPECT_EQ(Value(expert, "--experts"), "2-3");
  EXPECT_EQ(Value(expert, "--listen"), "unix:/run/expert-1.sock");
  EXPECT_EQ(expert.address, "unix:/run/expert-1.sock");
  EXPECT_EQ(Value((*plan)[4], "--experts"),
            "unix:/run/expert-0.sock,unix:/run/expert-1.sock,"
            "unix:/run/expert-2.sock,unix:/run/expert-3.sock");
  const ProcessSpec& gateway = plan->back();
  EXPECT_EQ(Value(gateway, "--routers"), "unix:/run/router-0.sock");
  EXPECT_EQ(Value(gateway, "--listen"), "127.0.0.1:7070");
  EXPECT_EQ(gateway.address, "unix:/run/gateway.sock");
  EXPECT_THAT(gateway.arguments, testing::Contains(gateway.address));
  for (const ProcessSpec& process : *plan) {
    EXPECT_THAT(process.arguments, testing::Contains("--die-with-parent"));
  }
}

TEST(PlanProcessesTest, EveryProcessGetsTheCertificateOfItsRole) {
  ServeOptions options = Options();
  options.certs_dir = "/certs";
  options.require_client_certs = true;
  const auto plan = PlanProcesses(options, 8, UnixAddress);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(Value((*plan)[0], "--tls-cert"), "/certs/expert.pem");
  EXPECT_EQ(Value((*plan)[0], "--tls-key"), "/certs/expert.key");
  EXPECT_EQ(Value((*plan)[0], "--tls-ca"), "/certs/ca.pem");
  EXPECT_EQ(Value((*plan)[4], "--tls-cert"), "/certs/router.pem");
  EXPECT_EQ(Value(plan->back(), "--tls-key"), "/certs/gateway.key");
  EXPECT_THAT(plan->back().arguments,
              testing::Contains("--require-client-certs"));
  EXPECT_THAT(plan->back().arguments,
              testing::Not(testing::Contains("--allow-plaintext")));
}

TEST(PlanProcessesTest, ReplicasOwnTheSameExperts) {
  ServeOptions options = Options();
  options.num_expert_processes = 2;
  options.replicas = 2;
  options.num_routers = 2;
  const auto plan = PlanProcesses(options, 8, UnixAddress);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Names(*plan),
              ElementsAre("expert-0.0", "expert-0.1", "expert-1.0",
                          "expert-1.1", "router-0", "router-1", "gateway"));
  EXPECT_EQ(Value((*plan)[0], "--experts"), "0-3");
  EXPECT_EQ(Value((*plan)[1], "--experts"), "0-3");
  EXPECT_EQ(Value((*plan)[3], "--experts"), "4-7");
  EXPECT_EQ(Value(plan->back(), "--routers"),
            "unix:/run/router-0.sock,unix:/run/router-1.sock");
}

TEST(PlanProcessesTest, ADenseModelHasNoExpertProcesses) {
  const auto plan = PlanProcesses(Options(), 0, UnixAddress);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Names(*plan), ElementsAre("router-0", "gateway"));
  EXPECT_EQ(Value((*plan)[0], "--experts"), "");
  ServeOptions options = Options();
  options.num_expert_processes = 2;
  EXPECT_THAT(
      std::string(PlanProcesses(options, 0, UnixAddress).status().message()),
      HasSubstr("dense"));
}

TEST(PlanProcessesTest, FewExpertsHaveAProcessEach) {
  const auto plan = PlanProcesses(Options(), 2, UnixAddress);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->size(), 4u);
}

TEST(PlanProcessesTest, TooManyProcessesAreNamed) {
  for (const int wanted : {0, 9}) {
    ServeOptions options = Options();
    options.num_expert_processes = wanted;
    const absl::Status status = PlanProcesses(options, 8, UnixAddress).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat("--experts is ", wanted)));
    EXPECT_THAT(std::string(status.message()), HasSubstr("8"));
  }
}

TEST(PlanProcessesTest, LimitsAreHandedOnOnlyWhenGiven) {
  ServeOptions options = Options();
  const auto plain = PlanProcesses(options, 8, UnixAddress);
  EXPECT_EQ(Value((*plain)[4], "--kv-blocks"), "");
  EXPECT_THAT((*plain)[4].arguments,
              testing::Not(testing::Contains("--no-prefix-cache")));
  EXPECT_EQ(Value((*plain)[4], "--kv-dtype"), "");
  options.no_prefix_cache = true;
  options.kv_dtype = "bfloat16";
  options.kv_blocks = 12;
  options.queue_rows = 34;
  options.hop_ring_kb = 128;
  options.hop = "shm";
  options.wire_dtype = "bfloat16";
  options.capacity_factor = "1.5";
  options.refuse = "weight";
  options.fallback = "wait,drop";
  options.max_requests = 56;
  options.threads = 3;
  const auto plan = PlanProcesses(options, 8, UnixAddress);
  EXPECT_EQ(Value((*plan)[0], "--queue-rows"), "34");
  EXPECT_EQ(Value((*plan)[0], "--hop-ring-kb"), "128");
  EXPECT_EQ(Value((*plan)[0], "--threads"), "3");
  EXPECT_EQ(Value((*plan)[4], "--kv-blocks"), "12");
  EXPECT_EQ(Value((*plan)[4], "--threads"), "3");
  EXPECT_THAT((*plan)[4].arguments, testing::Contains("--no-prefix-cache"));
  EXPECT_EQ(Value((*plan)[4], "--kv-dtype"), "bfloat16");
  EXPECT_EQ(Value((*plan)[4], "--capacity-factor"), "1.5");
  EXPECT_EQ(Value((*plan)[4], "--refuse"), "weight");
  EXPECT_EQ(Value((*plan)[4], "--fallback"), "wait,drop");
  EXPECT_EQ(Value((*plan)[4], "--hop"), "shm");
  EXPECT_EQ(Value((*plan)[4], "--wire-dtype"), "bfloat16");
  EXPECT_EQ(Value((*plan)[5], "--max-requests"), "56");
}

TEST(DidYouMeanTest, NearestOfTheNames) {
  const std::vector<std::string> names = {
      "serve", "generate", "chat", "stats", "bench", "inspect", "make-model"};
  EXPECT_EQ(DidYouMean("server", names), "serve");
  EXPECT_EQ(DidYouMean("genrate", names), "generate");
  EXPECT_EQ(DidYouMean("stat", names), "stats");
  EXPECT_EQ(DidYouMean("makemodel", names), "make-model");
  EXPECT_EQ(DidYouMean("hcat", names), "chat");
  EXPECT_EQ(DidYouMean("frobnicate", names), "");
  EXPECT_EQ(DidYouMean("x", names), "");
}

TEST(PlanProcessesTest, OpsGivesEveryProcessAPortOfItsOwn) {
  ServeOptions options = Options();
  for (const bool ops : {false, true}) {
    options.ops = ops;
    const auto plan = PlanProcesses(options, 8, UnixAddress);
    ASSERT_TRUE(plan.ok()) << plan.status();
    for (const ProcessSpec& process : *plan) {
      EXPECT_EQ(Value(process, "--ops-listen"), ops ? "127.0.0.1:0" : "")
          << process.name;
    }
  }
}

TEST(EditDistanceTest, Basics) {
  EXPECT_EQ(EditDistance("", ""), 0u);
  EXPECT_EQ(EditDistance("abc", ""), 3u);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3u);
  EXPECT_EQ(EditDistance("ab", "ba"), 1u);
}

TEST(TerminalTest, NumbersForPeople) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1.0 kB");
  EXPECT_EQ(FormatBytes(1536000), "1.5 MB");
  EXPECT_EQ(FormatBytes(999.9e6), "1.0 GB");
  EXPECT_EQ(FormatBytes(12.34e9), "12 GB");
  EXPECT_EQ(FormatCount(1234), "1.2k");
  EXPECT_EQ(FormatCount(35e6), "35M");
}

TEST(TerminalTest, ModelsCannotSteerTheTerminal) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(WithoutControls("a\tb\n\xC3\xBC"), "a\tb\n\xC3\xBC");
  EXPECT_EQ(WithoutControls("\x1b[2Jx\r"), absl::StrCat(r, "[2Jx", r));
  EXPECT_EQ(WithoutControls("\xC2\x9B"
                            "2J"),
            absl::StrCat(r, "2J"));
  EXPECT_EQ(WithoutControls("\xC2\xA0"), "\xC2\xA0");
}

}  // namespace
}  // namespace troupe

// The supervisor with shell scripts as children: what does not need health
// answers; whole clusters are in tests/integration.
#include "tools/cli/supervisor.h"

#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/rpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

class SupervisorTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int number : {SIGINT, SIGTERM, SIGCHLD}) {
      sigaddset(&signals, number);
    }
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  }

  // A child that runs a script; its health is that of `address`.
  static ProcessSpec Shell(ProcessTier tier, const std::string& name,
                           const std::string& address,
                           const std::string& script) {
    return {tier, name, address, {"/bin/sh", "-c", script}};
  }

  SupervisorOptions Options() {
    SupervisorOptions options;
    options.log = [this](const std::string& line) {
      absl::MutexLock lock(&mu_);
      lines_.push_back(line);
    };
    return options;
  }

  std::vector<std::string> lines() {
    absl::MutexLock lock(&mu_);
    return lines_;
  }

  void AwaitLine(const std::string& part) {
    const auto found = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      for (const std::string& line : lines_) {
        if (line.find(part) != std::string::npos) return true;
      }
      return false;
    };
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&found));
  }

  // A server in this process whose health says SERVING.
  std::unique_ptr<RpcServer> HealthyServer() {
    RpcServerOptions options;
    options.listen = {absl::StrCat("unix:", dir_.File("healthy.sock"))};
    auto server = RpcServer::Start(options, {});
    EXPECT_TRUE(server.ok()) << server.status();
    (*server)->SetServing(true);
    return *std::move(server);
  }

  const TempDir dir_;
  absl::Mutex mu_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mu_);
};

TEST_F(SupervisorTest, AChildThatCannotStartStopsTheOthers) {
  Supervisor supervisor(
      {Shell(ProcessTier::kExpert, "sleeper", "unix:/nowhere",
             "trap 'echo stopped; exit 0' TERM; echo up; "
             "while :; do sleep 0.05; done"),
       Shell(ProcessTier::kRouter, "broken", "unix:/nowhere",
             "echo model.safetensors: tensor x is cut >&2; exit 3")},
      Options());
  const absl::Status status = supervisor.Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("broken"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("exit status 3"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("tensor x is cut"));
  EXPECT_THAT(lines(), Contains("broken | model.safetensors: tensor x is cut"));
}

TEST_F(SupervisorTest, AMissingBinaryIsNamed) {
  Supervisor supervisor(
      {{ProcessTier::kExpert, "e", "unix:/nowhere", {"/no/such/binary"}}},
      Options());
  EXPECT_THAT(std::string(supervisor.Start().message()),
              HasSubstr("/no/such/binary"));
}

TEST_F(SupervisorTest, StopWhileStartingIsCancelled) {
  Supervisor supervisor(
      {Shell(ProcessTier::kExpert, "e", "unix:/nowhere", "exec sleep 1000")},
      Options());
  supervisor.RequestStop();
  EXPECT_EQ(supervisor.Start().code(), absl::StatusCode::kCancelled);
}

TEST_F(SupervisorTest, ADeadChildIsReportedAndStartedAgain) {
  const auto server = HealthyServer();
  // The first life waits for the word to die, the second one stays.
  const std::string script =
      absl::StrCat("if mkdir ", dir_.File("lived"),
                   " 2>/dev/null; then while [ ! -e ", dir_.File("die"),
                   " ]; do sleep 0.01; done; kill -9 $$; fi; "
                   "echo second life; exec sleep 1000");
  Supervisor supervisor(
      {Shell(ProcessTier::kExpert, "mortal", server->addresses()[0], script)},
      Options());
  ASSERT_EQ(supervisor.Start(), absl::OkStatus());
  std::ofstream(dir_.File("die")) << "now";
  std::thread waiter([&] {
    AwaitLine("second life");
    AwaitLine("is ready again");
    supervisor.RequestStop();
  });
  supervisor.Supervise();
  waiter.join();
  EXPECT_THAT(lines(), Contains(HasSubstr("mortal died with signal 9")));
  EXPECT_THAT(lines(), Contains(HasSubstr("starting it again in 0.1 s")));
}

TEST_F(SupervisorTest, DrainGoesFromGatewayToExperts) {
  const auto server = HealthyServer();
  const auto script = [](const std::string& name) {
    return absl::StrCat("trap 'echo ", name, " drained; exit 0' TERM; echo ",
                        name, " up; while :; do sleep 0.02; done");
  };
  const std::string& address = server->addresses()[0];
  Supervisor supervisor(
      {Shell(ProcessTier::kExpert, "e", address, script("e")),
       Shell(ProcessTier::kRouter, "r", address, script("r")),
       Shell(ProcessTier::kGateway, "g", address, script("g"))},
      Options());
  ASSERT_EQ(supervisor.Start(), absl::OkStatus());
  // Their traps are set once they have said so.
  std::thread waiter([&] {
    for (const char* name : {"e", "r", "g"}) {
      AwaitLine(absl::StrCat(name, " up"));
    }
    supervisor.RequestStop();
  });
  supervisor.Supervise();
  waiter.join();
  EXPECT_EQ(supervisor.Drain(), absl::OkStatus());
  std::vector<std::string> order;
  for (const std::string& line : lines()) {
    if (line.find("drained") != std::string::npos) order.push_back(line);
  }
  EXPECT_THAT(order, testing::ElementsAre("g | g drained", "r | r drained",
                                          "e | e drained"));
}

TEST_F(SupervisorTest, WhatDoesNotDrainIsKilled) {
  const auto server = HealthyServer();
  SupervisorOptions options = Options();
  options.kill_after_seconds = 0;
  Supervisor supervisor(
      {Shell(ProcessTier::kExpert, "stubborn", server->addresses()[0],
             "trap '' TERM; echo up; exec sleep 1000")},
      options);
  ASSERT_EQ(supervisor.Start(), absl::OkStatus());
  std::thread waiter([&] {
    AwaitLine("up");
    supervisor.RequestStop();
  });
  supervisor.Supervise();
  waiter.join();
  EXPECT_EQ(supervisor.Drain().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(SupervisorTest, ASecondSignalEndsTheDrainAtOnce) {
  const auto server = HealthyServer();
  Supervisor supervisor(
      {Shell(ProcessTier::kExpert, "stubborn", server->addresses()[0],
             "trap 'echo told' TERM; echo up; while :; do sleep 0.02; done")},
      Options());
  ASSERT_EQ(supervisor.Start(), absl::OkStatus());
  std::thread interrupting([&] {
    AwaitLine("stubborn | up");
    supervisor.RequestStop();
    AwaitLine("stubborn | told");
    kill(getpid(), SIGINT);
  });
  supervisor.Supervise();
  EXPECT_EQ(supervisor.Drain().code(), absl::StatusCode::kCancelled);
  interrupting.join();
  EXPECT_THAT(lines(), Contains(HasSubstr("second signal: killing all")));
}

TEST_F(SupervisorTest, LinesCanBeTaken) {
  SupervisorOptions options = Options();
  std::string taken;
  options.take_line = [&](const std::string& process, const std::string& line) {
    if (line != "for you") return false;
    taken = absl::StrCat(process, ": ", line);
    return true;
  };
  Supervisor supervisor({Shell(ProcessTier::kGateway, "g", "unix:/nowhere",
                               "echo for you; echo for all; exit 1")},
                        options);
  EXPECT_FALSE(supervisor.Start().ok());
  EXPECT_EQ(taken, "g: for you");
  EXPECT_THAT(lines(), Contains("g | for all"));
}

}  // namespace
}  // namespace troupe

// How a process ends, tried on children that are forked before any thread.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "common/rpc/rpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

// A child that runs `body` with its standard error in a pipe.
class Child {
 public:
  explicit Child(const std::function<void()>& body) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      close(ends[1]);
      alarm(30);
      body();
      _exit(0);
    }
    close(ends[1]);
    error_ = ends[0];
  }
  ~Child() { close(error_); }

  void Signal(int number) { EXPECT_EQ(kill(pid_, number), 0); }
  // Blocks until the child has written a line.
  std::string ReadLine() {
    std::string line;
    char c = 0;
    while (read(error_, &c, 1) == 1 && c != '\n') line.push_back(c);
    return line;
  }
  int WaitFor(int options) {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, options), pid_);
    return status;
  }

 private:
  pid_t pid_ = 0;
  int error_ = -1;
};

void Say(const char* text) {
  EXPECT_EQ(write(STDERR_FILENO, text, std::string(text).size()),
            static_cast<ssize_t>(std::string(text).size()));
}

void WaitForEver() {
  while (true) pause();
}

TEST(TerminationTest, ASignalIsReturned) {
  for (const int number : {SIGTERM, SIGINT}) {
    Child child([] {
      BlockTerminationSignals();
      Say("ready\n");
      _exit(WaitForTermination(milliseconds(30000)));
    });
    EXPECT_EQ(child.ReadLine(), "ready");
    child.Signal(number);
    const int status = child.WaitFor(0);
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), number);
  }
}

TEST(TerminationTest, ASignalBeforeTheWaitIsNotLost) {
  Child child([] {
    BlockTerminationSignals();
    if (!CheckTermination().ok()) _exit(99);
    raise(SIGTERM);
    if (!absl::IsCancelled(CheckTermination())) _exit(98);
    // Asking does not take it.
    _exit(WaitForTermination(milliseconds(30000)));
  });
  EXPECT_EQ(WEXITSTATUS(child.WaitFor(0)), SIGTERM);
}

TEST(TerminationTest, ASecondSignalEndsAtOnce) {
  Child child([] {
    BlockTerminationSignals();
    raise(SIGTERM);
    WaitForTermination(milliseconds(30000));
    Say("draining\n");
    WaitForEver();
  });
  EXPECT_EQ(child.ReadLine(), "draining");
  child.Signal(SIGINT);
  EXPECT_THAT(child.ReadLine(), HasSubstr("second signal"));
  EXPECT_EQ(WEXITSTATUS(child.WaitFor(0)), 1);
}

TEST(TerminationTest, TheDrainTimeEnds) {
  Child child([] {
    BlockTerminationSignals();
    raise(SIGTERM);
    WaitForTermination(milliseconds(10));
    WaitForEver();
  });
  EXPECT_THAT(child.ReadLine(), HasSubstr("drain time is over"));
  EXPECT_EQ(WEXITSTATUS(child.WaitFor(0)), 1);
}

// Being stopped and continued interrupts the system call, not the drain.
TEST(TerminationTest, StoppingAndContinuingDoesNotEndTheDrain) {
  Child child([] {
    BlockTerminationSignals();
    raise(SIGTERM);
    WaitForTermination(milliseconds(30000));
    Say("draining\n");
    WaitForEver();
  });
  EXPECT_EQ(child.ReadLine(), "draining");
  for (int i = 0; i < 20; ++i) {
    child.Signal(SIGSTOP);
    ASSERT_TRUE(WIFSTOPPED(child.WaitFor(WUNTRACED)));
    child.Signal(SIGCONT);
    ASSERT_TRUE(WIFCONTINUED(child.WaitFor(WCONTINUED)));
  }
  child.Signal(SIGTERM);
  EXPECT_THAT(child.ReadLine(), HasSubstr("second signal"));
  EXPECT_EQ(WEXITSTATUS(child.WaitFor(0)), 1);
}

}  // namespace
}  // namespace troupe

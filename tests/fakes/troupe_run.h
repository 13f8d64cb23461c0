// The `troupe` binary as people run it, for tests.
#ifndef TROUPE_TESTS_FAKES_TROUPE_RUN_H_
#define TROUPE_TESTS_FAKES_TROUPE_RUN_H_

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "tests/fakes/temp_dir.h"

extern char** environ;

namespace troupe {

// One run of the binary. Its standard error is read line by line, its standard
// output when it has ended. Killed when the test leaves it running.
class TroupeRun {
 public:
  explicit TroupeRun(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), TROUPE_BINARY_DIR "/troupe");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    int fds[2];
    EXPECT_EQ(pipe2(fds, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null",
                                     O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO,
                                     dir_.File("out").c_str(),
                                     O_CREAT | O_WRONLY | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, fds[1], STDERR_FILENO);
    EXPECT_EQ(
        posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ),
        0);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    errors_ = fdopen(fds[0], "r");
  }
  ~TroupeRun() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    fclose(errors_);
  }

  // The next line of standard error with that text; empty when it ended.
  std::string AwaitLine(const std::string& part) {
    char buffer[16384];
    while (fgets(buffer, sizeof(buffer), errors_) != nullptr) {
      seen_ += buffer;
      if (absl::StrContains(buffer, part)) return buffer;
    }
    ADD_FAILURE() << "no line with \"" << part << "\" in:\n" << seen_;
    return "";
  }

  void Signal(int number) { kill(pid_, number); }

  // The exit status; -1 for a signal.
  int Wait() {
    char buffer[16384];
    while (fgets(buffer, sizeof(buffer), errors_) != nullptr) seen_ += buffer;
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  const std::string& errors() const { return seen_; }
  std::string output() const { return ReadFile(dir_.File("out")); }

 private:
  const TempDir dir_;
  pid_t pid_ = -1;
  FILE* errors_ = nullptr;
  std::string seen_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_TROUPE_RUN_H_

#include "tests/fakes/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <utility>

#include "common/check.h"
#include "tests/fakes/temp_dir.h"

extern char** environ;

namespace troupe {

ChildProcess::ChildProcess(const std::vector<std::string>& arguments,
                           const std::string& log_path)
    : log_path_(log_path) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, log_path.c_str(),
                                   O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  CHECK_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ),
           0);
  posix_spawn_file_actions_destroy(&actions);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      log_path_(std::move(other.log_path_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  Reap();
  pid_ = std::exchange(other.pid_, -1);
  log_path_ = std::move(other.log_path_);
  return *this;
}

ChildProcess::~ChildProcess() { Reap(); }

void ChildProcess::Reap() {
  if (pid_ < 0) return;
  Kill(SIGKILL);
  Wait();
}

void ChildProcess::Kill(int signal) const {
  CHECK_GT(pid_, 0);
  kill(pid_, signal);
}

int ChildProcess::Wait() {
  CHECK_GT(pid_, 0);
  int status = 0;
  CHECK_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string ChildProcess::Log() const { return ReadFile(log_path_); }

}  // namespace troupe

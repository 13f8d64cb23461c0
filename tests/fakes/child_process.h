// A real process, for tests that need one to kill.
#ifndef TROUPE_TESTS_FAKES_CHILD_PROCESS_H_
#define TROUPE_TESTS_FAKES_CHILD_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace troupe {

// Owns a process that runs `arguments[0]`; standard output and error go to
// `log_path`. Killed and reaped when this goes. Not thread-safe.
class ChildProcess {
 public:
  ChildProcess(const std::vector<std::string>& arguments,
               const std::string& log_path);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  void Kill(int signal) const;
  // Waits for the end; the exit status, or 128 + the signal that ended it.
  int Wait();
  std::string Log() const;

 private:
  void Reap();

  pid_t pid_ = -1;  // -1: reaped
  std::string log_path_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_CHILD_PROCESS_H_

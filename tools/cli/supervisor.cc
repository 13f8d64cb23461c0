#include "tools/cli/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/clock.h"
#include "tools/cli/health_probe.h"
#include "tools/cli/terminal.h"

extern char** environ;

namespace troupe {
namespace {

constexpr milliseconds kTick{50};
constexpr milliseconds kFirstBackoff{100};
constexpr milliseconds kLongestBackoff{5000};
// A child that ran that long starts its backoff anew.
constexpr milliseconds kStableAfter{10000};
constexpr milliseconds kPlainStatusInterval{2000};
constexpr size_t kLongestLine = 8192;

SteadyTime Now() { return Clock::Real().Now(); }

double SecondsSince(SteadyTime start) {
  return std::chrono::duration<double>(Now() - start).count();
}

std::string DescribeExit(int status) {
  if (WIFEXITED(status)) {
    return absl::StrCat("exit status ", WEXITSTATUS(status));
  }
  return absl::StrCat("signal ", WTERMSIG(status), " (",
                      strsignal(WTERMSIG(status)), ")");
}

uint64_t ResidentBytes(pid_t pid) {
  std::ifstream statm(absl::StrCat("/proc/", pid, "/statm"));
  uint64_t total_pages = 0;
  uint64_t resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// A child with its output. Not ready, ready, or waiting to be started again.
struct Child {
  Child(ProcessSpec process_spec,
        std::shared_ptr<grpc::ChannelCredentials> probe_credentials)
      : spec(std::move(process_spec)),
        credentials(std::move(probe_credentials)),
        probe(spec.address, credentials) {}

  ProcessSpec spec;
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  HealthProbe probe;
  pid_t pid = -1;      // -1: does not run
  int output_fd = -1;  // its standard output and error
  std::string partial_line;
  std::string last_line;
  bool ready = false;
  bool was_ever_ready = false;
  SteadyTime started;
  SteadyTime start_again = kNoDeadline;
  milliseconds backoff = kFirstBackoff;
  // For the progress of loading.
  double resident_bytes = 0;
  double bytes_per_s = 0;
  SteadyTime measured;
};

// The new process has a group of its own, so that a Ctrl-C of the terminal
// comes to us alone, no blocked signals, and no descriptors of ours.
absl::Status Spawn(Child& child) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) {
    return absl::InternalError(absl::StrCat("pipe: ", strerror(errno)));
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null",
                                   O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, fds[1], STDERR_FILENO);
  posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
  std::vector<char*> arguments;
  for (std::string& argument : child.spec.arguments) {
    arguments.push_back(argument.data());
  }
  arguments.push_back(nullptr);
  const int error = posix_spawn(&child.pid, arguments[0], &actions, &attributes,
                                arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  close(fds[1]);
  if (error != 0) {
    close(fds[0]);
    child.pid = -1;
    return absl::NotFoundError(
        absl::StrCat("cannot start ", arguments[0], ": ", strerror(error)));
  }
  fcntl(fds[0], F_SETFL, O_NONBLOCK);
  child.output_fd = fds[0];
  child.started = child.measured = Now();
  child.resident_bytes = child.bytes_per_s = 0;
  child.start_again = kNoDeadline;
  child.ready = false;
  return absl::OkStatus();
}

}  // namespace

struct Supervisor::State {
  State(std::vector<ProcessSpec> processes, SupervisorOptions given)
      : options(std::move(given)) {
    for (ProcessSpec& process : processes) {
      const auto credentials = options.credentials.find(process.tier);
      children.emplace_back(std::move(process),
                            credentials == options.credentials.end()
                                ? nullptr
                                : credentials->second);
    }
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGCHLD);
    signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
    stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(signal_fd >= 0 && stop_fd >= 0);
  }
  ~State() {
    for (Child& child : children) {
      if (child.pid > 0) {
        kill(child.pid, SIGKILL);
        waitpid(child.pid, nullptr, 0);
      }
      if (child.output_fd >= 0) close(child.output_fd);
    }
    close(signal_fd);
    close(stop_fd);
  }

  // Sleeps until something happens or a tick is over; afterwards outputs are
  // read and `on_exit` was called for every child that ended.
  template <typename OnExit>
  void Step(const OnExit& on_exit) {
    std::vector<pollfd> fds = {{signal_fd, POLLIN, 0}, {stop_fd, POLLIN, 0}};
    for (const Child& child : children) {
      if (child.output_fd >= 0) fds.push_back({child.output_fd, POLLIN, 0});
    }
    poll(fds.data(), fds.size(), static_cast<int>(kTick.count()));
    signalfd_siginfo info;
    while (read(signal_fd, &info, sizeof(info)) == sizeof(info)) {
      if (info.ssi_signo != SIGCHLD) ++num_signals;
    }
    uint64_t count = 0;
    if (read(stop_fd, &count, sizeof(count)) == sizeof(count)) {
      stop_requested = true;
    }
    for (Child& child : children) {
      ReadOutput(child);
      if (child.pid <= 0) continue;
      int status = 0;
      if (waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
      ReadOutput(child);
      if (!child.partial_line.empty()) {
        PrintLine(child, std::exchange(child.partial_line, ""));
      }
      if (child.output_fd >= 0) close(std::exchange(child.output_fd, -1));
      child.pid = -1;
      on_exit(child, status);
    }
  }

  void ReadOutput(Child& child) {
    if (child.output_fd < 0) return;
    char buffer[4096];
    while (true) {
      const ssize_t num_bytes = read(child.output_fd, buffer, sizeof(buffer));
      if (num_bytes == 0) {
        close(std::exchange(child.output_fd, -1));
        return;
      }
      if (num_bytes < 0) return;
      for (ssize_t i = 0; i < num_bytes; ++i) {
        if (buffer[i] == '\n' || child.partial_line.size() >= kLongestLine) {
          PrintLine(child, std::exchange(child.partial_line, ""));
        }
        if (buffer[i] != '\n') child.partial_line.push_back(buffer[i]);
      }
    }
  }

  void PrintLine(Child& child, const std::string& line) {
    if (options.take_line && options.take_line(child.spec.name, line)) return;
    child.last_line = line;
    options.log(absl::StrCat(child.spec.name, " | ", line));
  }

  void PollHealth() {
    for (Child& child : children) {
      if (child.pid <= 0 || child.ready || !child.probe.Poll()) continue;
      child.ready = true;
      options.log(absl::StrFormat(
          "troupe | %s is ready%s after %.1f s (pid %d, %s resident)",
          child.spec.name, child.was_ever_ready ? " again" : "",
          SecondsSince(child.started), child.pid,
          FormatBytes(static_cast<double>(ResidentBytes(child.pid)))));
      child.was_ever_ready = true;
    }
  }

  // Who is not ready yet, with what it has in memory and how fast that grows.
  std::string LoadingStatus() {
    size_t num_ready = 0;
    std::string loading;
    for (Child& child : children) {
      if (child.ready) {
        ++num_ready;
        continue;
      }
      MeasureMemory(child);
      absl::StrAppend(&loading, loading.empty() ? "" : ", ", child.spec.name,
                      " ", FormatBytes(child.resident_bytes));
      if (child.bytes_per_s > 1e6) {
        absl::StrAppend(&loading, " (", FormatBytes(child.bytes_per_s), "/s)");
      }
    }
    return absl::StrCat("starting: ", num_ready, " of ", children.size(),
                        " ready; in memory: ", loading);
  }

  // The rate is that of the last interval of half a second and more.
  static void MeasureMemory(Child& child) {
    const double seconds = SecondsSince(child.measured);
    if (seconds < 0.5) return;
    const auto resident = static_cast<double>(ResidentBytes(child.pid));
    child.bytes_per_s = (resident - child.resident_bytes) / seconds;
    child.resident_bytes = resident;
    child.measured = Now();
  }

  bool AllReady() const {
    return std::all_of(children.begin(), children.end(),
                       [](const Child& child) { return child.ready; });
  }

  void Signal(Child& child, int number) {
    if (child.pid > 0) kill(child.pid, number);
  }

  // Steps until no child of `tier` (or of any, for -1) runs. False: some had
  // to be killed.
  bool AwaitExit(int tier) {
    const SteadyTime limit =
        Now() + std::chrono::seconds(options.kill_after_seconds);
    const int signals_before = num_signals;
    bool killed = false;
    const auto runs = [&](const Child& child) {
      return child.pid > 0 &&
             (tier < 0 || static_cast<int>(child.spec.tier) == tier);
    };
    while (std::any_of(children.begin(), children.end(), runs)) {
      if (!killed && (num_signals > signals_before || Now() >= limit)) {
        killed = true;
        options.log(num_signals > signals_before
                        ? "troupe | second signal: killing all processes"
                        : "troupe | drain time is over: killing all processes");
        for (Child& child : children) Signal(child, SIGKILL);
      }
      Step([&](Child& child, int status) {
        if (!killed && !(WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
          options.log(absl::StrCat("troupe | ", child.spec.name, " ended with ",
                                   DescribeExit(status)));
        }
      });
    }
    return !killed;
  }

  SupervisorOptions options;
  std::vector<Child> children;
  int signal_fd = -1;
  int stop_fd = -1;
  int num_signals = 0;  // SIGINT and SIGTERM so far
  bool stop_requested = false;
};

Supervisor::Supervisor(std::vector<ProcessSpec> processes,
                       SupervisorOptions options)
    : state_(
          std::make_unique<State>(std::move(processes), std::move(options))) {}
Supervisor::~Supervisor() = default;

absl::Status Supervisor::Start() {
  State& state = *state_;
  absl::Status status;
  for (Child& child : state.children) {
    status = Spawn(child);
    if (!status.ok()) break;
  }
  SteadyTime next_plain_status = Now() + kPlainStatusInterval;
  while (status.ok() && !state.AllReady()) {
    state.Step([&](Child& child, int exit_status) {
      status = absl::UnavailableError(
          absl::StrCat(child.spec.name, " failed at start-up with ",
                       DescribeExit(exit_status),
                       child.last_line.empty() ? "" : ": ", child.last_line));
    });
    state.PollHealth();
    if (state.num_signals > 0 || state.stop_requested) {
      status = absl::CancelledError("stopped while starting");
    }
    if (state.options.status) {
      state.options.status(state.LoadingStatus());
    } else if (Now() >= next_plain_status && !state.AllReady()) {
      next_plain_status = Now() + kPlainStatusInterval;
      state.options.log(absl::StrCat("troupe | ", state.LoadingStatus()));
    }
  }
  if (state.options.status) state.options.status("");
  if (!status.ok()) {
    for (Child& child : state.children) state.Signal(child, SIGTERM);
    state.AwaitExit(-1);
  }
  return status;
}

void Supervisor::Supervise() {
  State& state = *state_;
  while (state.num_signals == 0 && !state.stop_requested) {
    state.Step([&](Child& child, int status) {
      child.ready = false;
      if (Now() - child.started >= kStableAfter) child.backoff = kFirstBackoff;
      child.start_again = Now() + child.backoff;
      state.options.log(absl::StrFormat(
          "troupe | %s died with %s; starting it again in %.1f s",
          child.spec.name, DescribeExit(status),
          static_cast<double>(child.backoff.count()) / 1000));
      child.backoff = std::min(child.backoff * 2, kLongestBackoff);
      // The old connection's answers are not those of the new process.
      child.probe = HealthProbe(child.spec.address, child.credentials);
    });
    for (Child& child : state.children) {
      if (child.pid > 0 || Now() < child.start_again) continue;
      const absl::Status status = Spawn(child);
      if (!status.ok()) {
        state.options.log(
            absl::StrCat("troupe | ", std::string(status.message())));
        child.start_again = Now() + kLongestBackoff;
      }
    }
    state.PollHealth();
  }
}

absl::Status Supervisor::Drain() {
  State& state = *state_;
  const int signals_before = state.num_signals;
  for (const ProcessTier tier :
       {ProcessTier::kGateway, ProcessTier::kRouter, ProcessTier::kExpert}) {
    for (Child& child : state.children) {
      if (child.spec.tier == tier) state.Signal(child, SIGTERM);
    }
    if (!state.AwaitExit(static_cast<int>(tier))) {
      state.AwaitExit(-1);
      if (state.num_signals > signals_before) {
        return absl::CancelledError("a second signal ended the drain");
      }
      return absl::DeadlineExceededError("some processes had to be killed");
    }
  }
  return absl::OkStatus();
}

void Supervisor::RequestStop() {
  const uint64_t one = 1;
  CHECK_EQ(write(state_->stop_fd, &one, sizeof(one)),
           static_cast<ssize_t>(sizeof(one)));
}

}  // namespace troupe

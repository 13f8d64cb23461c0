// Runs the processes of a local cluster as children.
#ifndef TROUPE_TOOLS_CLI_SUPERVISOR_H_
#define TROUPE_TOOLS_CLI_SUPERVISOR_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "grpcpp/security/credentials.h"

namespace troupe {

// Drained from the last to the first.
enum class ProcessTier { kExpert = 0, kRouter = 1, kGateway = 2 };

struct ProcessSpec {
  ProcessTier tier = ProcessTier::kExpert;
  std::string name;
  std::string address;                 // whose health says that it is ready
  std::vector<std::string> arguments;  // the binary's path first
  bool operator==(const ProcessSpec&) const = default;
};

struct SupervisorOptions {
  // To ask a process of that tier how it is; null: plain text.
  std::map<ProcessTier, std::shared_ptr<grpc::ChannelCredentials>> credentials;
  // A process that did not end that long after SIGTERM is killed.
  int kill_after_seconds = 40;
  // Lines of this program and of the children, without newline; called from
  // the thread that runs the supervisor.
  std::function<void(const std::string& line)> log;
  // A line that replaces the last one, while processes load; empty clears it.
  // May be null.
  std::function<void(const std::string& line)> status;
  // A child's output line; true: it is not for people.
  std::function<bool(const std::string& process, const std::string& line)>
      take_line;
};

// Owns the children. Everything but RequestStop is for one thread: the one
// that constructs it, which must live as long as the children (they end with
// it). The caller has blocked SIGINT, SIGTERM and SIGCHLD in all threads.
class Supervisor {
 public:
  Supervisor(std::vector<ProcessSpec> processes, SupervisorOptions options);
  // Kills what still runs.
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Starts all and returns when all are ready. When one ends before it was
  // ready the others are stopped and the error says why; Cancelled when a
  // signal or RequestStop came first.
  absl::Status Start();

  // Starts children that die again, after 0.1 s doubling to 5 s; returns when
  // SIGINT, SIGTERM or RequestStop comes.
  void Supervise();

  // SIGTERM to gateway, routers and experts, one tier after the other has
  // ended. A signal meanwhile kills all at once: Cancelled. DeadlineExceeded
  // when something outlasted its time and had to be killed.
  absl::Status Drain();

  // From any thread.
  void RequestStop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_SUPERVISOR_H_

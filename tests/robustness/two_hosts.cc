#include "tests/robustness/two_hosts.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/check.h"
#include "common/clock.h"

namespace troupe {
namespace {

// Runs a command of words without blanks; its output is the error.
absl::Status RunCommand(const std::string& command) {
  FILE* pipe = popen(absl::StrCat(command, " 2>&1").c_str(), "re");
  if (pipe == nullptr) return absl::UnavailableError("no shell");
  std::string output;
  char buffer[256];
  while (fgets(buffer, sizeof(buffer), pipe) != nullptr) output += buffer;
  const int status = pclose(pipe);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(command, ": ", absl::StrReplaceAll(output, {{"\n", " "}})));
}

}  // namespace

TwoHosts::TwoHosts(ChildProcess holder, std::string interface,
                   std::string address_a, std::string address_b)
    : holder_(std::move(holder)),
      interface_(std::move(interface)),
      address_a_(std::move(address_a)),
      address_b_(std::move(address_b)) {}

TwoHosts::~TwoHosts() {
  // The other end and the namespace follow.
  const absl::Status ignored =
      RunCommand(absl::StrCat("ip link del ", interface_));
  ignored.IgnoreError();
}

absl::StatusOr<std::unique_ptr<TwoHosts>> TwoHosts::Create(
    const std::string& log_path) {
  for (const char* command :
       {"ip -V", "nsenter -V", "setpriv -V", "unshare --net true"}) {
    const absl::Status status = RunCommand(command);
    if (!status.ok()) return status;
  }
  ChildProcess holder({"/usr/bin/unshare", "--net", "--", "/usr/bin/setpriv",
                       "--pdeathsig", "KILL", "/bin/sleep", "infinity"},
                      log_path);
  const std::string ns = absl::StrCat("/proc/", holder.pid(), "/ns/net");
  char own[64] = "";
  char other[64] = "";
  (void)!readlink("/proc/self/ns/net", own, sizeof(own) - 1);
  for (int i = 0; i < 1000; ++i) {
    if (readlink(ns.c_str(), other, sizeof(other) - 1) > 0 &&
        std::string(own) != other) {
      break;
    }
    // Until `unshare` has done its work; it says so to nobody.
    std::this_thread::sleep_for(milliseconds(5));
  }
  if (std::string(own) == other) {
    return absl::UnavailableError("unshare --net made no namespace");
  }
  const pid_t pid = getpid();
  const std::string interface = absl::StrCat("trp", pid % 1000000, "a");
  const std::string peer = absl::StrCat("trp", pid % 1000000, "b");
  const std::string network =
      absl::StrCat("10.", 200 + pid / 256 % 50, ".", pid % 256, ".");
  const std::string a = absl::StrCat(network, "1");
  const std::string b = absl::StrCat(network, "2");
  const std::string inside =
      absl::StrCat("nsenter -t ", holder.pid(), " -n -- ip ");
  for (const std::string& command :
       {absl::StrCat("ip link add ", interface, " type veth peer name ", peer,
                     " netns ", holder.pid()),
        absl::StrCat("ip addr add ", a, "/30 dev ", interface),
        absl::StrCat("ip link set ", interface, " up"),
        absl::StrCat(inside, "addr add ", b, "/30 dev ", peer),
        absl::StrCat(inside, "link set ", peer, " up"),
        absl::StrCat(inside, "link set lo up")}) {
    const absl::Status status = RunCommand(command);
    if (!status.ok()) return status;
  }
  return std::unique_ptr<TwoHosts>(
      new TwoHosts(std::move(holder), interface, a, b));
}

std::vector<std::string> TwoHosts::OnB(
    std::vector<std::string> arguments) const {
  std::vector<std::string> command = {"/usr/bin/nsenter", "-t",
                                      absl::StrCat(holder_.pid()), "-n", "--"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

void TwoHosts::SetLink(bool up) {
  // The far end: what is sent here vanishes, and the address stays.
  const absl::Status status = RunCommand(absl::StrCat(
      "nsenter -t ", holder_.pid(), " -n -- ip link set ",
      interface_.substr(0, interface_.size() - 1), "b ", up ? "up" : "down"));
  CHECK(status.ok());
}

}  // namespace troupe

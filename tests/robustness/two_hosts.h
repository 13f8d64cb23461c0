// A second host: a network namespace behind a link that can be cut.
#ifndef TROUPE_TESTS_ROBUSTNESS_TWO_HOSTS_H_
#define TROUPE_TESTS_ROBUSTNESS_TWO_HOSTS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/fakes/child_process.h"

namespace troupe {

// Host A is where this process runs, host B a network namespace; between them
// a pair of virtual interfaces. All of it goes with this object, or with this
// process. Not thread-safe.
class TwoHosts {
 public:
  // Unavailable: why namespaces cannot be made here (no right to, no `ip`).
  static absl::StatusOr<std::unique_ptr<TwoHosts>> Create(
      const std::string& log_path);
  ~TwoHosts();

  const std::string& address_a() const { return address_a_; }
  const std::string& address_b() const { return address_b_; }

  // The command that runs `arguments` on host B; the process id is that of the
  // program itself.
  std::vector<std::string> OnB(std::vector<std::string> arguments) const;

  // Takes the link down, or up again. Nobody is told.
  void SetLink(bool up);

 private:
  TwoHosts(ChildProcess holder, std::string interface, std::string address_a,
           std::string address_b);

  ChildProcess holder_;  // keeps the namespace
  const std::string interface_;
  const std::string address_a_;
  const std::string address_b_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_ROBUSTNESS_TWO_HOSTS_H_

// Where the addresses of peers come from, and how they change.
#ifndef TROUPE_CLUSTER_ADDRESS_SOURCE_H_
#define TROUPE_CLUSTER_ADDRESS_SOURCE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"

namespace troupe {

// The addresses of a host name, without ports ("10.0.0.7", "::1"). May block.
using ResolveHost = std::function<absl::StatusOr<std::vector<std::string>>(
    const std::string& host)>;

// By the system's resolver.
absl::StatusOr<std::vector<std::string>> ResolveBySystem(
    const std::string& host);

struct AddressSourceOptions {
  // Each one a peer ("host:port", "unix:/path"), "file:/path" of a watched
  // file, or "dns:name:port": every address that the name has now (a headless
  // Service). The set is the union.
  std::vector<std::string> specs;
  // Between two looks. A file that is not replaced at once but written in
  // place is taken when two looks found the same text.
  milliseconds file_interval{250};
  milliseconds dns_interval{1000};
  ResolveHost resolve = ResolveBySystem;
};

// Peers that a text lists, one per line; empty lines and what follows a '#' are
// not read. InvalidArgument names the line.
absl::StatusOr<std::vector<std::string>> ParseAddressList(
    absl::string_view text);

// "host:port", port 1 to 65535, or "unix:/path".
absl::Status CheckAddress(const std::string& address);

// Watches its specs and says what the set is. A look that fails (no such file,
// a line that is no address, no answer of the resolver, a name without
// addresses) changes nothing: the last good addresses of that spec stay, as
// what one cannot see is not gone. An empty file is a look that succeeds.
//
// One thread per file and name, none for plain addresses. A resolver that
// blocks holds up its own name alone, and nobody waits for it at the end.
// Thread-safe.
class AddressSource {
 public:
  // InvalidArgument names the spec.
  static absl::StatusOr<std::unique_ptr<AddressSource>> Create(
      AddressSourceOptions options);
  ~AddressSource();  // stops
  AddressSource(const AddressSource&) = delete;
  AddressSource& operator=(const AddressSource&) = delete;

  // Sorted and without duplicates; empty while nothing is known.
  using Listener =
      std::function<void(const std::vector<std::string>& addresses)>;
  // Calls `listener` from here with what plain addresses and files say, then
  // from other threads, one call at a time, with every other set. Once.
  void Start(Listener listener);
  // No call of the listener afterwards; as the destructor.
  void Stop();

  std::vector<std::string> addresses() const;

  // What is known of one spec that is not a plain address.
  struct Source {
    std::string spec;
    std::vector<std::string> addresses;
    uint64_t changes = 0;
    uint64_t failures = 0;
    std::string last_error;  // empty: the last look succeeded
    double age_seconds = 0;  // of the last look that succeeded, or the start
  };
  std::vector<Source> Describe() const;

 private:
  struct State;
  explicit AddressSource(std::shared_ptr<State> state);
  const std::shared_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_ADDRESS_SOURCE_H_

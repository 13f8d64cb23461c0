// Unix sockets between processes of one user, with descriptors handed over.
#ifndef TROUPE_COMMON_RPC_UNIX_SOCKET_H_
#define TROUPE_COMMON_RPC_UNIX_SOCKET_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/clock.h"
#include "common/rpc/unique_fd.h"

namespace troupe {

// Addresses are paths, or names of the abstract namespace with "@" in front.
// Messages keep their bounds (SOCK_SEQPACKET); the end of the other process
// ends the connection, whatever it died of.

// Listens. A socket file that nobody listens on is replaced.
absl::StatusOr<UniqueFd> ListenUnix(const std::string& address);
// Connects; PermissionDenied when the other side is neither this user nor root.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& address);
// Waits for a connection; one of another user is closed and waited past.
// Cancelled when the socket was shut down.
absl::StatusOr<UniqueFd> AcceptUnix(int fd);

// The longest that receiving and sending may block; 0: for ever.
void SetSocketTimeout(int fd, milliseconds limit);

// Sends one message with descriptors, which stay the caller's.
absl::Status SendMessage(int fd, absl::string_view bytes,
                         absl::Span<const int> fds);

struct ReceivedMessage {
  std::string bytes;
  std::vector<UniqueFd> fds;
};
// One message of at most max_bytes with at most max_fds; InvalidArgument when
// it has more, Unavailable at the end and at the time-out.
absl::StatusOr<ReceivedMessage> ReceiveMessage(int fd, size_t max_bytes,
                                               size_t max_fds);

// Tells this machine's run from all others: /proc/sys/kernel/random/boot_id.
// Empty when it cannot be read.
std::string BootId();
// num_bytes from the kernel.
std::string RandomBytes(size_t num_bytes);

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_UNIX_SOCKET_H_

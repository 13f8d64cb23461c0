#include "common/rpc/unix_socket.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace troupe {
namespace {

constexpr size_t kMostFds = 8;

absl::Status Failed(const char* what, const std::string& address) {
  const int error = errno;
  const std::string text =
      absl::StrCat(what, " ", address, ": ", strerror(error));
  return error == EACCES || error == EPERM ? absl::PermissionDeniedError(text)
                                           : absl::UnavailableError(text);
}

struct Address {
  sockaddr_un name = {};
  socklen_t size = 0;
};

absl::StatusOr<Address> MakeAddress(const std::string& text) {
  Address address;
  address.name.sun_family = AF_UNIX;
  if (text.size() < 2 || text.size() >= sizeof(address.name.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("unix socket \"", text, "\": 2 to ",
                     sizeof(address.name.sun_path) - 1, " bytes"));
  }
  std::memcpy(address.name.sun_path, text.data(), text.size());
  address.size =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + text.size());
  if (text[0] == '@') {
    address.name.sun_path[0] = '\0';  // abstract: the length ends the name
  } else {
    ++address.size;
  }
  return address;
}

bool IsOurs(int fd) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
         (peer.uid == geteuid() || peer.uid == 0);
}

}  // namespace

absl::StatusOr<UniqueFd> ListenUnix(const std::string& text) {
  absl::StatusOr<Address> address = MakeAddress(text);
  if (!address.ok()) return address.status();
  const auto* name = reinterpret_cast<const sockaddr*>(&address->name);
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Failed("socket for", text);
  if (bind(fd.get(), name, address->size) != 0) {
    const bool in_use = errno == EADDRINUSE;
    if (!in_use || text[0] == '@') return Failed("cannot listen on", text);
    UniqueFd probe(
        socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (connect(probe.get(), name, address->size) == 0 || errno == EAGAIN) {
      return absl::AlreadyExistsError(
          absl::StrCat("cannot listen on ", text, ": already in use"));
    }
    // ECONNREFUSED: a socket that was left over; anything else is no socket of
    // ours.
    if (errno != ECONNREFUSED || unlink(text.c_str()) != 0 ||
        bind(fd.get(), name, address->size) != 0) {
      return Failed("cannot listen on", text);
    }
  }
  if (listen(fd.get(), 64) != 0) return Failed("cannot listen on", text);
  return fd;
}

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& text) {
  absl::StatusOr<Address> address = MakeAddress(text);
  if (!address.ok()) return address.status();
  UniqueFd fd(
      socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return Failed("socket for", text);
  // Not blocking: a full backlog is an answer too.
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address->name),
              address->size) != 0) {
    return Failed("cannot connect to", text);
  }
  if (!IsOurs(fd.get())) {
    return absl::PermissionDeniedError(
        absl::StrCat(text, " belongs to another user"));
  }
  const int flags = fcntl(fd.get(), F_GETFL);
  fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK);
  return fd;
}

absl::StatusOr<UniqueFd> AcceptUnix(int listening) {
  for (;;) {
    UniqueFd fd(accept4(listening, nullptr, nullptr, SOCK_CLOEXEC));
    if (fd.valid()) {
      if (IsOurs(fd.get())) return fd;
    } else if (errno == EINVAL || errno == EBADF) {
      return absl::CancelledError("the socket was shut down");
    } else if (errno != EINTR && errno != ECONNABORTED) {
      return Failed("accept on", "a unix socket");
    }
  }
}

void SetSocketTimeout(int fd, milliseconds limit) {
  timeval value = {};
  value.tv_sec = limit.count() / 1000;
  value.tv_usec = limit.count() % 1000 * 1000;
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof(value));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof(value));
}

absl::Status SendMessage(int fd, absl::string_view bytes,
                         absl::Span<const int> fds) {
  CHECK_LE(fds.size(), kMostFds);
  iovec piece = {const_cast<char*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMostFds * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(fd, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent != static_cast<ssize_t>(bytes.size())) {
    return Failed("sendmsg on", "a unix socket");
  }
  return absl::OkStatus();
}

absl::StatusOr<ReceivedMessage> ReceiveMessage(int fd, size_t max_bytes,
                                               size_t max_fds) {
  CHECK_LE(max_fds, kMostFds);
  ReceivedMessage received;
  received.bytes.resize(max_bytes);
  iovec piece = {received.bytes.data(), max_bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(kMostFds * sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t size = 0;
  do {
    size = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  } while (size < 0 && errno == EINTR);
  if (size < 0) return Failed("recvmsg on", "a unix socket");
  // Whatever came is ours to close.
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      received.fds.emplace_back(number);
    }
  }
  if (size == 0 && received.fds.empty()) {
    return absl::UnavailableError("the other side has closed the unix socket");
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ||
      received.fds.size() > max_fds) {
    return absl::InvalidArgumentError(
        "a message on the unix socket is longer than agreed");
  }
  received.bytes.resize(static_cast<size_t>(size));
  return received;
}

std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

std::string RandomBytes(size_t num_bytes) {
  std::string bytes(num_bytes, '\0');
  size_t done = 0;
  while (done < num_bytes) {
    const ssize_t got = getrandom(bytes.data() + done, num_bytes - done, 0);
    if (got > 0) done += static_cast<size_t>(got);
    CHECK(got > 0 || errno == EINTR);
  }
  return bytes;
}

}  // namespace troupe

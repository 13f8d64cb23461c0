#include "tests/robustness/tcp_proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/check.h"

namespace troupe {
namespace {

// What waits in one direction before the sender is no longer read.
constexpr size_t kMaxPending = 4 << 20;

sockaddr_in Address(const std::string& host, int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  CHECK_EQ(inet_pton(AF_INET, host.c_str(), &address.sin_addr), 1);
  return address;
}

int NewSocket() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  CHECK_GE(fd, 0);
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return fd;
}

bool WouldBlock() { return errno == EAGAIN || errno == EINTR; }

}  // namespace

TcpProxy::TcpProxy(const std::string& listen_host, int listen_port,
                   std::string target_host, int target_port)
    : target_host_(std::move(target_host)), target_port_(target_port) {
  listen_fd_ = NewSocket();
  const int on = 1;
  setsockopt(listen_fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const sockaddr_in address = Address(listen_host, listen_port);
  CHECK_EQ(bind(listen_fd_, reinterpret_cast<const sockaddr*>(&address),
                sizeof(address)),
           0);
  CHECK_EQ(listen(listen_fd_, 64), 0);
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  CHECK_GE(wake_fd_, 0);
  thread_ = std::thread([this] { Run(); });
}

TcpProxy::~TcpProxy() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  Wake();
  thread_.join();
  for (Connection& connection : connections_) Close(connection, false);
  close(listen_fd_);
  close(wake_fd_);
}

void TcpProxy::SetDelay(milliseconds delay) {
  absl::MutexLock lock(&mu_);
  delay_ = delay;
}

void TcpProxy::SetBlackhole(bool blackhole) {
  {
    absl::MutexLock lock(&mu_);
    blackhole_ = blackhole;
  }
  Wake();
}

void TcpProxy::ResetAll() {
  {
    absl::MutexLock lock(&mu_);
    for (Connection& connection : connections_) Close(connection, true);
    connections_.clear();
  }
  Wake();
}

size_t TcpProxy::num_connections() const {
  absl::MutexLock lock(&mu_);
  return connections_.size();
}

void TcpProxy::Wake() {
  const uint64_t one = 1;
  (void)!write(wake_fd_, &one, sizeof(one));
}

void TcpProxy::Close(Connection& connection, bool reset) {
  for (int* fd : {&connection.client, &connection.server}) {
    if (*fd < 0) continue;
    if (reset) {
      const linger now = {1, 0};
      setsockopt(*fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    }
    close(std::exchange(*fd, -1));
  }
}

void TcpProxy::Accept() {
  while (true) {
    const int client =
        accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) return;
    const int on = 1;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    Connection connection;
    connection.client = client;
    connection.server = NewSocket();
    const sockaddr_in address = Address(target_host_, target_port_);
    if (connect(connection.server, reinterpret_cast<const sockaddr*>(&address),
                sizeof(address)) != 0 &&
        errno != EINPROGRESS) {
      Close(connection, true);
      continue;
    }
    connections_.push_back(std::move(connection));
  }
}

bool TcpProxy::Read(int from, Direction& direction, SteadyTime now) {
  char buffer[64 << 10];
  while (!direction.ended && direction.num_bytes < kMaxPending) {
    const ssize_t size = read(from, buffer, sizeof(buffer));
    if (size < 0) return WouldBlock();
    if (size == 0) {
      direction.ended = true;
      return true;
    }
    direction.pieces.push_back(
        {now + delay_, std::string(buffer, static_cast<size_t>(size))});
    direction.num_bytes += static_cast<size_t>(size);
  }
  return true;
}

bool TcpProxy::Write(int to, Direction& direction, SteadyTime now) {
  while (!direction.pieces.empty() && direction.pieces.front().due <= now) {
    std::string& bytes = direction.pieces.front().bytes;
    const ssize_t size = send(to, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (size < 0) return WouldBlock();
    direction.num_bytes -= static_cast<size_t>(size);
    if (static_cast<size_t>(size) < bytes.size()) {
      bytes.erase(0, static_cast<size_t>(size));
      return true;
    }
    direction.pieces.pop_front();
  }
  if (direction.ended && direction.pieces.empty() && !direction.closed) {
    direction.closed = true;
    shutdown(to, SHUT_WR);
  }
  return true;
}

bool TcpProxy::Serve(Connection& connection, short client_events,
                     short server_events, SteadyTime now) {
  if (connection.connecting) {
    if ((server_events & (POLLOUT | POLLERR | POLLHUP)) == 0) return true;
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(connection.server, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return false;
    connection.connecting = false;
  }
  constexpr short kReadable = POLLIN | POLLHUP | POLLERR;
  if ((client_events & kReadable) != 0 &&
      !Read(connection.client, connection.to_server, now)) {
    return false;
  }
  if ((server_events & kReadable) != 0 &&
      !Read(connection.server, connection.to_client, now)) {
    return false;
  }
  return Write(connection.server, connection.to_server, now) &&
         Write(connection.client, connection.to_client, now) &&
         !(connection.to_server.closed && connection.to_client.closed);
}

void TcpProxy::Run() {
  std::vector<pollfd> fds;
  while (true) {
    fds.assign({{listen_fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}});
    SteadyTime next = kNoDeadline;
    {
      absl::MutexLock lock(&mu_);
      if (stopping_) return;
      const SteadyTime now = std::chrono::steady_clock::now();
      // Events of one side: what may be read from it and written to it.
      const auto events = [&](const Direction& in, const Direction& out) {
        short wanted = 0;
        if (!in.ended && in.num_bytes < kMaxPending) wanted |= POLLIN;
        if (!out.pieces.empty()) {
          if (out.pieces.front().due <= now) {
            wanted |= POLLOUT;
          } else {
            next = std::min(next, out.pieces.front().due);
          }
        }
        return wanted;
      };
      for (const Connection& connection : connections_) {
        pollfd client = {connection.client,
                         events(connection.to_server, connection.to_client), 0};
        pollfd server = {connection.server,
                         events(connection.to_client, connection.to_server), 0};
        if (connection.connecting) {
          client.events = 0;
          server.events = POLLOUT;
        }
        if (blackhole_) client.fd = server.fd = -1;
        fds.push_back(client);
        fds.push_back(server);
      }
      if (blackhole_) next = kNoDeadline;
    }
    int timeout_ms = -1;
    if (next != kNoDeadline) {
      const auto left = std::chrono::ceil<milliseconds>(
          next - std::chrono::steady_clock::now());
      timeout_ms = static_cast<int>(std::max<int64_t>(left.count(), 0));
    }
    poll(fds.data(), fds.size(), timeout_ms);
    uint64_t ignored = 0;
    (void)!read(wake_fd_, &ignored, sizeof(ignored));
    absl::MutexLock lock(&mu_);
    if (stopping_) return;
    if (blackhole_) continue;
    const SteadyTime now = std::chrono::steady_clock::now();
    size_t i = 2;
    for (auto it = connections_.begin(); it != connections_.end();) {
      // Connections go by ResetAll alone while this thread polls; then what was
      // polled is of no use.
      if (i + 1 >= fds.size() || (fds[i].fd >= 0 && fds[i].fd != it->client)) {
        break;
      }
      const bool goes_on = Serve(*it, fds[i].revents, fds[i + 1].revents, now);
      i += 2;
      if (goes_on) {
        ++it;
      } else {
        Close(*it, true);
        it = connections_.erase(it);
      }
    }
    if (fds[0].revents != 0) Accept();
  }
}

}  // namespace troupe

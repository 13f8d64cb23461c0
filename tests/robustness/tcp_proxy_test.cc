#include "tests/robustness/tcp_proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <string>

#include "gtest/gtest.h"

namespace troupe {
namespace {

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

// A server's socket, and through the proxy one connection to it.
class TcpProxyTest : public testing::Test {
 protected:
  void SetUp() override {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int server_port = Bind(listener_);
    ASSERT_EQ(listen(listener_, 4), 0);
    const int probe = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int proxy_port = Bind(probe);
    close(probe);
    proxy_ = std::make_unique<TcpProxy>("127.0.0.1", proxy_port, "127.0.0.1",
                                        server_port);
    client_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = Loopback(proxy_port);
    ASSERT_EQ(connect(client_, reinterpret_cast<const sockaddr*>(&address),
                      sizeof(address)),
              0);
    server_ = accept(listener_, nullptr, nullptr);
    ASSERT_GE(server_, 0);
  }
  void TearDown() override {
    proxy_ = nullptr;
    for (const int fd : {client_, server_, listener_}) close(fd);
  }

  static int Bind(int fd) {
    sockaddr_in address = Loopback(0);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
    return ntohs(address.sin_port);
  }

  // Exactly `size` bytes, or fewer at the end of the stream.
  static std::string ReadFrom(int fd, size_t size) {
    std::string text(size, '\0');
    const ssize_t got = recv(fd, text.data(), size, MSG_WAITALL);
    text.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return text;
  }
  static bool HasBytes(int fd, int timeout_ms) {
    pollfd wanted = {fd, POLLIN, 0};
    return poll(&wanted, 1, timeout_ms) == 1;
  }

  int listener_ = -1;
  int client_ = -1;
  int server_ = -1;
  std::unique_ptr<TcpProxy> proxy_;
};

TEST_F(TcpProxyTest, CarriesBytesBothWaysAndTheEnd) {
  const std::string large(3 << 20, 'x');
  std::thread sender([&] {
    ASSERT_EQ(send(client_, large.data(), large.size(), 0),
              static_cast<ssize_t>(large.size()));
    shutdown(client_, SHUT_WR);
  });
  EXPECT_EQ(ReadFrom(server_, large.size() + 1), large);
  sender.join();
  ASSERT_EQ(send(server_, "back", 4, 0), 4);
  EXPECT_EQ(ReadFrom(client_, 4), "back");
  shutdown(server_, SHUT_WR);
  EXPECT_EQ(ReadFrom(client_, 1), "");
}

TEST_F(TcpProxyTest, DelayedBytesComeInOrderAndNotBefore) {
  proxy_->SetDelay(milliseconds(150));
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(send(client_, "ab", 2, 0), 2);
  ASSERT_EQ(send(client_, "cd", 2, 0), 2);
  EXPECT_EQ(ReadFrom(server_, 4), "abcd");
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(150));
}

TEST_F(TcpProxyTest, ABlackholeKeepsBytesUntilItEnds) {
  proxy_->SetBlackhole(true);
  ASSERT_EQ(send(client_, "late", 4, 0), 4);
  EXPECT_FALSE(HasBytes(server_, 100));
  EXPECT_EQ(proxy_->num_connections(), 1u);
  proxy_->SetBlackhole(false);
  EXPECT_EQ(ReadFrom(server_, 4), "late");
}

TEST_F(TcpProxyTest, ResetReachesBothSides) {
  proxy_->ResetAll();
  for (const int fd : {client_, server_}) {
    char byte = 0;
    EXPECT_EQ(recv(fd, &byte, 1, 0), -1);
    EXPECT_EQ(errno, ECONNRESET);
  }
  EXPECT_EQ(proxy_->num_connections(), 0u);
}

}  // namespace
}  // namespace troupe

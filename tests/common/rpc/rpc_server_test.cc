#include "common/rpc/rpc_server.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/rpc/rpc_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/health.grpc.pb.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::SizeIs;

absl::StatusOr<std::unique_ptr<RpcServer>> Start(
    std::vector<std::string> listen) {
  RpcServerOptions options;
  options.listen = std::move(listen);
  return RpcServer::Start(options, {});
}

grpc::health::v1::HealthCheckResponse::ServingStatus Health(
    const std::string& address) {
  const auto stub = grpc::health::v1::Health::NewStub(MakeChannel(address));
  grpc::ClientContext context;
  SetDeadline(context, std::chrono::steady_clock::now() + milliseconds(30000));
  context.set_wait_for_ready(true);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, {}, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.status();
}

// A socket file, bound and listening, that nobody accepts from.
class RawListener {
 public:
  RawListener(const std::string& path, int backlog)
      : fd_(socket(AF_UNIX, SOCK_STREAM, 0)) {
    sockaddr_un address = Address(path);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
              0);
    EXPECT_EQ(listen(fd_, backlog), 0);
  }
  ~RawListener() {
    for (const int fd : clients_) close(fd);
    close(fd_);
  }
  static sockaddr_un Address(const std::string& path) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    return address;
  }
  // Connects until the next connection would have to wait.
  void FillBacklog(const std::string& path) {
    sockaddr_un address = Address(path);
    while (true) {
      const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
      clients_.push_back(fd);
      if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) !=
          0) {
        EXPECT_EQ(errno, EAGAIN);
        return;
      }
    }
  }

 private:
  const int fd_;
  std::vector<int> clients_;
};

TEST(RpcServerTest, ResolvesPortsInOrder) {
  TempDir dir;
  const std::string unix_address = absl::StrCat("unix:", dir.File("s"));
  const auto server = Start({"127.0.0.1:0", unix_address, "127.0.0.1:0"});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::vector<std::string>& addresses = (*server)->addresses();
  ASSERT_THAT(addresses, SizeIs(3));
  EXPECT_THAT(addresses[0], MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
  EXPECT_EQ(addresses[1], unix_address);
  EXPECT_NE(addresses[0], addresses[2]);
}

TEST(RpcServerTest, HealthIsWhatTheOwnerSays) {
  const auto server = Start({"127.0.0.1:0"});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->addresses()[0];
  using grpc::health::v1::HealthCheckResponse;
  EXPECT_EQ(Health(address), HealthCheckResponse::NOT_SERVING);
  (*server)->SetServing(true);
  EXPECT_EQ(Health(address), HealthCheckResponse::SERVING);
  (*server)->SetServing(false);
  EXPECT_EQ(Health(address), HealthCheckResponse::NOT_SERVING);
}

TEST(RpcServerTest, ATakenPortIsNamed) {
  const auto first = Start({"127.0.0.1:0"});
  ASSERT_TRUE(first.ok());
  const std::string address = (*first)->addresses()[0];
  const auto second = Start({address});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(address));
}

TEST(RpcServerTest, ALivingUnixSocketIsNotReplaced) {
  TempDir dir;
  const std::string address = absl::StrCat("unix:", dir.File("s"));
  auto first = Start({address});
  ASSERT_TRUE(first.ok()) << first.status();
  (*first)->SetServing(true);
  EXPECT_EQ(Start({address}).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Health(address), grpc::health::v1::HealthCheckResponse::SERVING);
  // Free again when its owner has ended.
  *first = nullptr;
  EXPECT_TRUE(Start({address}).ok());
}

// A server that does not get to accept just now is alive, too.
TEST(RpcServerTest, ABusyUnixSocketIsNotReplaced) {
  TempDir dir;
  RawListener listener(dir.File("s"), /*backlog=*/1);
  listener.FillBacklog(dir.File("s"));
  EXPECT_EQ(Start({absl::StrCat("unix:", dir.File("s"))}).status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST(RpcServerTest, ALeftOverSocketFileIsReplaced) {
  TempDir dir;
  { RawListener died(dir.File("s"), 1); }
  ASSERT_EQ(access(dir.File("s").c_str(), F_OK), 0);
  const auto server = Start({absl::StrCat("unix:", dir.File("s"))});
  ASSERT_TRUE(server.ok()) << server.status();
}

TEST(RpcServerTest, PlainTextIsForThisMachineAloneUnlessAllowed) {
  for (const char* address :
       {"127.0.0.1:0", "127.8.9.1:0", "localhost:0", "[::1]:0"}) {
    const auto server = Start({address});
    // A machine may be without IPv6.
    EXPECT_TRUE(server.ok() || absl::IsUnavailable(server.status())) << address;
  }
  for (const char* address :
       {"0.0.0.0:0", "[::]:0", "10.0.0.1:0", "example.org:0",
        "127.0.0.1.example.org:0", "localhost.:0", "ipv4:127.0.0.1:0",
        "[::ffff:127.0.0.1]:0", "128.0.0.1:0"}) {
    const auto server = Start({"127.0.0.1:0", address});
    EXPECT_EQ(server.status().code(), absl::StatusCode::kFailedPrecondition)
        << address;
    EXPECT_THAT(std::string(server.status().message()),
                HasSubstr(absl::StrCat("listen address ", address,
                                       ": other machines reach it")));
  }
  RpcServerOptions options;
  options.listen = {"0.0.0.0:0"};
  options.allow_plaintext = true;
  EXPECT_TRUE(RpcServer::Start(options, {}).ok());
}

TEST(RpcServerTest, AnAddressThatIsNoneIsNamed) {
  for (const char* address : {"foo", "127.0.0.1:99999", "127.0.0.1:", ":",
                              "127.0.0.1:-1", "127.0.0.1:http"}) {
    const auto server = Start({address});
    EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument)
        << address;
    EXPECT_THAT(std::string(server.status().message()), HasSubstr(address));
  }
}

TEST(RpcServerTest, ATooLongPathIsNamed) {
  const auto server =
      Start({absl::StrCat("unix:/tmp/", std::string(200, 'x'))});
  EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("107 bytes"));
}

}  // namespace
}  // namespace troupe

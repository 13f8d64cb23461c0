#include "common/rpc/rpc_server.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/rpc/local_address.h"
#include "common/status_macros.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace troupe {
namespace {

constexpr absl::string_view kUnix = "unix:";

// gRPC 1.51 shares one completion queue for callbacks among all servers and
// channels of a process, and now and then aborts when it destroys it with the
// last of them ("assertion failed: prior > 0"): at the end of a process, or
// before its next server. So the first server that has ended stays.
void KeepOne(std::unique_ptr<grpc::Server> server) {
  // Takes the first; every other one ends with this function.
  [[maybe_unused]] static auto* const kept =
      new std::unique_ptr<grpc::Server>(std::move(server));
}

// gRPC replaces any socket file, also that of a living server: ask first.
absl::Status PrepareUnixSocket(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen address unix:", path, ": the path is longer than ",
                     sizeof(address.sun_path) - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) {
    return absl::InternalError(absl::StrCat("socket: ", strerror(errno)));
  }
  // EAGAIN: somebody listens, but does not accept just now.
  const bool listening =
      connect(fd, reinterpret_cast<const sockaddr*>(&address),
              sizeof(address)) == 0 ||
      errno == EAGAIN;
  close(fd);
  if (listening) {
    return absl::AlreadyExistsError(
        absl::StrCat("listen address unix:", path, ": already in use"));
  }
  return absl::OkStatus();
}

bool IsHostAndPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  return colon != std::string::npos && colon > 0 &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port <= 65535;
}

// One address with the credentials for it.
struct Listener {
  std::string address;
  std::shared_ptr<grpc::ServerCredentials> credentials;
};

// The address as gRPC is to listen on it, checked and with credentials.
absl::StatusOr<Listener> MakeListener(
    const std::string& address,
    const std::shared_ptr<grpc::ServerCredentials>& credentials,
    bool allow_plaintext) {
  const Listener plain = {address, grpc::InsecureServerCredentials()};
  if (absl::StartsWith(address, kUnix)) {
    absl::Status status = PrepareUnixSocket(address.substr(kUnix.size()));
    if (!status.ok()) return status;
    return plain;
  }
  if (!IsHostAndPort(address)) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen address ", address,
                     ": neither host:port, port at most 65535, nor "
                     "unix:/path"));
  }
  if (credentials != nullptr) return Listener{address, credentials};
  ABSL_RETURN_IF_ERROR(CheckPlaintext(address, allow_plaintext));
  return plain;
}

sigset_t TerminationSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const RpcServerOptions& options,
    const std::vector<grpc::Service*>& services) {
  grpc::EnableDefaultHealthCheckService(true);
  if (options.reflection) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  }
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(options.max_receive_bytes);
  builder.SetMaxSendMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Peers ping idle connections to notice a dead host (rpc_channel.cc).
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  // A client has so long for its handshake; gRPC's default is two minutes.
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10000);
  std::vector<Listener> listeners;
  for (const bool is_admin : {false, true}) {
    for (const std::string& address :
         is_admin ? options.admin_listen : options.listen) {
      ABSL_ASSIGN_OR_RETURN(listeners.emplace_back(),
                            MakeListener(address,
                                         is_admin ? options.admin_credentials
                                                  : options.credentials,
                                         options.allow_plaintext));
    }
  }
  std::vector<int> ports(listeners.size(), 0);
  for (size_t i = 0; i < listeners.size(); ++i) {
    builder.AddListeningPort(listeners[i].address, listeners[i].credentials,
                             &ports[i]);
  }
  for (grpc::Service* service : services) builder.RegisterService(service);
  auto server = std::unique_ptr<RpcServer>(new RpcServer);
  server->server_ = builder.BuildAndStart();
  for (size_t i = 0; i < listeners.size(); ++i) {
    const std::string& listen = listeners[i].address;
    if (server->server_ == nullptr || ports[i] == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", listen,
                       ": the address is in use or not of this machine"));
    }
    if (absl::StartsWith(listen, kUnix)) {
      server->addresses_.push_back(listen);
    } else {
      server->addresses_.push_back(
          absl::StrCat(listen.substr(0, listen.rfind(':')), ":", ports[i]));
    }
  }
  server->SetServing(false);
  return server;
}

RpcServer::~RpcServer() { Shutdown(milliseconds(0)); }

void RpcServer::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(serving);
  server_->GetHealthCheckService()->SetServingStatus("", serving);
}

void RpcServer::Shutdown(milliseconds grace) {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now() + grace);
  server_->Wait();
  KeepOne(std::move(server_));
}

void BlockTerminationSignals() {
  const sigset_t signals = TerminationSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

int WaitForTermination(milliseconds drain_limit) {
  const sigset_t signals = TerminationSignals();
  int received = 0;
  while (sigwait(&signals, &received) != 0) {
  }
  std::thread([signals, drain_limit] {
    const SteadyTime end = std::chrono::steady_clock::now() + drain_limit;
    int second = 0;
    do {  // being stopped and continued interrupts the wait
      const auto left = std::max(end - std::chrono::steady_clock::now(),
                                 std::chrono::steady_clock::duration::zero());
      const auto seconds =
          std::chrono::duration_cast<std::chrono::seconds>(left);
      timespec limit;
      limit.tv_sec = seconds.count();
      limit.tv_nsec =
          std::chrono::duration_cast<std::chrono::nanoseconds>(left - seconds)
              .count();
      second = sigtimedwait(&signals, nullptr, &limit);
    } while (second < 0 && errno == EINTR);
    const char text_signal[] = "second signal: ending at once\n";
    const char text_limit[] = "drain time is over: ending at once\n";
    const char* text = second > 0 ? text_signal : text_limit;
    (void)!write(STDERR_FILENO, text, strlen(text));
    _exit(1);
  }).detach();
  return received;
}

absl::Status CheckTermination() {
  sigset_t pending;
  sigpending(&pending);
  if (sigismember(&pending, SIGTERM) == 1 ||
      sigismember(&pending, SIGINT) == 1) {
    return absl::CancelledError("told to end while starting");
  }
  return absl::OkStatus();
}

void DieWithParent() { prctl(PR_SET_PDEATHSIG, SIGTERM); }

}  // namespace troupe

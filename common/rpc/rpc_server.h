// A gRPC server with what every service of Troupe needs around it: health,
// reflection, limits, and an orderly end.
#ifndef TROUPE_COMMON_RPC_RPC_SERVER_H_
#define TROUPE_COMMON_RPC_RPC_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"

namespace troupe {

struct RpcServerOptions {
  // "host:port" (port 0: any free one) or "unix:/path". A left-over socket
  // file that nobody listens on is replaced.
  std::vector<std::string> listen;
  // Of the TCP addresses; null: plain text. Unix sockets are always plain:
  // only this user's processes reach them.
  std::shared_ptr<grpc::ServerCredentials> credentials;
  // Further addresses, whose TCP ones have credentials of their own.
  std::vector<std::string> admin_listen;
  std::shared_ptr<grpc::ServerCredentials> admin_credentials;
  // Plain text also where other machines reach it; else that is an error.
  bool allow_plaintext = false;
  // Larger messages are refused with RESOURCE_EXHAUSTED.
  int max_receive_bytes = 64 << 20;
  // grpc.reflection.v1alpha, for grpcurl and its kind.
  bool reflection = false;
};

// Owns the server. Thread-safe. Starts NOT_SERVING in grpc.health.v1; the
// owner says when it is ready.
class RpcServer {
 public:
  // The services must outlive the server.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const RpcServerOptions& options,
      const std::vector<grpc::Service*>& services);
  ~RpcServer();

  // The addresses that it listens on, ports resolved, in the order of
  // options.listen and options.admin_listen.
  const std::vector<std::string>& addresses() const { return addresses_; }

  // What grpc.health.v1 answers for "" (whole server).
  void SetServing(bool serving);

  // Accepts no new calls, waits at most `grace` for those that run, cancels
  // the rest, returns when all have ended.
  void Shutdown(milliseconds grace);

 private:
  RpcServer() = default;
  std::vector<std::string> addresses_;
  std::unique_ptr<grpc::Server> server_;
};

// Blocks SIGTERM and SIGINT in this thread and those it starts, and ignores
// SIGPIPE. Call at the start of main, before any thread.
void BlockTerminationSignals();

// Waits for SIGTERM or SIGINT; returns its number. A second one, or
// `drain_limit` passing before the process has ended by itself, ends the
// process at once with exit status 1.
int WaitForTermination(milliseconds drain_limit);

// Cancelled when SIGTERM or SIGINT came before WaitForTermination: asked by
// what takes long at the start.
absl::Status CheckTermination();

// Ends this process when its parent does (Linux), so that a supervisor that is
// killed leaves no children behind.
void DieWithParent();

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_RPC_SERVER_H_

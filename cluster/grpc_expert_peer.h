// An expert process in another process: a gRPC stream, and shared memory where
// both are on one host.
#ifndef TROUPE_CLUSTER_GRPC_EXPERT_PEER_H_
#define TROUPE_CLUSTER_GRPC_EXPERT_PEER_H_

#include <memory>
#include <string>

#include "cluster/expert_peer.h"
#include "common/rpc/doorbell.h"
#include "grpcpp/security/credentials.h"

namespace troupe {

enum class HopMode {
  kAuto,  // shared memory where it can be had
  kGrpc,  // gRPC alone
  kShm,   // a process without shared memory is not connected to
};

struct GrpcExpertPeerOptions {
  std::string address;  // "host:port" or "unix:/path"
  // For host:port; null: plain text.
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  // Go into the hello.
  std::string router_name;
  std::string model_fingerprint;
  HopMode hop = HopMode::kAuto;
  // Rung by the process when it has written into shared memory; the waiting
  // thread calls Poll then. Without one: gRPC alone.
  std::shared_ptr<Doorbell> bell;
};

// The stream is the control channel: hello, description, liveness, and frames
// for which shared memory has no room. When the process offers shared memory,
// the router connects to it before the listener hears of the description, so
// that a peer's transport is settled when it is ready.
std::unique_ptr<ExpertPeer> MakeGrpcExpertPeer(GrpcExpertPeerOptions options);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_GRPC_EXPERT_PEER_H_

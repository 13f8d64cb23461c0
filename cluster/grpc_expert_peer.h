// An expert process behind gRPC: one bidirectional stream.
#ifndef TROUPE_CLUSTER_GRPC_EXPERT_PEER_H_
#define TROUPE_CLUSTER_GRPC_EXPERT_PEER_H_

#include <memory>
#include <string>

#include "cluster/expert_peer.h"

namespace troupe {

// address: "host:port" or "unix:/path". `router_name` and `model_fingerprint`
// go into the hello.
std::unique_ptr<ExpertPeer> MakeGrpcExpertPeer(
    const std::string& address, const std::string& router_name,
    const std::string& model_fingerprint);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_GRPC_EXPERT_PEER_H_

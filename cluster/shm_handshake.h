// What router and expert process say on the unix socket that hands over shared
// memory; docs/wire_format.md.
#ifndef TROUPE_CLUSTER_SHM_HANDSHAKE_H_
#define TROUPE_CLUSTER_SHM_HANDSHAKE_H_

#include <cstddef>
#include <cstdint>

namespace troupe {

inline constexpr uint32_t kShmVersion = 2;

// From the router, with the descriptor of its doorbell. Both run on one
// machine: the bytes are those of the structs.
struct ShmHello {
  static constexpr uint32_t kMagic = 0x31485254;  // "TRH1"
  static constexpr size_t kTokenBytes = 16;
  uint32_t magic;
  uint32_t version;
  char token[kTokenBytes];  // of the ShmOffer
};

// From the expert process, with its doorbell and the rings. After it neither
// side sends anything; the end of the socket is the end of the connection.
struct ShmWelcome {
  static constexpr uint32_t kMagic = 0x31575254;  // "TRW1"
  uint32_t magic;
  uint32_t version;
  uint64_t to_server_bytes;
  uint64_t to_client_bytes;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_SHM_HANDSHAKE_H_

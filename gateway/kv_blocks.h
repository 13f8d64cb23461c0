// How full the KV caches behind a gateway are.
#ifndef TROUPE_GATEWAY_KV_BLOCKS_H_
#define TROUPE_GATEWAY_KV_BLOCKS_H_

#include <cstdint>

namespace troupe {

struct KvBlocks {
  uint64_t total = 0;
  uint64_t free = 0;  // that no sequence holds
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_KV_BLOCKS_H_

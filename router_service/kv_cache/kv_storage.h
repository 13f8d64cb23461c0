// The memory of the paged KV cache.
#ifndef TROUPE_ROUTER_SERVICE_KV_CACHE_KV_STORAGE_H_
#define TROUPE_ROUTER_SERVICE_KV_CACHE_KV_STORAGE_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/attention.h"

namespace troupe {

// Owns keys and values of all layers; a block id means the same block in every
// layer. Pages are touched when they are first written.
class KvStorage {
 public:
  // ResourceExhausted when the memory cannot be reserved; the message has the
  // arithmetic.
  static absl::StatusOr<std::unique_ptr<KvStorage>> Create(size_t num_layers,
                                                           size_t num_blocks,
                                                           size_t num_kv_heads,
                                                           size_t head_dim,
                                                           DataType dtype);
  ~KvStorage();
  KvStorage(const KvStorage&) = delete;
  KvStorage& operator=(const KvStorage&) = delete;

  KvCacheView layer(size_t i) const;
  // Keys and values of all layers.
  void CopyBlock(size_t from, size_t to);
  size_t num_bytes() const { return num_bytes_; }

 private:
  KvStorage() = default;

  DataType dtype_ = DataType::kF32;
  uint8_t* data_ = nullptr;  // [num_layers][keys, values][num_blocks][block]
  size_t num_bytes_ = 0;
  size_t num_layers_ = 0;
  size_t num_blocks_ = 0;
  size_t num_kv_heads_ = 0;
  size_t head_dim_ = 0;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_KV_CACHE_KV_STORAGE_H_

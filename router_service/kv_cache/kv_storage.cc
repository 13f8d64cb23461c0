#include "router_service/kv_cache/kv_storage.h"

#include <sys/mman.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace troupe {

absl::StatusOr<std::unique_ptr<KvStorage>> KvStorage::Create(
    size_t num_layers, size_t num_blocks, size_t num_kv_heads, size_t head_dim,
    DataType dtype) {
  auto storage = std::unique_ptr<KvStorage>(new KvStorage);
  storage->num_layers_ = num_layers;
  storage->num_blocks_ = num_blocks;
  storage->num_kv_heads_ = num_kv_heads;
  storage->head_dim_ = head_dim;
  storage->dtype_ = dtype;
  size_t bytes = 2 * storage->layer(0).tile_bytes();
  for (const size_t factor : {num_layers, num_blocks, num_kv_heads}) {
    if (__builtin_mul_overflow(bytes, factor, &bytes)) bytes = SIZE_MAX;
  }
  void* data = bytes == SIZE_MAX
                   ? MAP_FAILED
                   : mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "KV cache: ", num_blocks, " blocks x ", num_layers, " layers x ",
        num_kv_heads, " heads x ", head_dim, " x ", kKvBlockSize,
        " positions x 2 x ", SizeOf(dtype), " bytes cannot be reserved"));
  }
  madvise(data, bytes, MADV_HUGEPAGE);
  storage->data_ = static_cast<uint8_t*>(data);
  storage->num_bytes_ = bytes;
  return storage;
}

KvStorage::~KvStorage() {
  if (data_ != nullptr) munmap(data_, num_bytes_);
}

KvCacheView KvStorage::layer(size_t i) const {
  KvCacheView view;
  view.dtype = dtype_;
  view.num_kv_heads = num_kv_heads_;
  view.head_dim = head_dim_;
  const size_t half = num_blocks_ * view.block_bytes();
  view.keys = data_ + 2 * i * half;
  view.values = view.keys + half;
  return view;
}

void KvStorage::CopyBlock(size_t from, size_t to) {
  CHECK_LT(from, num_blocks_);
  CHECK_LT(to, num_blocks_);
  for (size_t i = 0; i < num_layers_; ++i) {
    const KvCacheView view = layer(i);
    const size_t size = view.block_bytes();
    for (uint8_t* half : {view.keys, view.values}) {
      std::memcpy(half + to * size, half + from * size, size);
    }
  }
}

}  // namespace troupe

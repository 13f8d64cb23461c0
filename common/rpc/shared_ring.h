// Messages between two processes through shared memory.
#ifndef TROUPE_COMMON_RPC_SHARED_RING_H_
#define TROUPE_COMMON_RPC_SHARED_RING_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "common/rpc/sealed_memory.h"

namespace troupe {

// One direction: a ring of bytes with one writer and one reader. A message is a
// header of 64 bytes, which begins with its size, and its bytes, padded to a
// multiple of 64; so the bytes begin at a multiple of 64. The ring is mapped
// twice in a row, so that every message lies in one piece.
//
// Positions count bytes from the start of time. The writer owns `tail`, the end
// of what it has published; the reader owns `head`, the begin of what it has
// not given back. Each keeps its own position in private memory and only
// publishes it here; the other's is checked whenever it is read, since the
// other process may write anything at any time.
//
// Ordering: a message is written, then `tail` is stored with release; the
// reader loads it with acquire, then reads the message. It reads, then stores
// `head` with release; the writer loads it with acquire, then overwrites.
struct RingPositions {
  alignas(64) std::atomic<uint64_t> tail;
  alignas(64) std::atomic<uint64_t> head;
};

// Not thread-safe.
class RingWriter {
 public:
  // data: mapped twice; capacity: a power of two, the size of one mapping.
  RingWriter(RingPositions* positions, char* data, size_t capacity)
      : positions_(positions), data_(data), capacity_(capacity) {}

  // What a message takes of the ring.
  static uint64_t Footprint(uint64_t num_bytes);

  // Memory for a message, at a multiple of 64; null when there is no room now.
  // Several may be reserved; they are committed in the same order.
  char* Reserve(size_t num_bytes);
  // Publishes the oldest reserved message. Does not wake the reader.
  void Commit();

  // Whether the other side's position was impossible; then nothing is
  // reserved any more.
  bool corrupt() const { return corrupt_; }
  size_t capacity() const { return capacity_; }

 private:
  RingPositions* const positions_;
  char* const data_;
  const size_t capacity_;
  uint64_t tail_ = 0;                // published
  uint64_t reserved_ = 0;            // end of what is reserved
  uint64_t head_ = 0;                // the reader's, as last seen
  std::deque<uint64_t> footprints_;  // of what is reserved
  bool corrupt_ = false;
};

// Not thread-safe.
class RingReader {
 public:
  struct Message {
    const char* data;  // at a multiple of 64
    size_t size;
    uint64_t position;  // for Release
  };

  RingReader(RingPositions* positions, const char* data, size_t capacity)
      : positions_(positions), data_(data), capacity_(capacity) {}

  // The next message, none when there is none. The writer may change the bytes
  // as long as they lie here: what decides anything is copied out first, then
  // checked. DataLoss when positions or sizes make no sense; then always.
  absl::StatusOr<std::optional<Message>> Next();
  // Gives a message back, in any order.
  void Release(uint64_t position);
  size_t capacity() const { return capacity_; }

 private:
  struct Held {
    uint64_t position;
    uint64_t footprint;
    bool released;
  };

  RingPositions* const positions_;
  const char* const data_;
  const size_t capacity_;
  uint64_t head_ = 0;  // published
  uint64_t next_ = 0;  // end of what Next has returned
  uint64_t tail_ = 0;  // the writer's, as last seen
  std::deque<Held> held_;
  bool corrupt_ = false;
};

// Two rings in one SealedMemory: a page of positions, then the bytes of the
// ring to the server, then those of the ring to the client.
class SharedRings {
 public:
  struct Capacities {  // bytes
    uint64_t to_server = 0;
    uint64_t to_client = 0;
  };
  enum class Side { kServer, kClient };

  static constexpr uint64_t kMinCapacity = uint64_t{1} << 16;
  static constexpr uint64_t kMaxCapacity = uint64_t{1} << 30;
  // InvalidArgument unless both are powers of two within these bounds.
  static absl::Status Check(const Capacities& capacities);

  static absl::StatusOr<std::unique_ptr<SharedRings>> Create(
      const Capacities& capacities, Side side);
  // Checks capacities, seals and size before anything is mapped.
  static absl::StatusOr<std::unique_ptr<SharedRings>> Attach(
      UniqueFd fd, const Capacities& capacities, Side side);

  RingWriter& writer() { return writer_; }
  RingReader& reader() { return reader_; }
  const SealedMemory& memory() const { return memory_; }

 private:
  struct Maps {
    Mapping positions;
    Mapping to_server;
    Mapping to_client;
  };

  SharedRings(SealedMemory memory, Maps maps, const Capacities& capacities,
              Side side);
  static absl::StatusOr<std::unique_ptr<SharedRings>> Make(
      absl::StatusOr<SealedMemory> memory, const Capacities& capacities,
      Side side);

  const SealedMemory memory_;
  const Maps maps_;
  RingWriter writer_;
  RingReader reader_;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_SHARED_RING_H_

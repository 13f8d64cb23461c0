#include "common/rpc/shared_ring.h"

#include <unistd.h>

#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace troupe {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kHeaderBytes = 64;

static_assert(std::atomic<uint64_t>::is_always_lock_free);

// The header's only field. One access: the other process may change it.
uint64_t LoadSize(const char* header) {
  return std::atomic_ref<const uint64_t>(
             *reinterpret_cast<const uint64_t*>(header))
      .load(std::memory_order_relaxed);
}

size_t PositionsBytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

size_t TotalBytes(const SharedRings::Capacities& capacities) {
  return PositionsBytes() + capacities.to_server + capacities.to_client;
}

}  // namespace

uint64_t RingWriter::Footprint(uint64_t num_bytes) {
  return kHeaderBytes + (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

char* RingWriter::Reserve(size_t num_bytes) {
  if (corrupt_ || num_bytes > capacity_) return nullptr;
  const uint64_t footprint = Footprint(num_bytes);
  if (footprint > capacity_ - (reserved_ - head_)) {
    const uint64_t head = positions_->head.load(std::memory_order_acquire);
    // It only grows, and never past what was published.
    if (head - head_ > tail_ - head_) {
      corrupt_ = true;
      return nullptr;
    }
    head_ = head;
    if (footprint > capacity_ - (reserved_ - head_)) return nullptr;
  }
  char* const header = data_ + (reserved_ & (capacity_ - 1));
  std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(header))
      .store(num_bytes, std::memory_order_relaxed);
  reserved_ += footprint;
  footprints_.push_back(footprint);
  return header + kHeaderBytes;
}

void RingWriter::Commit() {
  CHECK(!footprints_.empty());
  tail_ += footprints_.front();
  footprints_.pop_front();
  positions_->tail.store(tail_, std::memory_order_release);
}

absl::StatusOr<std::optional<RingReader::Message>> RingReader::Next() {
  if (corrupt_) return absl::DataLossError("the ring is corrupt");
  if (next_ == tail_) {
    const uint64_t tail = positions_->tail.load(std::memory_order_acquire);
    if (tail == next_) return std::optional<Message>();
    // At least one header, and no more than there is room for.
    const uint64_t news = tail - next_;
    if (news > capacity_ - (next_ - head_) || news % kAlignment != 0) {
      corrupt_ = true;
      return absl::DataLossError(
          absl::StrCat("ring position ", tail, " after ", next_));
    }
    tail_ = tail;
  }
  const char* const header = data_ + (next_ & (capacity_ - 1));
  const uint64_t size = LoadSize(header);
  if (size > capacity_ || RingWriter::Footprint(size) > tail_ - next_) {
    corrupt_ = true;
    return absl::DataLossError(absl::StrCat(
        "ring message of ", size, " bytes with ", tail_ - next_, " published"));
  }
  const Message message = {header + kHeaderBytes, size, next_};
  held_.push_back({next_, RingWriter::Footprint(size), false});
  next_ += held_.back().footprint;
  return std::optional<Message>(message);
}

void RingReader::Release(uint64_t position) {
  // Nearly always the first one.
  for (Held& held : held_) {
    if (held.position == position) {
      held.released = true;
      break;
    }
  }
  const uint64_t before = head_;
  while (!held_.empty() && held_.front().released) {
    head_ += held_.front().footprint;
    held_.pop_front();
  }
  if (head_ != before) {
    positions_->head.store(head_, std::memory_order_release);
  }
}

absl::Status SharedRings::Check(const Capacities& capacities) {
  for (const uint64_t capacity : {capacities.to_server, capacities.to_client}) {
    if (!std::has_single_bit(capacity) || capacity < kMinCapacity ||
        capacity > kMaxCapacity) {
      return absl::InvalidArgumentError(
          absl::StrCat("a ring of ", capacity, " bytes; powers of two from ",
                       kMinCapacity, " to ", kMaxCapacity));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SharedRings>> SharedRings::Create(
    const Capacities& capacities, Side side) {
  const absl::Status status = Check(capacities);
  if (!status.ok()) return status;
  return Make(SealedMemory::Create("troupe-ring", TotalBytes(capacities)),
              capacities, side);
}

absl::StatusOr<std::unique_ptr<SharedRings>> SharedRings::Attach(
    UniqueFd fd, const Capacities& capacities, Side side) {
  const absl::Status status = Check(capacities);
  if (!status.ok()) return status;
  return Make(SealedMemory::Attach(std::move(fd), TotalBytes(capacities)),
              capacities, side);
}

absl::StatusOr<std::unique_ptr<SharedRings>> SharedRings::Make(
    absl::StatusOr<SealedMemory> memory, const Capacities& capacities,
    Side side) {
  if (!memory.ok()) return memory.status();
  absl::StatusOr<Mapping> positions =
      Mapping::Map(*memory, 0, PositionsBytes());
  if (!positions.ok()) return positions.status();
  absl::StatusOr<Mapping> to_server =
      Mapping::MapTwice(*memory, PositionsBytes(), capacities.to_server);
  if (!to_server.ok()) return to_server.status();
  absl::StatusOr<Mapping> to_client = Mapping::MapTwice(
      *memory, PositionsBytes() + capacities.to_server, capacities.to_client);
  if (!to_client.ok()) return to_client.status();
  return std::unique_ptr<SharedRings>(new SharedRings(
      *std::move(memory),
      Maps{*std::move(positions), *std::move(to_server), *std::move(to_client)},
      capacities, side));
}

SharedRings::SharedRings(SealedMemory memory, Maps maps,
                         const Capacities& capacities, Side side)
    : memory_(std::move(memory)),
      maps_(std::move(maps)),
      writer_(
          reinterpret_cast<RingPositions*>(maps_.positions.data()) +
              (side == Side::kServer ? 1 : 0),
          side == Side::kServer ? maps_.to_client.data()
                                : maps_.to_server.data(),
          side == Side::kServer ? capacities.to_client : capacities.to_server),
      reader_(reinterpret_cast<RingPositions*>(maps_.positions.data()) +
                  (side == Side::kServer ? 0 : 1),
              side == Side::kServer ? maps_.to_server.data()
                                    : maps_.to_client.data(),
              side == Side::kServer ? capacities.to_server
                                    : capacities.to_client) {}

}  // namespace troupe

#include "common/rpc/shared_ring.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/rpc/doorbell.h"
#include "common/rpc/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using Side = SharedRings::Side;

constexpr uint64_t kCapacity = SharedRings::kMinCapacity;
constexpr SharedRings::Capacities kCapacities = {kCapacity, 2 * kCapacity};

UniqueFd Duplicate(int fd) { return UniqueFd(dup(fd)); }

// Both ends in one process, each with its own mappings.
class SharedRingTest : public testing::Test {
 protected:
  // The page of positions, as a hostile process writes it.
  RingPositions* Positions() { return positions_; }

  SharedRingTest() {
    server_ = *SharedRings::Create(kCapacities, Side::kServer);
    client_ = *SharedRings::Attach(Duplicate(server_->memory().fd()),
                                   kCapacities, Side::kClient);
    map_ = *Mapping::Map(server_->memory(), 0, 4096);
    positions_ = reinterpret_cast<RingPositions*>(map_.data());
    data_map_ = *Mapping::Map(server_->memory(), 4096, kCapacity);
  }

  static bool Write(RingWriter& writer, const std::string& bytes) {
    char* to = writer.Reserve(bytes.size());
    if (to == nullptr) return false;
    std::memcpy(to, bytes.data(), bytes.size());
    writer.Commit();
    return true;
  }
  static std::string Text(const RingReader::Message& message) {
    return std::string(message.data, message.size);
  }

  std::unique_ptr<SharedRings> server_;
  std::unique_ptr<SharedRings> client_;
  Mapping map_;
  Mapping data_map_;  // of the ring to the server, once
  RingPositions* positions_ = nullptr;
};

TEST_F(SharedRingTest, MessagesGoBothWays) {
  EXPECT_FALSE((*server_->reader().Next()).has_value());
  ASSERT_TRUE(Write(client_->writer(), "to the server"));
  ASSERT_TRUE(Write(client_->writer(), ""));
  ASSERT_TRUE(Write(server_->writer(), "to the client"));
  const auto first = *server_->reader().Next();
  const auto second = *server_->reader().Next();
  EXPECT_EQ(Text(*first), "to the server");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first->data) % 64, 0u);
  EXPECT_EQ(Text(*second), "");
  EXPECT_FALSE((*server_->reader().Next()).has_value());
  EXPECT_EQ(Text(**client_->reader().Next()), "to the client");
}

TEST_F(SharedRingTest, WhatIsReservedIsSeenWhenItIsCommitted) {
  RingWriter& writer = client_->writer();
  char* a = writer.Reserve(1);
  char* b = writer.Reserve(1);
  *b = 'b';
  *a = 'a';
  EXPECT_FALSE((*server_->reader().Next()).has_value());
  writer.Commit();
  EXPECT_EQ(Text(**server_->reader().Next()), "a");
  EXPECT_FALSE((*server_->reader().Next()).has_value());
  writer.Commit();
  EXPECT_EQ(Text(**server_->reader().Next()), "b");
}

TEST_F(SharedRingTest, AFullRingTakesNothingUntilTheFirstIsGivenBack) {
  const std::string quarter(kCapacity / 4 - 64, 'x');
  std::vector<uint64_t> positions;
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(Write(client_->writer(), quarter));
    positions.push_back((*server_->reader().Next())->position);
  }
  EXPECT_FALSE(Write(client_->writer(), ""));
  // In any order, but room comes from the front.
  server_->reader().Release(positions[1]);
  server_->reader().Release(positions[2]);
  EXPECT_FALSE(Write(client_->writer(), ""));
  server_->reader().Release(positions[0]);
  EXPECT_TRUE(Write(client_->writer(), quarter));
  EXPECT_TRUE(Write(client_->writer(), quarter));
  EXPECT_TRUE(Write(client_->writer(), quarter));
  EXPECT_FALSE(Write(client_->writer(), ""));
  EXPECT_FALSE(client_->writer().corrupt());
}

TEST_F(SharedRingTest, AMessageAsLargeAsTheRing) {
  RingWriter& writer = client_->writer();
  EXPECT_EQ(writer.Reserve(kCapacity - 63), nullptr);
  EXPECT_EQ(writer.Reserve(SIZE_MAX), nullptr);
  EXPECT_EQ(writer.Reserve(SIZE_MAX - 100), nullptr);
  const std::string all(kCapacity - 64, 'y');
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(Write(writer, all));
    const auto message = *server_->reader().Next();
    EXPECT_EQ(Text(*message), all);
    server_->reader().Release(message->position);
    // From now on every message of that size goes past the end.
    ASSERT_TRUE(Write(writer, "odd"));
    server_->reader().Release((*server_->reader().Next())->position);
  }
}

// One thread writes, one reads, gives back out of order, and answers. The
// bytes say whether anything was seen too early or overwritten too soon. Under
// ThreadSanitizer this is the test of the memory ordering.
TEST_F(SharedRingTest, TwoThreads) {
  constexpr int kMessages = 20000;
  const auto content = [](std::mt19937& random) {
    const size_t size =
        random() % 50 == 0 ? random() % (kCapacity / 2) : random() % 700;
    return std::string(size, static_cast<char>(random() % 256));
  };
  std::thread writer([&] {
    std::mt19937 random(3);
    for (int i = 0; i < kMessages; ++i) {
      const std::string bytes = content(random);
      while (!Write(client_->writer(), bytes)) std::this_thread::yield();
    }
  });
  std::mt19937 random(3);
  std::mt19937 order(4);
  std::vector<uint64_t> held;
  for (int i = 0; i < kMessages;) {
    const auto message = server_->reader().Next();
    ASSERT_TRUE(message.ok()) << message.status();
    if (message->has_value()) {
      EXPECT_EQ(Text(**message), content(random)) << i;
      held.push_back((*message)->position);
      ++i;
    } else {
      std::this_thread::yield();
    }
    while (held.size() > 3 || (!message->has_value() && !held.empty())) {
      const size_t at = order() % held.size();
      server_->reader().Release(held[at]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  writer.join();
}

// What another process may write into the positions.
TEST_F(SharedRingTest, ImpossiblePositionsAreDataLoss) {
  for (const uint64_t tail :
       {uint64_t{1}, uint64_t{63}, kCapacity + 64, uint64_t{1} << 63,
        ~uint64_t{0}, ~uint64_t{0} - 63}) {
    SCOPED_TRACE(tail);
    auto server = *SharedRings::Create(kCapacities, Side::kServer);
    Mapping map = *Mapping::Map(server->memory(), 0, 4096);
    auto* positions = reinterpret_cast<RingPositions*>(map.data());
    positions[0].tail.store(tail);
    EXPECT_EQ(server->reader().Next().status().code(),
              absl::StatusCode::kDataLoss);
    // Whatever it says later.
    positions[0].tail.store(0);
    EXPECT_FALSE(server->reader().Next().ok());
  }
  // Back to what was read already.
  ASSERT_TRUE(Write(client_->writer(), "one"));
  ASSERT_TRUE((*server_->reader().Next()).has_value());
  Positions()[0].tail.store(64);
  EXPECT_FALSE(server_->reader().Next().ok());
}

TEST_F(SharedRingTest, ImpossibleSizesAreDataLoss) {
  for (const uint64_t size : {uint64_t{65}, kCapacity, kCapacity + 1,
                              uint64_t{1} << 63, ~uint64_t{0}}) {
    SCOPED_TRACE(size);
    auto server = *SharedRings::Create(kCapacities, Side::kServer);
    Mapping map = *Mapping::Map(server->memory(), 0, 4096 + kCapacity);
    std::memcpy(map.data() + 4096, &size, sizeof(size));
    reinterpret_cast<RingPositions*>(map.data())[0].tail.store(128);
    const auto message = server->reader().Next();
    EXPECT_EQ(message.status().code(), absl::StatusCode::kDataLoss);
  }
}

TEST_F(SharedRingTest, ImpossibleHeadsStopTheWriter) {
  const std::string most(kCapacity - 200, 'z');
  for (const uint64_t head :
       {kCapacity, uint64_t{1} << 63, ~uint64_t{0}, kCapacity * 2}) {
    SCOPED_TRACE(head);
    auto client = *SharedRings::Create(kCapacities, Side::kClient);
    Mapping map = *Mapping::Map(client->memory(), 0, 4096);
    ASSERT_TRUE(Write(client->writer(), most));
    reinterpret_cast<RingPositions*>(map.data())[0].head.store(head);
    EXPECT_FALSE(Write(client->writer(), most));
    EXPECT_TRUE(client->writer().corrupt());
    EXPECT_FALSE(Write(client->writer(), ""));
  }
}

// The size changes all the time while it is read: every message is either
// within what was published, or an error.
TEST_F(SharedRingTest, ASizeThatChanges) {
  std::atomic<bool> stop = false;
  auto* size = reinterpret_cast<uint64_t*>(data_map_.data());
  std::thread hostile([&] {
    while (!stop) {
      for (const uint64_t value : {uint64_t{8}, kCapacity, ~uint64_t{0}}) {
        std::atomic_ref<uint64_t>(*size).store(value,
                                               std::memory_order_relaxed);
      }
    }
  });
  Positions()[0].tail.store(128);
  for (int i = 0; i < 2000; ++i) {
    auto reader = RingReader(Positions(), data_map_.data(), kCapacity);
    const auto message = reader.Next();
    if (message.ok()) {
      ASSERT_TRUE(message->has_value());
      EXPECT_LE((*message)->size, 8u);  // 0: before the first change
    } else {
      EXPECT_EQ(message.status().code(), absl::StatusCode::kDataLoss);
    }
  }
  stop = true;
  hostile.join();
}

TEST(SealedMemoryTest, CannotBeResized) {
  const auto memory = *SealedMemory::Create("test", 8192);
  EXPECT_NE(ftruncate(memory.fd(), 4096), 0);
  EXPECT_NE(ftruncate(memory.fd(), 16384), 0);
  EXPECT_NE(fcntl(memory.fd(), F_ADD_SEALS, F_SEAL_WRITE), 0);
}

TEST(SealedMemoryTest, OthersAreNotTaken) {
  {
    UniqueFd open(memfd_create("open", MFD_ALLOW_SEALING));
    ASSERT_EQ(ftruncate(open.get(), 4096), 0);
    EXPECT_THAT(
        std::string(
            SealedMemory::Attach(std::move(open), 4096).status().message()),
        HasSubstr("seals"));
  }
  {
    // All but the one against shrinking.
    UniqueFd partly(memfd_create("partly", MFD_ALLOW_SEALING));
    ASSERT_EQ(ftruncate(partly.get(), 4096), 0);
    ASSERT_EQ(fcntl(partly.get(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL), 0);
    EXPECT_FALSE(SealedMemory::Attach(std::move(partly), 4096).ok());
  }
  UniqueFd file(open("/dev/zero", O_RDWR));
  EXPECT_FALSE(SealedMemory::Attach(std::move(file), 4096).ok());
  EXPECT_FALSE(SealedMemory::Attach(UniqueFd(), 4096).ok());
  const auto memory = *SealedMemory::Create("test", 8192);
  EXPECT_TRUE(SealedMemory::Attach(Duplicate(memory.fd()), 8192).ok());
  for (const size_t size : {4096, 12288, 0}) {
    EXPECT_THAT(std::string(SealedMemory::Attach(Duplicate(memory.fd()), size)
                                .status()
                                .message()),
                HasSubstr("8192 bytes"));
  }
}

TEST(SharedRingsTest, CapacitiesAreChecked) {
  for (const uint64_t bad :
       {uint64_t{0}, uint64_t{4096}, kCapacity + 4096, kCapacity * 3,
        uint64_t{1} << 31, uint64_t{1} << 63, ~uint64_t{0}}) {
    EXPECT_FALSE(SharedRings::Create({bad, kCapacity}, Side::kServer).ok());
    EXPECT_FALSE(SharedRings::Create({kCapacity, bad}, Side::kServer).ok());
    EXPECT_FALSE(
        SharedRings::Attach(UniqueFd(), {kCapacity, bad}, Side::kClient).ok());
  }
  // What the other side says of the size must be true.
  const auto rings = *SharedRings::Create(kCapacities, Side::kServer);
  EXPECT_FALSE(SharedRings::Attach(Duplicate(rings->memory().fd()),
                                   {2 * kCapacity, 2 * kCapacity},
                                   Side::kClient)
                   .ok());
}

TEST(DoorbellTest, WaitEndsAtItsDeadline) {
  const auto bell = Doorbell::Create();
  const SteadyTime deadline =
      std::chrono::steady_clock::now() + milliseconds(5);
  EXPECT_FALSE(bell->Wait(bell->Current(), deadline));
  EXPECT_GE(std::chrono::steady_clock::now(), deadline);
  bell->Ring();
  EXPECT_TRUE(bell->Wait(0, kNoDeadline));
}

// Threads take turns, each on its own bell, with sleeps of every length in
// between: a ring that is not heard would hang.
TEST(DoorbellTest, NoRingIsLost) {
  const auto ping = Doorbell::Create();
  const auto pong = *Doorbell::Attach(Duplicate(ping->memory()->fd()));
  const auto back = Doorbell::Create();
  constexpr int kRounds = 20000;
  std::thread other([&] {
    uint32_t seen = 0;
    for (int i = 0; i < kRounds; ++i) {
      ASSERT_TRUE(ping->Wait(seen, kNoDeadline));
      seen = ping->Current();
      back->Ring();
    }
  });
  std::mt19937 random(1);
  uint32_t seen = 0;
  for (int i = 0; i < kRounds; ++i) {
    for (uint32_t n = random() % 200 == 0 ? random() % 50000 : 0; n > 0; --n) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    pong->Ring();
    ASSERT_TRUE(back->Wait(seen, kNoDeadline));
    seen = back->Current();
  }
  other.join();
  EXPECT_EQ(ping->num_spun() + ping->num_slept(), uint64_t{kRounds});
}

TEST(UnixSocketTest, HandsOverDescriptors) {
  const std::string address =
      "@troupe-test-" + std::to_string(getpid()) + "-hand";
  const UniqueFd listening = *ListenUnix(address);
  const UniqueFd client = *ConnectUnix(address);
  const UniqueFd server = *AcceptUnix(listening.get());
  const auto memory = *SealedMemory::Create("test", 4096);
  ASSERT_TRUE(SendMessage(client.get(), "hello", {memory.fd()}).ok());
  auto received = *ReceiveMessage(server.get(), 10, 1);
  EXPECT_EQ(received.bytes, "hello");
  ASSERT_EQ(received.fds.size(), 1u);
  EXPECT_TRUE(SealedMemory::Attach(std::move(received.fds[0]), 4096).ok());
  // More than agreed.
  ASSERT_TRUE(
      SendMessage(client.get(), "hello", {memory.fd(), memory.fd()}).ok());
  EXPECT_FALSE(ReceiveMessage(server.get(), 10, 1).ok());
  ASSERT_TRUE(SendMessage(client.get(), "hello", {}).ok());
  EXPECT_FALSE(ReceiveMessage(server.get(), 4, 1).ok());
  // Nobody says anything.
  SetSocketTimeout(server.get(), milliseconds(5));
  EXPECT_EQ(ReceiveMessage(server.get(), 10, 1).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(UnixSocketTest, ALeftOverFileIsReplacedALivingOneIsNot) {
  const std::string path = testing::TempDir() + "/s" + std::to_string(getpid());
  { const UniqueFd gone = *ListenUnix(path); }
  const auto again = ListenUnix(path);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_FALSE(ListenUnix(path).ok());
  EXPECT_TRUE(ConnectUnix(path).ok());
  unlink(path.c_str());
  EXPECT_FALSE(ConnectUnix(path).ok());
  EXPECT_FALSE(ListenUnix(std::string(200, 'x')).ok());
  EXPECT_FALSE(ListenUnix("").ok());
}

// A process that is killed while it writes: its end is seen, what it had
// published is whole, and nothing else is read.
TEST(SharedRingsTest, AProcessThatIsKilledWhileItWrites) {
  for (int round = 0; round < 5; ++round) {
    const std::string address = "@troupe-test-" + std::to_string(getpid()) +
                                "-kill-" + std::to_string(round);
    const UniqueFd listening = *ListenUnix(address);
    auto rings = *SharedRings::Create(kCapacities, Side::kServer);
    const auto bell = Doorbell::Create();
    const pid_t child = fork();
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);  // also when the test is wrong
      const auto socket = ConnectUnix(address);
      auto client = SharedRings::Attach(Duplicate(rings->memory().fd()),
                                        kCapacities, Side::kClient);
      const auto server_bell =
          Doorbell::Attach(Duplicate(bell->memory()->fd()));
      if (!socket.ok() || !client.ok() || !server_bell.ok()) _exit(1);
      for (uint32_t i = 0;;) {
        const size_t size = 100 + i % 3000;
        char* to = (*client)->writer().Reserve(size);
        if (to == nullptr) continue;  // full
        std::memset(to, static_cast<int>(i % 251), size);
        (*client)->writer().Commit();
        (*server_bell)->Ring();
        ++i;
      }
    }
    ASSERT_GT(child, 0);
    const UniqueFd socket = *AcceptUnix(listening.get());
    std::atomic<bool> ended = false;
    std::thread watcher([&] {
      (void)ReceiveMessage(socket.get(), 1, 0);
      ended = true;
      bell->Ring();
    });
    uint32_t count = 0;
    while (true) {
      const uint32_t seen = bell->Current();
      const bool last_look = ended;
      const auto message = rings->reader().Next();
      ASSERT_TRUE(message.ok()) << message.status();
      if (message->has_value()) {
        const size_t size = 100 + count % 3000;
        ASSERT_EQ((*message)->size, size);
        ASSERT_EQ(std::string((*message)->data, size),
                  std::string(size, static_cast<char>(count % 251)));
        rings->reader().Release((*message)->position);
        if (++count == 2000 + 777u * static_cast<uint32_t>(round)) {
          kill(child, SIGKILL);
        }
        continue;
      }
      if (last_look) break;
      bell->Wait(seen, kNoDeadline);
    }
    watcher.join();
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_GE(count, 2000u);
  }
}

}  // namespace
}  // namespace troupe

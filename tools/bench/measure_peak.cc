#define HWY_WANT_AVX3_DL  // its dot products are measured
#include "kernels/cpu/targets.h"
#include "tools/bench/machine_peak.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tools/bench/measure_peak.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/aligned_memory.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {

// Twelve chains hide the latency of two multiply-add units; returns something
// that depends on all of them.
float MultiplyAdds(size_t rounds) {
  constexpr size_t kChains = 12;
  FloatVector acc[kChains];
  for (size_t i = 0; i < kChains; ++i) {
    acc[i] = hn::Set(kFloats, static_cast<float>(i));
  }
  const FloatVector factor = hn::Set(kFloats, 0.999f);
  const FloatVector addend = hn::Set(kFloats, 0.001f);
  for (size_t round = 0; round < rounds; ++round) {
    TROUPE_UNROLL for (size_t i = 0; i < kChains; ++i) {
      acc[i] = hn::MulAdd(acc[i], factor, addend);
    }
  }
  FloatVector sum = acc[0];
  for (size_t i = 1; i < kChains; ++i) sum = hn::Add(sum, acc[i]);
  return hn::GetLane(sum);
}

size_t FlopsPerRound() { return 12 * kLanes * 2; }

// Dot products of bytes in registers.
using IntTag = hn::RebindToSigned<FloatTag>;
using IntVector = hn::Vec<IntTag>;
inline constexpr size_t kIntChains = 10;

template <bool kInt4>
HWY_INLINE IntVector AddBytes(IntVector acc, IntVector& u, IntVector s,
                              IntVector ones) {
#if HWY_TARGET == HWY_AVX2
  asm("" : "+x"(u.raw));  // else GCC multiplies but once for all chains
  const __m256i pairs = _mm256_maddubs_epi16(u.raw, s.raw);
  acc.raw = kInt4
                ? _mm256_add_epi16(acc.raw, pairs)
                : _mm256_add_epi32(acc.raw, _mm256_madd_epi16(pairs, ones.raw));
  asm("" : "+x"(acc.raw));
  return acc;
#elif HWY_TARGET == HWY_AVX3_DL
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.raw) : "v"(u.raw), "v"(s.raw));
  return acc;
#else
  return hn::Add(acc, hn::Mul(u, s));  // no such instruction is used
#endif
}

template <bool kInt4>
int32_t IntDots(size_t rounds) {
  const IntTag d;
  IntVector acc[kIntChains];
  for (IntVector& v : acc) v = hn::Zero(d);
  IntVector u = hn::Set(d, 0x01020304);
  IntVector s = hn::Set(d, 0x04fd02ff);
  const IntVector ones = hn::Set(d, 0x00010001);
  for (size_t round = 0; round < rounds; ++round) {
    TROUPE_UNROLL for (size_t i = 0; i < kIntChains; ++i) {
      acc[i] = AddBytes<kInt4>(acc[i], u, s, ones);
    }
  }
  for (size_t i = 1; i < kIntChains; ++i) acc[0] = hn::Add(acc[0], acc[i]);
  return hn::GetLane(acc[0]);
}

int32_t Int8Dots(size_t rounds) { return IntDots<false>(rounds); }
int32_t Int4Dots(size_t rounds) { return IntDots<true>(rounds); }

size_t IntOpsPerRound() {
  constexpr bool kHasByteDots =
      HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3_DL;
  return kIntChains * kLanes * (kHasByteDots ? 8 : 2);
}

// Xor of `num_bytes`, a multiple of 4 KiB, in four streams: one alone does not
// keep enough cache lines on their way.
uint64_t ReadAll(const uint8_t* from, size_t num_bytes) {
  constexpr size_t kStreams = 4;
  constexpr size_t kAheadBytes = 2048;
  const hn::CappedTag<uint64_t, 8> d;
  const size_t vector_bytes = hn::Lanes(d) * sizeof(uint64_t);
  const size_t stream_bytes = num_bytes / kStreams;
  hn::Vec<decltype(d)> acc[kStreams];
  for (auto& v : acc) v = hn::Zero(d);
  for (size_t i = 0; i < stream_bytes; i += vector_bytes) {
    TROUPE_UNROLL for (size_t s = 0; s < kStreams; ++s) {
      const uint8_t* at = from + s * stream_bytes + i;
      hwy::Prefetch(at + kAheadBytes);
      acc[s] =
          hn::Xor(acc[s], hn::Load(d, reinterpret_cast<const uint64_t*>(at)));
    }
  }
  for (size_t s = 1; s < kStreams; ++s) acc[0] = hn::Xor(acc[0], acc[s]);
  return hn::GetLane(acc[0]);
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

HWY_EXPORT(MultiplyAdds);
HWY_EXPORT(FlopsPerRound);
HWY_EXPORT(ReadAll);
HWY_EXPORT(Int8Dots);
HWY_EXPORT(Int4Dots);
HWY_EXPORT(IntOpsPerRound);

namespace {

// The seconds of each of the runs run(0), run(1), ... of a second, ascending.
template <typename Run>
std::vector<double> SecondsOfRuns(const Run& run) {
  std::vector<double> seconds;
  double total = 0;
  for (size_t i = 0; total < 1.0; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run(i);
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    seconds.push_back(elapsed.count());
    total += elapsed.count();
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

// Short runs: on a machine with other work some are undisturbed, once the
// scheduler has spread the threads.
template <typename Run>
double BestSeconds(const Run& run) {
  return SecondsOfRuns(run).front();
}

volatile uint64_t sink;  // keeps results that nobody wants

}  // namespace

ReadBandwidth MeasureReadBandwidth(ThreadPool& pool) {
  // Parts of 1 GiB: nothing is left in a cache when its turn comes again.
  constexpr size_t kChunk = size_t{128} << 10;
  constexpr size_t kNumChunks = 8192;
  uint8_t* buffer = static_cast<uint8_t*>(AllocateAligned(kChunk * kNumChunks));
  pool.ParallelFor(kNumChunks, [&](size_t i, size_t worker) {
    std::memset(buffer + i * kChunk, static_cast<int>(i), kChunk);
  });
  const auto seconds_of = [&](size_t chunks_per_run) {
    return SecondsOfRuns([&](size_t run) {
      const size_t first = run % (kNumChunks / chunks_per_run) * chunks_per_run;
      pool.ParallelFor(chunks_per_run, [&](size_t i, size_t worker) {
        sink = HWY_DYNAMIC_DISPATCH(ReadAll)(buffer + (first + i) * kChunk,
                                             kChunk);
      });
    });
  };
  constexpr size_t kLongRun = 512;  // 64 MiB
  constexpr size_t kShortRun = 72;  // 9 MiB, as an expert of 8 bits
  const double best = seconds_of(kLongRun).front();
  const std::vector<double> usual = seconds_of(kShortRun);
  FreeAligned(buffer);
  return {static_cast<double>(kChunk * kLongRun) / best,
          static_cast<double>(kChunk * kShortRun) / usual[usual.size() / 2]};
}

namespace {

// Operations per second of chains of rounds in registers.
template <typename Chains>
double PeakOps(const Chains& chains, size_t ops_per_round, ThreadPool& pool) {
  constexpr size_t kRounds = 100'000;
  const size_t tasks = pool.num_threads() * 4;
  const double seconds = BestSeconds([&](size_t run) {
    pool.ParallelFor(tasks, [&](size_t i, size_t worker) {
      sink = static_cast<uint64_t>(chains(kRounds));
    });
  });
  return static_cast<double>(ops_per_round * kRounds * tasks) / seconds;
}

}  // namespace

double MeasurePeakFlops(ThreadPool& pool) {
  return PeakOps(HWY_DYNAMIC_DISPATCH(MultiplyAdds),
                 HWY_DYNAMIC_DISPATCH(FlopsPerRound)(), pool);
}

double MeasurePeakInt8Ops(ThreadPool& pool) {
  return PeakOps(HWY_DYNAMIC_DISPATCH(Int8Dots),
                 HWY_DYNAMIC_DISPATCH(IntOpsPerRound)(), pool);
}

double MeasurePeakInt4Ops(ThreadPool& pool) {
  return PeakOps(HWY_DYNAMIC_DISPATCH(Int4Dots),
                 HWY_DYNAMIC_DISPATCH(IntOpsPerRound)(), pool);
}

}  // namespace troupe
#endif  // HWY_ONCE

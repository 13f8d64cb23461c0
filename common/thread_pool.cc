#include "common/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/check.h"

namespace troupe {
namespace {

// Longer than the gap between two kernels of a layer, much shorter than a
// scheduler's slice, which a spinning thread may be stealing from the thread
// that it waits for.
constexpr std::chrono::microseconds kSpinTime(100);

void CpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Spins until done() or until kSpinTime has passed; returns done().
template <typename Done>
bool SpinUntil(const Done& done) {
  if (done()) return true;
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      CpuRelax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

// The word that all threads watch: is a job open, which one, and how many
// workers are in it. A worker that wakes late finds the job closed and is not
// waited for. The number of the job only tells one from the next: a worker
// that sleeps through all 2^16 numbers misses a job, which is harmless.
constexpr uint32_t kActiveMask = 0x7fff;
constexpr uint32_t kOpen = 0x8000;
constexpr int kJobShift = 16;

}  // namespace

struct ThreadPool::State {
  // Written by the owner while the job is closed and no worker is in it.
  TaskFunction function = nullptr;
  const void* context = nullptr;
  size_t num_tasks = 0;

  alignas(64) std::atomic<uint32_t> word{0};
  std::atomic<bool> stop{false};
  // The waker makes the system call only when someone sleeps.
  alignas(64) std::atomic<uint32_t> sleeping_workers{0};
  std::atomic<bool> owner_sleeps{false};
  alignas(64) std::atomic<size_t> next_task{0};

  std::vector<std::thread> threads;

  void RunTasks(size_t worker) {
    for (;;) {
      const size_t index = next_task.fetch_add(1, std::memory_order_relaxed);
      if (index >= num_tasks) return;
      function(context, index, worker);
    }
  }
};

ThreadPool::ThreadPool(size_t num_threads)
    : num_threads_(num_threads), state_(std::make_unique<State>()) {
  CHECK(num_threads >= 1);
  CHECK(num_threads <= kActiveMask);
  state_->threads.reserve(num_threads - 1);
  for (size_t worker = 1; worker < num_threads; ++worker) {
    state_->threads.emplace_back([this, worker] { Work(worker); });
  }
}

ThreadPool::~ThreadPool() {
  State& s = *state_;
  s.stop.store(true);
  s.word.fetch_add(1u << kJobShift);
  s.word.notify_all();
  for (std::thread& thread : s.threads) thread.join();
}

void ThreadPool::Run(size_t num_tasks, TaskFunction function,
                     const void* context) {
  State& s = *state_;
  if (num_threads_ == 1 || num_tasks <= 1) {
    for (size_t i = 0; i < num_tasks; ++i) function(context, i, 0);
    return;
  }
  s.function = function;
  s.context = context;
  s.num_tasks = num_tasks;
  s.next_task.store(0, std::memory_order_relaxed);
  // Sequentially consistent with Work's count of sleepers: either this thread
  // sees the sleeper, or the sleeper sees the job.
  s.word.fetch_add((1u << kJobShift) | kOpen);
  if (s.sleeping_workers.load() > 0) s.word.notify_all();

  s.RunTasks(0);

  s.word.fetch_and(~kOpen);
  const auto all_left = [&s] {
    return (s.word.load(std::memory_order_acquire) & kActiveMask) == 0;
  };
  if (SpinUntil(all_left)) return;
  s.owner_sleeps.store(true);
  for (uint32_t word = s.word.load(); (word & kActiveMask) != 0;
       word = s.word.load()) {
    s.word.wait(word);
  }
  s.owner_sleeps.store(false);
}

size_t ThreadPool::LikelyNextTask(size_t index) const {
  // One thread, or one task, runs without the counter.
  return std::max(index + 1, state_->next_task.load(std::memory_order_relaxed));
}

void ThreadPool::Work(size_t worker) {
  State& s = *state_;
  uint32_t last_job = 0;
  const auto has_news = [&](uint32_t word) {
    return ((word & kOpen) != 0 && word >> kJobShift != last_job) ||
           s.stop.load(std::memory_order_relaxed);
  };
  for (;;) {
    if (!SpinUntil(
            [&] { return has_news(s.word.load(std::memory_order_relaxed)); })) {
      s.sleeping_workers.fetch_add(1);
      for (uint32_t word = s.word.load(); !has_news(word);
           word = s.word.load()) {
        s.word.wait(word);
      }
      s.sleeping_workers.fetch_sub(1);
    }
    if (s.stop.load()) return;

    // Enter the job, unless it closes first.
    uint32_t word = s.word.load();
    while ((word & kOpen) != 0 &&
           !s.word.compare_exchange_weak(word, word + 1)) {
    }
    if ((word & kOpen) == 0) continue;
    last_job = word >> kJobShift;
    s.RunTasks(worker);
    const uint32_t left = s.word.fetch_sub(1) - 1;
    if ((left & (kActiveMask | kOpen)) == 0 && s.owner_sleeps.load()) {
      s.word.notify_all();
    }
  }
}

namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

std::string ReadFirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// cpu.max: "$QUOTA $PERIOD" in microseconds, or "max $PERIOD".
double LimitV2(const std::string& directory) {
  std::istringstream line(ReadFirstLine(directory + "/cpu.max"));
  double quota = 0;
  double period = 0;
  return line >> quota >> period && quota > 0 && period > 0 ? quota / period
                                                            : kNoLimit;
}

double LimitV1(const std::string& directory) {
  std::istringstream quota_line(ReadFirstLine(directory + "/cpu.cfs_quota_us"));
  std::istringstream period_line(
      ReadFirstLine(directory + "/cpu.cfs_period_us"));
  double quota = 0;  // -1: no limit
  double period = 0;
  return quota_line >> quota && period_line >> period && quota > 0 && period > 0
             ? quota / period
             : kNoLimit;
}

// The least limit from `mount` + `path` up to `mount`. A container may see the
// path of the host: the levels that do not exist here have no limit.
double LeastLimit(const std::string& mount, std::string path,
                  double (*limit_of)(const std::string&)) {
  double least = limit_of(mount);
  while (path.size() > 1) {
    least = std::min(least, limit_of(mount + path));
    path.resize(path.find_last_of('/'));
  }
  return least;
}

}  // namespace

double CgroupCpuLimit(const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  double least = kNoLimit;
  // Lines "id:controllers:path"; version 2 has no controllers.
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    if (first == std::string::npos) continue;
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos || second + 1 >= line.size() ||
        line[second + 1] != '/') {
      continue;
    }
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      least = std::min(least, LeastLimit(mount, path, LimitV2));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      least =
          std::min(least, LeastLimit(mount + "/" + controllers, path, LimitV1));
      least = std::min(least, LeastLimit(mount + "/cpu", path, LimitV1));
    }
  }
  return least;
}

size_t AvailableThreads() {
  double threads = std::max(1u, std::thread::hardware_concurrency());
  // More CPUs than cpu_set_t holds: sched_getaffinity fails, and the number
  // above stands.
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) {
    threads = CPU_COUNT(&mask);
  }
  threads = std::min(threads, CgroupCpuLimit(""));
  return std::max<size_t>(1, static_cast<size_t>(std::floor(threads)));
}

}  // namespace troupe

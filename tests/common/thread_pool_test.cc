#include "common/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

namespace troupe {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<size_t> {};

TEST_P(ThreadPoolTest, RunsEachTaskOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.num_threads(), GetParam());
  for (size_t num_tasks : {0, 1, 2, 3, 7, 100, 10'000}) {
    std::vector<std::atomic<int>> runs(num_tasks);
    pool.ParallelFor(num_tasks, [&](size_t index, size_t worker) {
      ASSERT_LT(worker, pool.num_threads());
      runs[index].fetch_add(1);
    });
    for (const std::atomic<int>& count : runs) ASSERT_EQ(count.load(), 1);
  }
}

// Plain memory: what one job wrote is seen by the next, and by the caller.
TEST_P(ThreadPoolTest, JobsAreOrdered) {
  constexpr size_t kTasks = 37;
  ThreadPool pool(GetParam());
  std::vector<int> values(kTasks, 0);
  for (int job = 0; job < 5000; ++job) {
    pool.ParallelFor(kTasks, [&](size_t index, size_t worker) {
      // The neighbour's number of the last job.
      ASSERT_EQ(values[index], job);
      values[index] = job + 1;
    });
  }
  for (const int value : values) EXPECT_EQ(value, 5000);
}

TEST_P(ThreadPoolTest, WorkersDoNotShareAnIndexAtATime) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> busy(GetParam());
  for (int job = 0; job < 200; ++job) {
    pool.ParallelFor(50, [&](size_t index, size_t worker) {
      ASSERT_EQ(busy[worker].fetch_add(1), 0);
      busy[worker].fetch_sub(1);
    });
  }
}

// An earlier task has begun when a later one runs: kernels wait on that.
TEST_P(ThreadPoolTest, TasksMayWaitForEarlierOnes) {
  ThreadPool pool(GetParam());
  for (int job = 0; job < 500; ++job) {
    std::atomic<size_t> done{0};
    pool.ParallelFor(20, [&](size_t index, size_t worker) {
      while (done.load() < index) std::this_thread::yield();
      done.fetch_add(1);
    });
    ASSERT_EQ(done.load(), 20u);
  }
}

// A guess, but never of a task that has begun.
TEST_P(ThreadPoolTest, TheLikelyNextTaskHasNotBegun) {
  ThreadPool pool(GetParam());
  for (size_t num_tasks : {1, 2, 50}) {
    pool.ParallelFor(num_tasks, [&](size_t index, size_t worker) {
      ASSERT_GT(pool.LikelyNextTask(index), index);
    });
  }
}

// Pauses longer than the spinning: workers are asleep when the job comes.
TEST_P(ThreadPoolTest, WakesAfterSleep) {
  ThreadPool pool(GetParam());
  for (int job = 0; job < 20; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<size_t> sum{0};
    pool.ParallelFor(GetParam(), [&](size_t index, size_t worker) {
      // Long enough that no thread can do another's task.
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      sum.fetch_add(index + 1);
    });
    ASSERT_EQ(sum.load(), GetParam() * (GetParam() + 1) / 2);
  }
}

TEST_P(ThreadPoolTest, ThreadsWorkAtTheSameTime) {
  ThreadPool pool(GetParam());
  // Each task waits until all have begun: hangs unless all threads come.
  std::atomic<size_t> begun{0};
  pool.ParallelFor(GetParam(), [&](size_t index, size_t worker) {
    begun.fetch_add(1);
    while (begun.load() < GetParam()) std::this_thread::yield();
  });
  EXPECT_EQ(begun.load(), GetParam());
}

INSTANTIATE_TEST_SUITE_P(NumThreads, ThreadPoolTest,
                         ::testing::Values(1, 2, 3, 8));

TEST(ThreadPoolIdleTest, AnIdlePoolUsesNoProcessorTime) {
  ThreadPool pool(4);
  pool.ParallelFor(8, [](size_t index, size_t worker) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // fall asleep
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const double seconds =
      static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  EXPECT_LT(seconds, 0.05);
}

TEST(AvailableThreadsTest, IsAtLeastOneAndAtMostTheMachine) {
  EXPECT_GE(AvailableThreads(), 1u);
  EXPECT_LE(AvailableThreads(), std::thread::hardware_concurrency());
}

// A directory tree like that of the kernel.
class CgroupTest : public ::testing::Test {
 protected:
  CgroupTest()
      : root_(std::filesystem::path(::testing::TempDir()) /
              ("cgroup_test_" + std::string(::testing::UnitTest::GetInstance()
                                                ->current_test_info()
                                                ->name()))) {
    std::filesystem::remove_all(root_);
  }
  ~CgroupTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  double Limit() { return CgroupCpuLimit(root_.string()); }

  const std::filesystem::path root_;
};

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

TEST_F(CgroupTest, NoFilesNoLimit) { EXPECT_EQ(Limit(), kNoLimit); }

TEST_F(CgroupTest, Version2TakesTheSmallestOfAllLevels) {
  Write("proc/self/cgroup", "0::/kube/pod/container\n");
  Write("sys/fs/cgroup/kube/pod/container/cpu.max", "400000 100000\n");
  EXPECT_EQ(Limit(), 4.0);
  Write("sys/fs/cgroup/kube/pod/cpu.max", "150000 100000\n");
  EXPECT_EQ(Limit(), 1.5);
  Write("sys/fs/cgroup/kube/cpu.max", "max 100000\n");
  EXPECT_EQ(Limit(), 1.5);
}

// The path is the host's, the mount is the container's.
TEST_F(CgroupTest, Version2InAContainer) {
  Write("proc/self/cgroup", "0::/\n");
  Write("sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(Limit(), 2.0);
  Write("proc/self/cgroup", "0::/../../somewhere/else\n");
  EXPECT_EQ(Limit(), 2.0);
}

TEST_F(CgroupTest, Version1) {
  Write("proc/self/cgroup",
        "5:cpuset:/\n4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n");
  Write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "-1\n");
  Write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Limit(), kNoLimit);
  Write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "50000\n");
  EXPECT_EQ(Limit(), 0.5);
}

TEST_F(CgroupTest, NonsenseIsNoLimit) {
  Write("proc/self/cgroup", "\nnonsense\n0:\n0::\n1:cpu:relative\n0::/a\n");
  Write("sys/fs/cgroup/a/cpu.max", "0 0\n");
  Write("sys/fs/cgroup/cpu.max", "garbage\n");
  EXPECT_EQ(Limit(), kNoLimit);
}

}  // namespace
}  // namespace troupe

// A fork-join pool for kernels.
//
// ThreadPool owns num_threads - 1 workers; the calling thread is the last one.
// ParallelFor may be called from one thread at a time (the owner's); tasks must
// not call it again. Waiting threads spin for a bounded time, then sleep, so
// that a pool of an idle process costs nothing and a pool between two layers
// wakes within microseconds. See docs/decisions/0005-cpu-kernels.md.
#ifndef TROUPE_COMMON_THREAD_POOL_H_
#define TROUPE_COMMON_THREAD_POOL_H_

#include <cstddef>
#include <memory>
#include <string>

namespace troupe {

class ThreadPool {
 public:
  // num_threads >= 1, the calling thread included.
  explicit ThreadPool(size_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  size_t num_threads() const { return num_threads_; }

  // Calls task(index, worker) once for every index in [0, num_tasks), on any
  // thread, worker in [0, num_threads); returns when all are done. Tasks are
  // handed out in ascending order by an atomic counter. Allocates nothing.
  template <typename Task>
  void ParallelFor(size_t num_tasks, const Task& task) {
    Run(
        num_tasks,
        [](const void* context, size_t index, size_t worker) {
          (*static_cast<const Task*>(context))(index, worker);
        },
        &task);
  }

  // For a running task `index`: which one its thread is likely to get next, so
  // that it can prefetch. Above `index`; may be past the last one.
  size_t LikelyNextTask(size_t index) const;

 private:
  using TaskFunction = void (*)(const void* context, size_t index,
                                size_t worker);
  struct State;
  void Run(size_t num_tasks, TaskFunction function, const void* context);
  void Work(size_t worker);

  const size_t num_threads_;
  std::unique_ptr<State> state_;
};

// Threads that this process may use: the cgroup's quota (rounded down, because
// a spinning thread beyond it gets all of them throttled) or the affinity mask,
// whichever is less, at least 1.
size_t AvailableThreads();

// CPUs that the cgroups of this process allow, version 2 or 1, the smallest of
// all levels; infinity where there is no limit. `root` is put before /proc and
// /sys.
double CgroupCpuLimit(const std::string& root);

}  // namespace troupe

#endif  // TROUPE_COMMON_THREAD_POOL_H_

// A few threads for work that is too long for a gRPC callback.
#ifndef TROUPE_GATEWAY_WORK_QUEUE_H_
#define TROUPE_GATEWAY_WORK_QUEUE_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace troupe {

// First in, first out. Thread-safe. Its users bound what they post (a request
// posts at most one item); the destructor runs what is left.
class WorkQueue {
 public:
  explicit WorkQueue(size_t num_threads);
  ~WorkQueue();

  void Post(std::function<void()> work);

 private:
  void Run();

  absl::Mutex mu_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<std::function<void()>> items_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_WORK_QUEUE_H_

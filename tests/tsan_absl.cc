// Tells ThreadSanitizer what Debian's Abseil, which is not built for it, does:
// these functions stand before those of the shared library, call them, and
// report the order that a mutex makes. Without them every use of absl::Mutex
// looks like a race; with tests/tsan.supp alone none would be found.
//
// Linked into the tests of a build for ThreadSanitizer only.
#include <dlfcn.h>

#include <type_traits>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/check.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}

namespace {

// `name` without the namespace of Debian's Abseil.
template <typename Function>
Function* Original(const char* name) {
  void* const symbol = dlsym(RTLD_NEXT, name);
  CHECK(symbol != nullptr);
  return reinterpret_cast<Function*>(symbol);
}

}  // namespace

#define ORIGINAL(type, name)                          \
  static std::type_identity_t<type>* const original = \
      Original<type>("_ZN4absl7debian3" name)
#define CONST_ORIGINAL(type, name)                    \
  static std::type_identity_t<type>* const original = \
      Original<type>("_ZNK4absl7debian3" name)

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  ORIGINAL(void(Mutex*), "5Mutex4LockEv");
  original(this);
  __tsan_acquire(this);
}

bool Mutex::TryLock() {
  ORIGINAL(bool(Mutex*), "5Mutex7TryLockEv");
  const bool locked = original(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Unlock() {
  ORIGINAL(void(Mutex*), "5Mutex6UnlockEv");
  __tsan_release(this);
  original(this);
}

// A condition is looked at by whoever holds the mutex inside of Abseil: the
// thread that waits, or one that unlocks.
namespace {
struct Waiter {
  Mutex* mutex;
  const Condition* condition;
};
bool EvalInOrder(Waiter* waiter) {
  __tsan_acquire(waiter->mutex);
  const bool met = waiter->condition->Eval();
  __tsan_release(waiter->mutex);
  return met;
}
}  // namespace

void Mutex::Await(const Condition& condition) {
  ORIGINAL(void(Mutex*, const Condition&), "5Mutex5AwaitERKNS0_9ConditionE");
  Waiter waiter = {this, &condition};
  __tsan_release(this);
  original(this, Condition(&EvalInOrder, &waiter));
  __tsan_acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  ORIGINAL(bool(Mutex*, const Condition&, Duration),
           "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  Waiter waiter = {this, &condition};
  __tsan_release(this);
  const bool met = original(this, Condition(&EvalInOrder, &waiter), timeout);
  __tsan_acquire(this);
  return met;
}

void Notification::Notify() {
  ORIGINAL(void(Notification*), "12Notification6NotifyEv");
  __tsan_release(this);
  original(this);
}

void Notification::WaitForNotification() const {
  CONST_ORIGINAL(void(const Notification*),
                 "12Notification19WaitForNotificationEv");
  original(this);
  __tsan_acquire(const_cast<Notification*>(this));
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  CONST_ORIGINAL(
      bool(const Notification*, Duration),
      "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE");
  const bool notified = original(this, timeout);
  if (notified) __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

bool BlockingCounter::DecrementCount() {
  ORIGINAL(bool(BlockingCounter*), "15BlockingCounter14DecrementCountEv");
  __tsan_release(this);
  return original(this);
}

void BlockingCounter::Wait() {
  ORIGINAL(void(BlockingCounter*), "15BlockingCounter4WaitEv");
  original(this);
  __tsan_acquire(this);
}

ABSL_NAMESPACE_END
}  // namespace absl

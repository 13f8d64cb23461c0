#include "tools/cli/interrupts.h"

#include <signal.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "tools/cli/exit_status.h"

namespace troupe {

// Shared with the thread, which waits for signals until the program ends.
struct Interrupts::State {
  mutable absl::Mutex mu;
  bool interrupted ABSL_GUARDED_BY(mu) = false;
  std::function<void()> on_interrupt ABSL_GUARDED_BY(mu);
};

Interrupts::Interrupts(std::function<void()> on_interrupt)
    : state_(std::make_shared<State>()) {
  {
    absl::MutexLock lock(&state_->mu);
    state_->on_interrupt = std::move(on_interrupt);
  }
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([state = state_, signals] {
    while (true) {
      int number = 0;
      if (sigwait(&signals, &number) != 0) continue;
      absl::MutexLock lock(&state->mu);
      if (std::exchange(state->interrupted, true)) _exit(kExitInterrupted);
      if (state->on_interrupt) state->on_interrupt();
    }
  }).detach();
}

Interrupts::~Interrupts() {
  absl::MutexLock lock(&state_->mu);
  state_->on_interrupt = nullptr;
}

bool Interrupts::interrupted() const {
  absl::MutexLock lock(&state_->mu);
  return state_->interrupted;
}

void Interrupts::Reset() {
  absl::MutexLock lock(&state_->mu);
  state_->interrupted = false;
}

bool Interrupts::WaitFor(milliseconds duration) const {
  absl::MutexLock lock(&state_->mu);
  return state_->mu.AwaitWithTimeout(absl::Condition(&state_->interrupted),
                                     absl::FromChrono(duration));
}

}  // namespace troupe

// Ctrl-C as an event.
#ifndef TROUPE_TOOLS_CLI_INTERRUPTS_H_
#define TROUPE_TOOLS_CLI_INTERRUPTS_H_

#include <functional>
#include <memory>

#include "common/clock.h"

namespace troupe {

// From construction on, SIGINT and SIGTERM call `on_interrupt` from a thread
// of its own; a second one while the first has not been taken back by Reset
// ends the program with status 130. Construct before any other thread starts,
// once per program.
class Interrupts {
 public:
  explicit Interrupts(std::function<void()> on_interrupt);
  ~Interrupts();

  bool interrupted() const;
  void Reset();

  // Waits; true when interrupted.
  bool WaitFor(milliseconds duration) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_INTERRUPTS_H_

// An expert process that does what the test says, behind the ExpertPeer seam.
#ifndef TROUPE_TESTS_FAKES_FAKE_EXPERT_PROCESS_H_
#define TROUPE_TESTS_FAKES_FAKE_EXPERT_PROCESS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cluster/expert_peer.h"
#include "protos/cluster.pb.h"
#include "protos/expert.pb.h"

namespace troupe {

// Closed forms, exact in float, so that a receiver checks each value alone.
// A token's hidden state says which token it is.
inline float FakeHidden(size_t token, size_t column) {
  return static_cast<float>(token * 64 + column);
}
inline float FakeOutput(size_t token, size_t expert, size_t column) {
  return static_cast<float>(token * 4096 + expert * 64 + column);
}

// Experts of all layers [0, num_layers), each range with the content hash
// "<version>-<expert>"; READY, with room for 1000 rows.
v1::ExpertDescription FakeDescription(const std::string& name,
                                      const std::vector<uint32_t>& experts,
                                      uint32_t num_layers,
                                      const std::string& version = "v1");

// How a batch is answered.
enum class FakeAnswer {
  kCompute,      // FakeOutput of each copy
  kRefuse,       // VERDICT_REFUSED
  kDrain,        // VERDICT_DRAINING
  kGone,         // VERDICT_GONE
  kPartial,      // every second copy, from the first one on, is computed
  kBadPartial,   // the same, but the list of the others is not ascending
  kFail,         // the transport's error
  kShort,        // one byte too few
  kLong,         // one row too many
  kUnspecified,  // no verdict
  kHold,         // nothing, until Release or Lose
};

// The process itself; lives as long as the test wants, its peer as long as the
// pool does. Answers from the thread that sends, or with `own_thread` from one
// of its own. Thread-safe.
class FakeExpertProcess {
 public:
  explicit FakeExpertProcess(v1::ExpertDescription description,
                             bool own_thread = false);
  ~FakeExpertProcess();
  FakeExpertProcess(const FakeExpertProcess&) = delete;
  FakeExpertProcess& operator=(const FakeExpertProcess&) = delete;

  // To be called once.
  std::unique_ptr<ExpertPeer> MakePeer();

  // Whether connections succeed; they do at first.
  void SetReachable(bool reachable);
  // The next batches get these answers, all after them `rest`.
  void Script(std::vector<FakeAnswer> next, FakeAnswer rest);
  // free_rows of every answer; 1000 at first.
  void SetFreeRows(uint64_t free_rows);
  // Tells the router, if one is connected.
  void Describe(const v1::ExpertDescription& description);
  // The connection breaks: every batch in flight gets an error, then the
  // listener hears of it. With `reachable` false it stays away.
  void Lose(bool reachable);
  // Computes what is held.
  void Release();

  // Batches taken since the start, in order.
  std::vector<v1::ExpertBatch> batches() const;
  size_t num_held() const;
  size_t num_connects() const;  // attempts
  // Wait until there are as many; CHECK after half a minute.
  void WaitForBatches(size_t count) const;
  void WaitForConnects(size_t count) const;  // that are over
  // Wait until the router knows it (again).
  void WaitUntilKnown() const;

 private:
  class State;
  class Peer;

  const std::shared_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_FAKE_EXPERT_PROCESS_H_

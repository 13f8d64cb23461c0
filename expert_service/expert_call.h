// One batch on its way through an expert process.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_CALL_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_CALL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "cluster/expert_frame.h"

namespace troupe {

// A transport owns it, and all memory in it: it hands it to the batcher with
// Submit and has it back when the batcher calls Finish, which may be before
// Submit returns. In between it is the batcher's.
class ExpertCall {
 public:
  virtual ~ExpertCall() = default;

  ExpertBatch batch;  // in private memory, valid
  // The payload of the batch, at a multiple of 4; floats that may be anything,
  // also change.
  absl::string_view hidden_states;
  // The batcher's: copies of the batch that it did not take, ascending; its
  // batch is that of the others then.
  std::vector<uint32_t> refused_copies;

  // Memory for the output's rows, at a multiple of 4, where the transport sends
  // it from; a transport that also needs room for refused_copies adds it. At
  // most once. Null: nobody is there any more to take it, and
  // nothing is computed.
  virtual char* Reserve(size_t num_bytes) = 0;
  // Answers, with the rows in the reserved memory if the verdict is kComputed
  // or kPartial; output.rows is not looked at. Calls of one transport that have
  // reserved are finished in the order in which they did.
  virtual void Finish(const ExpertOutput& output) = 0;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_CALL_H_

// Frames as the messages of protos/expert.proto, which tests can keep, compare
// and spoil field by field.
#ifndef TROUPE_TESTS_FAKES_EXPERT_FRAMES_H_
#define TROUPE_TESTS_FAKES_EXPERT_FRAMES_H_

#include <cstring>
#include <functional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "cluster/expert_frame.h"
#include "cluster/expert_peer.h"
#include "protos/expert.pb.h"

namespace troupe {

inline ExpertBatch FromProto(const v1::ExpertBatch& batch) {
  ExpertBatch result;
  result.attempt_id = batch.attempt_id();
  result.layer = batch.layer();
  result.num_tokens = batch.num_tokens();
  result.timeout_ms = batch.timeout_ms();
  result.dtype = static_cast<DataType>(batch.dtype());
  result.expert_ids.assign(batch.expert_ids().begin(),
                           batch.expert_ids().end());
  result.copies_per_expert.assign(batch.copies_per_expert().begin(),
                                  batch.copies_per_expert().end());
  result.versions.assign(batch.versions().begin(), batch.versions().end());
  result.row_of_copy.assign(batch.row_of_copy().begin(),
                            batch.row_of_copy().end());
  result.priorities.assign(batch.priorities().begin(),
                           batch.priorities().end());
  return result;
}

inline v1::ExpertBatch ToProto(const ExpertBatch& batch,
                               const std::string& hidden_states) {
  v1::ExpertBatch result;
  result.set_attempt_id(batch.attempt_id);
  result.set_layer(batch.layer);
  result.set_num_tokens(batch.num_tokens);
  result.set_timeout_ms(batch.timeout_ms);
  result.set_dtype(static_cast<v1::WireDtype>(batch.dtype));
  result.set_hidden_states(hidden_states);
  result.mutable_expert_ids()->Assign(batch.expert_ids.begin(),
                                      batch.expert_ids.end());
  result.mutable_copies_per_expert()->Assign(batch.copies_per_expert.begin(),
                                             batch.copies_per_expert.end());
  result.mutable_versions()->Assign(batch.versions.begin(),
                                    batch.versions.end());
  result.mutable_row_of_copy()->Assign(batch.row_of_copy.begin(),
                                       batch.row_of_copy.end());
  result.mutable_priorities()->Assign(batch.priorities.begin(),
                                      batch.priorities.end());
  return result;
}

inline std::string BytesOf(const PayloadView& payload) {
  std::string bytes(payload.size(), '\0');
  PayloadReader(payload).Read(bytes.data(), bytes.size());
  return bytes;
}

inline v1::ExpertOutput ToProto(const ExpertOutput& output) {
  v1::ExpertOutput result;
  result.set_attempt_id(output.attempt_id);
  result.set_verdict(static_cast<v1::ExpertOutput::Verdict>(output.verdict));
  result.set_dtype(static_cast<v1::WireDtype>(output.dtype));
  result.set_free_rows(output.free_rows);
  result.set_compute_us(output.compute_us);
  result.set_queue_us(output.queue_us);
  result.mutable_refused_copies()->Assign(output.refused_copies.begin(),
                                          output.refused_copies.end());
  result.set_outputs(BytesOf(output.rows));
  return result;
}

// A view of `output`'s bytes.
inline ExpertOutput FromProto(const v1::ExpertOutput& output) {
  ExpertOutput result;
  result.attempt_id = output.attempt_id();
  result.verdict = static_cast<Verdict>(output.verdict());
  result.dtype = static_cast<DataType>(output.dtype());
  result.free_rows = output.free_rows();
  result.compute_us = output.compute_us();
  result.queue_us = output.queue_us();
  result.refused_copies.assign(output.refused_copies().begin(),
                               output.refused_copies().end());
  result.rows = PayloadView(output.outputs());
  return result;
}

using ProtoOutputCallback =
    std::function<void(absl::StatusOr<v1::ExpertOutput> output)>;

inline ExpertPeer::OutputCallback ToCallback(ProtoOutputCallback done) {
  return [done = std::move(done)](const absl::StatusOr<ExpertOutput>& output) {
    if (output.ok()) {
      done(ToProto(*output));
    } else {
      done(output.status());
    }
  };
}

// Sends a message by a peer: anything with its Send, behind other arguments.
template <typename Sender, typename... Arguments>
void SendProto(Sender& sender, const v1::ExpertBatch& batch,
               ProtoOutputCallback done, Arguments... arguments) {
  const std::string& bytes = batch.hidden_states();
  sender.Send(
      arguments..., FromProto(batch), bytes.size(),
      [&bytes](char* to) { std::memcpy(to, bytes.data(), bytes.size()); },
      ToCallback(std::move(done)));
}

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_EXPERT_FRAMES_H_

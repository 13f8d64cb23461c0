// Experts that come and go while a process serves.
#include "expert_service/expert_transactions.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/expert_service/test_experts.h"
#include "tests/fakes/expert_file.h"

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

v1::ExpertRange Range(uint32_t layer_begin, uint32_t layer_end,
                      uint32_t expert_begin, uint32_t expert_end) {
  v1::ExpertRange range;
  range.set_layer_begin(layer_begin);
  range.set_layer_end(layer_end);
  range.set_expert_begin(expert_begin);
  range.set_expert_end(expert_end);
  return range;
}

// Experts 0-3 of a model with five, none of expert 4.
class ExpertTransactionsTest : public testing::Test {
 protected:
  ExpertTransactionsTest()
      : newer_(experts_.config(), /*seed=*/2),
        server_(v1::ExpertDescription(), backend_.limits()) {
    server_.SetReady(&batcher_, store().versions(), store().num_bytes());
    transactions_ = std::make_unique<ExpertTransactions>(
        ExpertTransactionsOptions{"base", milliseconds(1000)},
        experts_.checkpoint(), store(), server_);
    WriteTensorFile(file(), ExpertTensors(newer_, [](size_t, size_t expert) {
                      return expert == 1 || expert == 4;
                    }));
  }

  ExpertStore& store() { return experts_.store(); }
  std::string file() const { return dir_.File("new.safetensors"); }

  v1::LoadExpertsRequest FileRequest(const std::string& id) const {
    v1::LoadExpertsRequest request;
    request.set_transaction_id(id);
    request.set_label("v2");
    request.set_file(file());
    return request;
  }
  v1::UnloadExpertsRequest UnloadRequest(const std::string& id,
                                         const std::string& label,
                                         const v1::ExpertRange& range) const {
    v1::UnloadExpertsRequest request;
    request.set_transaction_id(id);
    request.set_label(label);
    *request.add_experts() = range;
    return request;
  }
  v1::Transaction Await(const std::string& id) {
    while (true) {
      const v1::Transaction now = *transactions_->Get(id);
      if (now.state() == v1::Transaction::STATE_DONE ||
          now.state() == v1::Transaction::STATE_FAILED) {
        return now;
      }
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
  v1::Transaction Load(const v1::LoadExpertsRequest& request) {
    const auto begun = transactions_->Load(request);
    EXPECT_TRUE(begun.ok()) << begun.status();
    return Await(request.transaction_id());
  }
  v1::Transaction Unload(const v1::UnloadExpertsRequest& request) {
    const auto begun = transactions_->Unload(request);
    EXPECT_TRUE(begun.ok()) << begun.status();
    return Await(request.transaction_id());
  }
  // What the process computes of one row.
  v1::ExpertOutput Compute(uint32_t expert, uint64_t version) {
    v1::ExpertBatch batch;
    batch.set_layer(1);
    batch.set_num_tokens(1);
    std::vector<float> row(experts_.config().hidden_size, 0.5f);
    batch.set_hidden_states(row.data(), row.size() * sizeof(float));
    batch.add_expert_ids(expert);
    batch.add_copies_per_expert(1);
    batch.add_row_of_copy(0);
    if (version != 0) batch.add_versions(version);
    absl::Notification done;
    v1::ExpertOutput result;
    Submit(batcher_, batch, [&](v1::ExpertOutput output) {
      result = std::move(output);
      done.Notify();
    });
    done.WaitForNotification();
    return result;
  }
  std::vector<v1::ExpertVersion> Told() const {
    const v1::ExpertDescription description = server_.description();
    return {description.experts().begin(), description.experts().end()};
  }

  TempDir dir_;
  TestExperts experts_;
  CheckpointBuilder newer_;
  ThreadPool pool_{1};
  CpuExpertBackend backend_{experts_.store(), pool_};
  ExpertBatcher batcher_{backend_, 1000};
  ExpertServer server_;
  std::unique_ptr<ExpertTransactions> transactions_;
};

TEST_F(ExpertTransactionsTest, LoadsBesideWhatIsThereAndUnloads) {
  const uint64_t bytes_before = store().num_bytes();
  const auto old_version =
      store().experts()->Versions(1, 1).front()->version.content_hash();
  const std::string old_bytes = Compute(1, 0).outputs();
  const v1::Transaction done = Load(FileRequest("t1"));
  ASSERT_EQ(done.state(), v1::Transaction::STATE_DONE) << done.error();
  EXPECT_EQ(done.experts_size(), 6);  // two experts of three layers
  EXPECT_EQ(done.experts_done(), 6u);
  EXPECT_THAT(store().experts()->Versions(1, 1), SizeIs(2));
  EXPECT_THAT(store().experts()->Versions(1, 4), SizeIs(1));
  EXPECT_GT(store().num_bytes(), bytes_before);
  EXPECT_EQ(Told().size(), 3u * 4 + 6);

  // Both versions compute, each its own.
  const uint64_t old_key = VersionKeyOf(old_version);
  const uint64_t new_key = store().experts()->Versions(1, 1)[1]->key;
  EXPECT_EQ(Compute(1, old_key).outputs(), old_bytes);
  const std::string new_bytes = Compute(1, new_key).outputs();
  EXPECT_NE(new_bytes, old_bytes);
  EXPECT_EQ(Compute(4, 0).verdict(), v1::ExpertOutput::VERDICT_COMPUTED);

  // The old one leaves.
  const v1::Transaction unloaded =
      Unload(UnloadRequest("t2", "", Range(0, 3, 1, 2)));
  ASSERT_EQ(unloaded.state(), v1::Transaction::STATE_DONE) << unloaded.error();
  EXPECT_FALSE(unloaded.drain_time_was_over());
  EXPECT_EQ(unloaded.experts_size(), 3);
  EXPECT_EQ(Compute(1, old_key).verdict(), v1::ExpertOutput::VERDICT_GONE);
  EXPECT_EQ(Compute(1, new_key).outputs(), new_bytes);
  v1::ListExpertsResponse list;
  transactions_->List(list);
  EXPECT_EQ(list.unloaded_size(), 3);
  EXPECT_EQ(list.unloaded(0).source(), "checkpoint");
  EXPECT_EQ(list.transactions_size(), 2);

  // And comes back, from the checkpoint, with its bytes.
  v1::LoadExpertsRequest back;
  back.set_transaction_id("t3");
  back.set_checkpoint(true);
  *back.add_experts() = Range(0, 3, 1, 2);
  const v1::Transaction again = Load(back);
  ASSERT_EQ(again.state(), v1::Transaction::STATE_DONE) << again.error();
  EXPECT_EQ(again.experts(0).label(), "base");
  EXPECT_EQ(Compute(1, old_key).outputs(), old_bytes);
}

TEST_F(ExpertTransactionsTest, IsIdempotent) {
  const v1::Transaction first = Load(FileRequest("same"));
  EXPECT_EQ(transactions_->Load(FileRequest("same"))->SerializeAsString(),
            first.SerializeAsString());
  v1::LoadExpertsRequest other = FileRequest("same");
  other.set_label("v3");
  EXPECT_TRUE(absl::IsAlreadyExists(transactions_->Load(other).status()));
  EXPECT_TRUE(absl::IsAlreadyExists(
      transactions_->Unload(UnloadRequest("same", "v2", Range(0, 1, 1, 2)))
          .status()));
  // What is here already, with its label, is left as it is.
  EXPECT_EQ(Load(FileRequest("again")).state(), v1::Transaction::STATE_DONE);
  EXPECT_THAT(store().experts()->Versions(1, 1), SizeIs(2));
  EXPECT_TRUE(absl::IsNotFound(transactions_->Get("nobody").status()));
}

TEST_F(ExpertTransactionsTest, TheSameContentWithAnotherLabelSharesMemory) {
  Load(FileRequest("t1"));
  const uint64_t bytes = store().num_bytes();
  v1::LoadExpertsRequest other = FileRequest("t2");
  other.set_label("v3");
  ASSERT_EQ(Load(other).state(), v1::Transaction::STATE_DONE);
  EXPECT_THAT(store().experts()->Versions(1, 1), SizeIs(3));
  EXPECT_EQ(store().num_bytes(), bytes);
  EXPECT_EQ(Unload(UnloadRequest("t3", "v2", Range(0, 3, 1, 2))).state(),
            v1::Transaction::STATE_DONE);
  EXPECT_EQ(store().num_bytes(), bytes);
}

TEST_F(ExpertTransactionsTest, OnlyWhatItOwnsAndOnlyToCheck) {
  v1::LoadExpertsRequest request = FileRequest("t1");
  request.set_only_owned(true);
  request.set_check_only(true);
  const size_t before = Told().size();
  v1::Transaction done = Load(request);
  ASSERT_EQ(done.state(), v1::Transaction::STATE_DONE) << done.error();
  EXPECT_EQ(done.experts_size(), 3);  // expert 4 is not here
  EXPECT_EQ(Told().size(), before);
  request.set_transaction_id("t2");
  request.set_check_only(false);
  done = Load(request);
  EXPECT_EQ(done.experts_size(), 3);
  EXPECT_THAT(store().experts()->Versions(1, 1), SizeIs(2));
  EXPECT_TRUE(store().experts()->Versions(1, 4).empty());
}

TEST_F(ExpertTransactionsTest, RefusesAWrongFileWithoutAChange) {
  const auto before = Told().size();
  BuiltTensors tensors =
      ExpertTensors(newer_, [](size_t, size_t expert) { return expert == 1; });
  // The last tensor that is read is wrong.
  const float nan = std::nanf("");
  std::memcpy(&tensors.back().bytes[0], &nan, 4);
  WriteTensorFile(file(), tensors);
  v1::Transaction failed = Load(FileRequest("nan"));
  EXPECT_EQ(failed.state(), v1::Transaction::STATE_FAILED);
  EXPECT_THAT(failed.error(),
              AllOf(HasSubstr(file()), HasSubstr(tensors.back().info.name),
                    HasSubstr("NaN")));
  EXPECT_EQ(failed.experts_size(), 0);

  newer_ = CheckpointBuilder(experts_.config(), 2);
  tensors =
      ExpertTensors(newer_, [](size_t, size_t expert) { return expert == 1; });
  WriteTensorFile(file(), tensors);
  v1::LoadExpertsRequest request = FileRequest("checksum");
  request.set_file_checksum("00112233445566778899aabbccddeeff");
  EXPECT_THAT(Load(request).error(), HasSubstr("checksum is"));

  request = FileRequest("not in the file");
  *request.add_experts() = Range(0, 1, 2, 3);
  EXPECT_THAT(Load(request).error(), HasSubstr("has no expert 2 of layer 0"));

  WriteTensorFile(file(), tensors,
                  {{Checkpoint::ContentHashKey(2, 1), "not this"}});
  EXPECT_THAT(Load(FileRequest("hash")).error(), HasSubstr("the file says"));

  std::filesystem::resize_file(file(), 1000);
  EXPECT_THAT(Load(FileRequest("cut")).error(), HasSubstr(file()));
  request = FileRequest("missing");
  request.set_file("/nowhere/x.safetensors");
  EXPECT_THAT(Load(request).error(), HasSubstr("/nowhere/x.safetensors"));
  EXPECT_EQ(Told().size(), before);
}

TEST_F(ExpertTransactionsTest, ALabelHasOneContent) {
  Load(FileRequest("t1"));
  CheckpointBuilder third(experts_.config(), /*seed=*/3);
  WriteTensorFile(file(), ExpertTensors(third, [](size_t, size_t expert) {
                    return expert == 1;
                  }));
  const v1::Transaction failed = Load(FileRequest("t2"));
  EXPECT_EQ(failed.state(), v1::Transaction::STATE_FAILED);
  EXPECT_THAT(failed.error(),
              HasSubstr("version \"v2\" of expert 1 of layer 0 is here with "
                        "other weights"));
}

TEST_F(ExpertTransactionsTest, RefusesWrongRequests) {
  const auto load = [&](auto spoil) {
    v1::LoadExpertsRequest request = FileRequest("x");
    spoil(request);
    const absl::Status status = transactions_->Load(request).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  using Request = v1::LoadExpertsRequest;
  EXPECT_THAT(load([](Request& r) { r.clear_transaction_id(); }),
              HasSubstr("transaction_id"));
  EXPECT_THAT(
      load([](Request& r) { r.set_transaction_id(std::string(129, 'x')); }),
      HasSubstr("transaction_id has 129"));
  EXPECT_THAT(load([](Request& r) { r.set_label("a b"); }), HasSubstr("label"));
  EXPECT_THAT(load([](Request& r) { r.clear_label(); }), HasSubstr("label"));
  EXPECT_THAT(load([](Request& r) { r.clear_source(); }), HasSubstr("source"));
  EXPECT_THAT(load([](Request& r) { r.set_checkpoint(true); }),
              HasSubstr("checkpoint"));
  EXPECT_THAT(load([](Request& r) { *r.add_experts() = Range(0, 4, 0, 1); }),
              HasSubstr("experts: [0, 1) of layers [0, 4)"));
  EXPECT_THAT(load([](Request& r) { *r.add_experts() = Range(0, 1, 2, 2); }),
              HasSubstr("experts: "));
  EXPECT_TRUE(absl::IsInvalidArgument(
      transactions_->Unload(v1::UnloadExpertsRequest()).status()));
}

TEST_F(ExpertTransactionsTest, KeepsTheLastVersionUnlessTold) {
  v1::UnloadExpertsRequest request = UnloadRequest("t1", "", Range(0, 3, 2, 3));
  EXPECT_THAT(Unload(request).error(), HasSubstr("the only version"));
  request.set_transaction_id("t2");
  request.set_label("v7");
  request.set_may_leave_none(true);
  EXPECT_THAT(Unload(request).error(),
              HasSubstr("there is no version \"v7\" of expert 2 of layer 0"));
  request.set_transaction_id("t3");
  request.clear_label();
  EXPECT_EQ(Unload(request).state(), v1::Transaction::STATE_DONE);
  EXPECT_TRUE(store().experts()->Versions(0, 2).empty());
}

// A batch that has come computes with what was here then.
TEST_F(ExpertTransactionsTest, WeightsLiveAsLongAsBatchesWantThem) {
  const std::string before = Compute(2, 0).outputs();
  const uint64_t key = store().experts()->Versions(1, 2).front()->key;
  auto held =
      std::make_unique<HeldBatcher>(batcher_, experts_.config().hidden_size);
  absl::Notification done;
  v1::ExpertOutput result;
  v1::ExpertBatch batch;
  batch.set_layer(1);
  batch.set_num_tokens(1);
  std::vector<float> row(experts_.config().hidden_size, 0.5f);
  batch.set_hidden_states(row.data(), row.size() * sizeof(float));
  batch.add_expert_ids(2);
  batch.add_copies_per_expert(1);
  batch.add_row_of_copy(0);
  batch.add_versions(key);
  Submit(batcher_, batch, [&](v1::ExpertOutput output) {
    result = std::move(output);
    done.Notify();
  });
  v1::UnloadExpertsRequest request = UnloadRequest("t1", "", Range(0, 3, 2, 3));
  request.set_may_leave_none(true);
  ASSERT_TRUE(transactions_->Unload(request).ok());
  while (!store().experts()->Versions(1, 2).empty()) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  held.reset();
  done.WaitForNotification();
  EXPECT_EQ(result.verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
  EXPECT_EQ(result.outputs(), before);
  EXPECT_EQ(Await("t1").state(), v1::Transaction::STATE_DONE);
}

TEST_F(ExpertTransactionsTest, ARolloutNeedsAHigherRevision) {
  v1::Rollout rollout;
  rollout.set_revision(5);
  rollout.add_labels()->set_label("v2");
  EXPECT_TRUE(server_.SetRollout(rollout).ok());
  EXPECT_TRUE(server_.SetRollout(rollout).ok());  // the very same
  EXPECT_EQ(server_.description().rollout().revision(), 5u);
  rollout.add_labels()->set_label("v1");
  const absl::Status again = server_.SetRollout(rollout);
  EXPECT_TRUE(absl::IsFailedPrecondition(again));
  EXPECT_THAT(std::string(again.message()),
              HasSubstr("rollout.revision 5 is not above the present one, 5"));
  rollout.set_revision(6);
  EXPECT_TRUE(server_.SetRollout(rollout).ok());
}

}  // namespace
}  // namespace troupe

#include "common/rpc/status.h"

#include <string>

#include "common/rpc/rpc_channel.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

TEST(StatusTest, EveryCodeSurvivesTheWire) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status sent = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(sent.error_code()), code);
    EXPECT_EQ(FromGrpcStatus(sent), status);
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
}

TEST(StatusTest, RetryInfoIsReadBack) {
  for (const int delay_ms : {0, 1, 999, 1000, 61500}) {
    const grpc::Status status =
        ResourceExhaustedStatus(absl::ResourceExhaustedError("full"), delay_ms);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(status.error_message(), "full");
    EXPECT_EQ(RetryDelayMs(status), delay_ms);
  }
  EXPECT_EQ(RetryDelayMs(grpc::Status::OK), -1);
  EXPECT_EQ(RetryDelayMs(grpc::Status(grpc::StatusCode::UNAVAILABLE, "",
                                      "not a google.rpc.Status")),
            -1);
}

TEST(DeadlineTest, NoDeadlineStaysNone) {
  grpc::ClientContext context;
  SetDeadline(context, kNoDeadline);
  EXPECT_EQ(ToSteadyTime(context.deadline()), kNoDeadline);
  EXPECT_EQ(ToSteadyTime(std::chrono::system_clock::time_point::max()),
            kNoDeadline);
}

TEST(DeadlineTest, ADeadlineSurvivesTheChangeOfClock) {
  for (const int ms : {-5000, 0, 1, 3600000}) {
    grpc::ClientContext context;
    const SteadyTime deadline =
        std::chrono::steady_clock::now() + milliseconds(ms);
    SetDeadline(context, deadline);
    // The two clocks are read one after the other.
    EXPECT_LT(std::chrono::abs(ToSteadyTime(context.deadline()) - deadline),
              milliseconds(1000));
  }
}

}  // namespace
}  // namespace troupe

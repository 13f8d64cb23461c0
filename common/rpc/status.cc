#include "common/rpc/status.h"

#include <string>

#include "protos/error_details.pb.h"

namespace troupe {

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()));
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

grpc::Status RefusedStatus(const absl::Status& status, int retry_delay_ms) {
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(retry_delay_ms / 1000);
  info.mutable_retry_delay()->set_nanos(retry_delay_ms % 1000 * 1000000);
  google::rpc::Status details;
  details.set_code(status.raw_code());
  details.set_message(std::string(status.message()));
  details.add_details()->PackFrom(info);
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()),
                      details.SerializeAsString());
}

grpc::Status ResourceExhaustedStatus(const absl::Status& status,
                                     int retry_delay_ms) {
  return RefusedStatus(absl::ResourceExhaustedError(status.message()),
                       retry_delay_ms);
}

int RetryDelayMs(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return -1;
  for (const google::protobuf::Any& detail : details.details()) {
    google::rpc::RetryInfo info;
    if (detail.UnpackTo(&info)) {
      return static_cast<int>(info.retry_delay().seconds() * 1000 +
                              info.retry_delay().nanos() / 1000000);
    }
  }
  return -1;
}

}  // namespace troupe

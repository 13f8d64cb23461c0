#include "tools/cli/experts_client.h"

#include <map>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/status.h"
#include "protos/admin.grpc.pb.h"

namespace troupe {
namespace {

constexpr milliseconds kTimeout(10000);
// Between two looks at transactions that run.
constexpr milliseconds kPoll(20);

}  // namespace

struct ExpertsClient::Stubs {
  std::vector<std::unique_ptr<v1::ExpertAdmin::Stub>> stubs;

  // Calls a method of the stub of one process.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(
      size_t process, const std::string& address,
      grpc::Status (v1::ExpertAdmin::Stub::*method)(grpc::ClientContext*,
                                                    const Request&, Response*),
      const Request& request) {
    grpc::ClientContext context;
    SetDeadline(context, Clock::Real().Now() + kTimeout);
    Response response;
    const grpc::Status status =
        (stubs[process].get()->*method)(&context, request, &response);
    if (status.ok()) return response;
    const absl::Status error = FromGrpcStatus(status);
    return absl::Status(error.code(),
                        absl::StrCat(address, ": ", error.message()));
  }
};

ExpertsClient::ExpertsClient(
    std::vector<std::string> addresses,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials)
    : addresses_(std::move(addresses)), stubs_(std::make_unique<Stubs>()) {
  for (const std::string& address : addresses_) {
    stubs_->stubs.push_back(
        v1::ExpertAdmin::NewStub(MakeChannel(address, credentials)));
  }
}

ExpertsClient::~ExpertsClient() = default;

absl::StatusOr<std::vector<ExpertProcess>> ExpertsClient::List(
    std::vector<std::string>* missed) {
  std::vector<ExpertProcess> processes;
  for (size_t i = 0; i < size(); ++i) {
    absl::StatusOr<v1::ListExpertsResponse> list =
        stubs_->Call(i, addresses_[i], &v1::ExpertAdmin::Stub::ListExperts,
                     v1::ListExpertsRequest());
    if (!list.ok() && missed == nullptr) return list.status();
    processes.push_back({addresses_[i], {}});
    if (list.ok()) {
      processes.back().list = *std::move(list);
    } else {
      missed->push_back(std::string(list.status().message()));
    }
  }
  return processes;
}

absl::StatusOr<v1::Transaction> ExpertsClient::Load(
    size_t process, const v1::LoadExpertsRequest& request) {
  return stubs_->Call(process, addresses_[process],
                      &v1::ExpertAdmin::Stub::LoadExperts, request);
}

absl::StatusOr<v1::Transaction> ExpertsClient::Unload(
    size_t process, const v1::UnloadExpertsRequest& request) {
  return stubs_->Call(process, addresses_[process],
                      &v1::ExpertAdmin::Stub::UnloadExperts, request);
}

absl::StatusOr<v1::Transaction> ExpertsClient::Get(size_t process,
                                                   const std::string& id) {
  v1::GetTransactionRequest request;
  request.set_transaction_id(id);
  return stubs_->Call(process, addresses_[process],
                      &v1::ExpertAdmin::Stub::GetTransaction, request);
}

absl::StatusOr<std::vector<v1::Transaction>> ExpertsClient::Await(
    const std::vector<size_t>& processes, const std::string& id,
    const Progress& progress) {
  std::vector<v1::Transaction> transactions(processes.size());
  absl::Status failed;
  size_t num_finished = 0;
  while (num_finished < processes.size()) {
    num_finished = 0;
    for (size_t i = 0; i < processes.size(); ++i) {
      v1::Transaction& last = transactions[i];
      if (last.state() != v1::Transaction::STATE_DONE &&
          last.state() != v1::Transaction::STATE_FAILED) {
        absl::StatusOr<v1::Transaction> now = Get(processes[i], id);
        // A process that is gone will not finish; the others may.
        if (!now.ok()) {
          failed.Update(now.status());
          last.set_state(v1::Transaction::STATE_FAILED);
          last.set_error(std::string(now.status().message()));
        } else {
          const bool changed = now->state() != last.state() ||
                               now->experts_done() != last.experts_done();
          last = *std::move(now);
          if (changed && progress) progress(processes[i], last);
          if (last.state() == v1::Transaction::STATE_FAILED) {
            failed.Update(absl::FailedPreconditionError(
                absl::StrCat(addresses_[processes[i]], ": ", last.error())));
          }
        }
      }
      if (last.state() == v1::Transaction::STATE_DONE ||
          last.state() == v1::Transaction::STATE_FAILED) {
        ++num_finished;
      }
    }
    if (num_finished < processes.size()) std::this_thread::sleep_for(kPoll);
  }
  if (!failed.ok()) return failed;
  return transactions;
}

absl::Status ExpertsClient::SetRollout(const v1::Rollout& rollout,
                                       std::vector<std::string>* missed) {
  v1::SetRolloutRequest request;
  *request.mutable_rollout() = rollout;
  absl::Status first_error;
  size_t num_told = 0;
  for (size_t i = 0; i < size(); ++i) {
    const absl::StatusOr<v1::Rollout> told = stubs_->Call(
        i, addresses_[i], &v1::ExpertAdmin::Stub::SetRollout, request);
    if (told.ok()) {
      ++num_told;
    } else if (absl::IsUnavailable(told.status()) ||
               absl::IsDeadlineExceeded(told.status())) {
      missed->push_back(std::string(told.status().message()));
      first_error.Update(told.status());
    } else {
      return absl::Status(
          told.status().code(),
          absl::StrCat(told.status().message(),
                       "; somebody else has changed the rollout meanwhile"));
    }
  }
  return num_told > 0 ? absl::OkStatus() : first_error;
}

std::vector<std::string> ExpertAddresses(const v1::ClusterStats& stats,
                                         std::vector<std::string>* away) {
  std::map<std::string, bool> connected;
  for (const v1::RouterStats& router : stats.routers()) {
    for (const v1::ExpertPeer& peer : router.peers()) {
      const bool is_away = absl::StartsWith(peer.state(), "away") ||
                           absl::StartsWith(peer.state(), "connecting");
      connected[peer.address()] = connected[peer.address()] || !is_away;
    }
  }
  std::vector<std::string> addresses;
  for (const auto& [address, is_connected] : connected) {
    (is_connected ? addresses : *away).push_back(address);
  }
  return addresses;
}

std::vector<std::string> AtAdminPort(std::vector<std::string> addresses,
                                     uint32_t port) {
  for (std::string& address : addresses) {
    if (port == 0 || absl::StartsWith(address, "unix:")) continue;
    address = absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
  }
  return addresses;
}

}  // namespace troupe

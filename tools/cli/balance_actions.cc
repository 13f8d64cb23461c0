#include "tools/cli/balance_actions.h"

#include <map>
#include <set>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/rpc/unix_socket.h"
#include "common/status_macros.h"
#include "tools/cli/expert_versions.h"
#include "tools/cli/experts_client.h"

namespace troupe {
namespace {

constexpr milliseconds kPoll(20);
constexpr char kCheckpoint[] = "checkpoint";

std::vector<ExpertName> NamesIn(const v1::ExpertRange& range) {
  std::vector<ExpertName> names;
  for (size_t layer = range.layer_begin(); layer < range.layer_end(); ++layer) {
    for (size_t e = range.expert_begin(); e < range.expert_end(); ++e) {
      names.push_back({layer, e});
    }
  }
  return names;
}

bool Contains(const v1::ExpertRange& range, const BalanceUnit& unit) {
  return range.layer_begin() <= unit.layer && unit.layer < range.layer_end() &&
         range.expert_begin() <= unit.expert &&
         unit.expert < range.expert_end();
}

class Actions final : public BalanceActions {
 public:
  Actions(GatewayClient& gateway, const std::vector<std::string>& addresses,
          const std::shared_ptr<grpc::ChannelCredentials>& credentials,
          const BalanceActionsOptions& options)
      : gateway_(gateway),
        options_(options),
        client_(AtAdminPort(addresses, options.admin_port), credentials),
        run_id_(
            absl::StrCat("balance-", absl::BytesToHexString(RandomBytes(4)))) {}

  // Which versions there are, and where they come from.
  absl::Status Learn() {
    ABSL_ASSIGN_OR_RETURN(const std::vector<ExpertProcess> processes,
                          client_.List());
    for (const ExpertProcess& process : processes) {
      for (const v1::LoadedExpert& loaded : process.list.experts()) {
        if (loaded.version().leaving()) continue;
        for (const ExpertName& name : NamesIn(loaded.version().range())) {
          Version& version = versions_[name][loaded.version().label()];
          if (version.hash.empty()) {
            version = {loaded.source(), loaded.version().content_hash()};
          } else if (version.hash != loaded.version().content_hash()) {
            return absl::FailedPreconditionError(absl::StrCat(
                "expert ", name.expert, " of layer ", name.layer,
                " has replicas with the label \"", loaded.version().label(),
                "\" and different weights; see troupe experts list --all"));
          }
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Load(size_t process,
                    const std::vector<BalanceUnit>& units) override {
    std::map<std::pair<std::string, std::string>, std::set<ExpertName>> jobs;
    for (const BalanceUnit& unit : units) {
      const ExpertName name = {unit.layer, unit.expert};
      const auto known = versions_.find(name);
      if (known == versions_.end()) {
        jobs[{"", kCheckpoint}].insert(name);
        continue;
      }
      for (const auto& [label, version] : known->second) {
        jobs[{label, version.source}].insert(name);
      }
    }
    for (const auto& [job, names] : jobs) {
      const auto& [label, source] = job;
      v1::LoadExpertsRequest request;
      request.set_transaction_id(NextId());
      request.set_label(label);
      if (source == kCheckpoint) {
        request.set_checkpoint(true);
      } else {
        request.set_file(source);
      }
      for (const v1::ExpertRange& range : RangesOf(names)) {
        *request.add_experts() = range;
      }
      ABSL_RETURN_IF_ERROR(client_.Load(process, request).status());
      ABSL_ASSIGN_OR_RETURN(
          const std::vector<v1::Transaction> done,
          client_.Await({process}, request.transaction_id(), nullptr));
      for (const v1::ExpertVersion& version : done[0].experts()) {
        ABSL_RETURN_IF_ERROR(Learn(version, source));
      }
    }
    return absl::OkStatus();
  }

  absl::Status AwaitRouters(size_t process,
                            const std::vector<BalanceUnit>& units) override {
    const SteadyTime limit =
        std::chrono::steady_clock::now() + options_.router_limit;
    while (true) {
      ABSL_ASSIGN_OR_RETURN(const v1::ClusterStats stats,
                            gateway_.GetStats(/*include_experts=*/false));
      std::string late = stats.routers().empty() ? "no router answers" : "";
      for (const v1::RouterStats& router : stats.routers()) {
        if (!Sees(router, client_.address(process), units)) {
          late = absl::StrCat(router.name(), " does not see it yet");
        }
      }
      if (late.empty()) return absl::OkStatus();
      if (std::chrono::steady_clock::now() >= limit) {
        return absl::DeadlineExceededError(absl::StrCat(
            late, " after ", options_.router_limit.count(), " ms"));
      }
      std::this_thread::sleep_for(kPoll);
    }
  }

  absl::Status Unload(size_t process,
                      const std::vector<BalanceUnit>& units) override {
    std::map<std::string, std::set<ExpertName>> jobs;
    for (const BalanceUnit& unit : units) {
      const ExpertName name = {unit.layer, unit.expert};
      for (const auto& [label, version] : versions_[name]) {
        jobs[label].insert(name);
      }
    }
    for (const auto& [label, names] : jobs) {
      v1::UnloadExpertsRequest request;
      request.set_transaction_id(NextId());
      request.set_label(label);
      request.set_drain_ms(options_.drain_ms);
      request.set_may_leave_none(true);  // others have them
      for (const v1::ExpertRange& range : RangesOf(names)) {
        *request.add_experts() = range;
      }
      ABSL_RETURN_IF_ERROR(client_.Unload(process, request).status());
      ABSL_RETURN_IF_ERROR(
          client_.Await({process}, request.transaction_id(), nullptr).status());
    }
    return absl::OkStatus();
  }

 private:
  struct Version {
    std::string source;
    std::string hash;
  };

  // What a process says that it has loaded has to be what the others have.
  absl::Status Learn(const v1::ExpertVersion& loaded,
                     const std::string& source) {
    for (const ExpertName& name : NamesIn(loaded.range())) {
      Version& version = versions_[name][loaded.label()];
      if (version.hash.empty()) version = {source, loaded.content_hash()};
      if (version.hash == loaded.content_hash()) continue;
      return absl::DataLossError(absl::StrCat(
          "expert ", name.expert, " of layer ", name.layer, " from ", source,
          " has other weights (", loaded.content_hash(),
          ") than its replicas (", version.hash, ")"));
    }
    return absl::OkStatus();
  }

  static bool Sees(const v1::RouterStats& router, const std::string& address,
                   const std::vector<BalanceUnit>& units) {
    for (const v1::ExpertPeer& peer : router.peers()) {
      if (peer.address() != address) continue;
      if (peer.description().state() != v1::SERVING_STATE_READY) return false;
      for (const BalanceUnit& unit : units) {
        bool found = false;
        for (const v1::ExpertVersion& version : peer.description().experts()) {
          found =
              found || (!version.leaving() && Contains(version.range(), unit));
        }
        if (!found) return false;
      }
      return true;
    }
    return false;  // this router is not connected to that process
  }

  std::string NextId() { return absl::StrCat(run_id_, "-", ++num_requests_); }

  GatewayClient& gateway_;
  const BalanceActionsOptions options_;
  ExpertsClient client_;
  const std::string run_id_;
  size_t num_requests_ = 0;
  std::map<ExpertName, std::map<std::string, Version>> versions_;  // by label
};

}  // namespace

absl::StatusOr<std::unique_ptr<BalanceActions>> MakeBalanceActions(
    GatewayClient& gateway, const std::vector<std::string>& addresses,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    const BalanceActionsOptions& options) {
  auto actions =
      std::make_unique<Actions>(gateway, addresses, credentials, options);
  ABSL_RETURN_IF_ERROR(actions->Learn());
  return actions;
}

}  // namespace troupe

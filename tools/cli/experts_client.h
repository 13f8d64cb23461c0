// Calls to the expert processes of a cluster.
#ifndef TROUPE_TOOLS_CLI_EXPERTS_CLIENT_H_
#define TROUPE_TOOLS_CLI_EXPERTS_CLIENT_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/security/credentials.h"
#include "protos/admin.pb.h"
#include "protos/cluster.pb.h"
#include "protos/gateway.pb.h"
#include "tools/cli/expert_versions.h"

namespace troupe {

// The ExpertAdmin services of some addresses. Errors begin with the address.
// Not thread-safe.
class ExpertsClient {
 public:
  // credentials: for host:port; null: plain text.
  explicit ExpertsClient(
      std::vector<std::string> addresses,
      const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);
  ~ExpertsClient();

  size_t size() const { return addresses_.size(); }
  const std::string& address(size_t i) const { return addresses_[i]; }

  // All of them, or an error. With `missed` those that do not answer are named
  // there, and have empty lists.
  absl::StatusOr<std::vector<ExpertProcess>> List(
      std::vector<std::string>* missed = nullptr);

  absl::StatusOr<v1::Transaction> Load(size_t process,
                                       const v1::LoadExpertsRequest& request);
  absl::StatusOr<v1::Transaction> Unload(
      size_t process, const v1::UnloadExpertsRequest& request);
  absl::StatusOr<v1::Transaction> Get(size_t process, const std::string& id);

  // Waits until the transaction of that id has finished at every one of
  // `processes`; tells `progress` of every change. An error of a call, or of
  // the first transaction that failed.
  using Progress =
      std::function<void(size_t process, const v1::Transaction& transaction)>;
  absl::StatusOr<std::vector<v1::Transaction>> Await(
      const std::vector<size_t>& processes, const std::string& id,
      const Progress& progress);

  // Tells all of them. An error when one has a higher revision already, or
  // when none took it; those that could not be reached are named in `missed`.
  absl::Status SetRollout(const v1::Rollout& rollout,
                          std::vector<std::string>* missed);

 private:
  struct Stubs;
  const std::vector<std::string> addresses_;
  const std::unique_ptr<Stubs> stubs_;
};

// The addresses of all expert processes that the routers of a cluster are
// connected with; the others go to `away`.
std::vector<std::string> ExpertAddresses(const v1::ClusterStats& stats,
                                         std::vector<std::string>* away);

// The addresses with that port in place of theirs, where expert processes
// have one for admins (--admin-listen); 0 changes nothing.
std::vector<std::string> AtAdminPort(std::vector<std::string> addresses,
                                     uint32_t port);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_EXPERTS_CLIENT_H_

#include "gateway/stats_call.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cluster/load_summary.h"
#include "common/rpc/rpc_channel.h"
#include "protos/expert.grpc.pb.h"
#include "protos/router.grpc.pb.h"

namespace troupe {
namespace {

constexpr milliseconds kTimeout{1000};

uint64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t total_pages = 0;
  uint64_t resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// Owned by the callbacks of its calls, through shared_ptr: the last one
// finishes the reactor. Each call writes its own element; the vectors do not
// change while calls are in flight.
class StatsCall : public std::enable_shared_from_this<StatsCall> {
 public:
  StatsCall(GatewayContext& context, grpc::ServerUnaryReactor* reactor,
            const v1::GetStatsRequest& request, v1::ClusterStats* response)
      : live_(context.live_calls),
        context_(context),
        reactor_(reactor),
        include_experts_(request.include_experts()),
        check_integrity_(request.check_integrity()),
        response_(response),
        members_(context.routers.Members()),
        routers_(members_.size()) {}

  void Begin() {
    *response_->mutable_gateway() = DescribeGateway(context_);
    // One more, so that the last is over after this loop at the earliest.
    pending_ = routers_.size() + 1;
    for (size_t i = 0; i < routers_.size(); ++i) {
      RouterQuery& query = routers_[i];
      query.request.set_check_integrity(check_integrity_);
      SetDeadline(query.context, Clock::Real().Now() + kTimeout);
      members_[i].stub->async()->GetStats(
          &query.context, &query.request, &query.stats,
          [self = shared_from_this(), &query](const grpc::Status& status) {
            query.ok = status.ok();
            self->OnRouterAnswer();
          });
    }
    OnRouterAnswer();
  }

 private:
  struct RouterQuery {
    grpc::ClientContext context;
    v1::GetRouterStatsRequest request;
    v1::RouterStats stats;
    bool ok = false;
  };
  struct ExpertQuery {
    std::string address;
    std::unique_ptr<v1::Expert::Stub> stub;
    grpc::ClientContext context;
    v1::GetExpertStatsRequest request;
    v1::ExpertStats stats;
    bool ok = false;
  };

  void OnRouterAnswer() {
    if (--pending_ > 0) return;
    std::set<std::string> addresses;
    for (size_t i = 0; i < routers_.size(); ++i) {
      if (!routers_[i].ok) {
        response_->add_unreachable(members_[i].address);
        continue;
      }
      for (const v1::ExpertPeer& peer : routers_[i].stats.peers()) {
        if (peer.transport() != "local") addresses.insert(peer.address());
      }
      *response_->add_routers() = std::move(routers_[i].stats);
    }
    if (!include_experts_) addresses.clear();
    experts_ = std::vector<ExpertQuery>(addresses.size());
    pending_ = experts_.size() + 1;
    size_t index = 0;
    for (const std::string& address : addresses) {
      ExpertQuery& query = experts_[index++];
      query.address = address;
      query.request.set_check_integrity(check_integrity_);
      query.stub = v1::Expert::NewStub(
          MakeChannel(address, context_.expert_credentials));
      SetDeadline(query.context, Clock::Real().Now() + kTimeout);
      query.stub->async()->GetStats(
          &query.context, &query.request, &query.stats,
          [self = shared_from_this(), &query](const grpc::Status& status) {
            query.ok = status.ok();
            self->OnExpertAnswer();
          });
    }
    OnExpertAnswer();
  }

  void OnExpertAnswer() {
    if (--pending_ > 0) return;
    for (ExpertQuery& query : experts_) {
      if (query.ok) {
        *response_->add_experts() = std::move(query.stats);
      } else {
        response_->add_unreachable(query.address);
      }
    }
    SummarizeLoad(*response_);
    context_.balance_board.Describe(Clock::Real().Now(), *response_);
    reactor_->Finish(grpc::Status::OK);
  }

  const LiveCalls::Guard live_;
  GatewayContext& context_;
  grpc::ServerUnaryReactor* const reactor_;
  const bool include_experts_;
  const bool check_integrity_;
  v1::ClusterStats* const response_;
  const std::vector<RouterPool::Member> members_;
  std::vector<RouterQuery> routers_;  // [members_.size()]
  std::vector<ExpertQuery> experts_;
  std::atomic<size_t> pending_{0};
};

void DescribeRouters(const GatewayContext& context, v1::GatewayStats& stats) {
  bool any_ready = false;
  for (v1::RouterPeer& peer : context.routers.Describe()) {
    any_ready = any_ready || (peer.state() == "ready" && !peer.removed());
    *stats.add_router_peers() = std::move(peer);
  }
  stats.set_state(context.draining ? v1::SERVING_STATE_DRAINING
                  : any_ready      ? v1::SERVING_STATE_READY
                                   : v1::SERVING_STATE_LOADING);
  stats.set_moved_streams(context.counters.moved_streams);
  stats.set_moves_held_back(context.routers.moves_held_back());
  for (const AddressSource::Source& source :
       context.router_addresses.Describe()) {
    v1::DiscoveryStats& discovery = *stats.add_router_discovery();
    discovery.set_source(source.spec);
    discovery.set_addresses(static_cast<uint32_t>(source.addresses.size()));
    discovery.set_changes(source.changes);
    discovery.set_failures(source.failures);
    discovery.set_last_error(source.last_error);
    discovery.set_age_seconds(source.age_seconds);
  }
}

}  // namespace

v1::GatewayStats DescribeGateway(const GatewayContext& context) {
  const GatewayCounters& counters = context.counters;
  v1::GatewayStats stats;
  stats.set_name(context.name);
  stats.set_requests(counters.requests);
  stats.set_requests_ok(counters.ok);
  stats.set_requests_cancelled(counters.cancelled);
  stats.set_requests_refused(counters.refused);
  stats.set_requests_failed(counters.failed);
  stats.set_active_requests(context.admission.active());
  stats.set_max_requests(context.admission.max_requests());
  stats.set_prompt_tokens(counters.prompt_tokens);
  stats.set_completion_tokens(counters.completion_tokens);
  stats.set_pid(getpid());
  stats.set_resident_bytes(ResidentBytes());
  DescribeRouters(context, stats);
  return stats;
}

grpc::ServerUnaryReactor* StartStatsCall(
    GatewayContext& context, grpc::CallbackServerContext* server_context,
    const v1::GetStatsRequest* request, v1::ClusterStats* response) {
  grpc::ServerUnaryReactor* reactor = server_context->DefaultReactor();
  std::make_shared<StatsCall>(context, reactor, *request, response)->Begin();
  return reactor;
}

}  // namespace troupe

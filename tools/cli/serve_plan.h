// Which processes a local cluster consists of: a pure function of the options
// and the model.
#ifndef TROUPE_TOOLS_CLI_SERVE_PLAN_H_
#define TROUPE_TOOLS_CLI_SERVE_PLAN_H_

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/cli/supervisor.h"

namespace troupe {

struct ServeOptions {
  std::string model_dir;
  // Expert processes (times replicas); -1: 4, or one per expert if the model
  // has fewer.
  int num_expert_processes = -1;
  size_t replicas = 1;  // of every expert process
  size_t num_routers = 1;
  std::vector<std::string> listen = {"127.0.0.1:7070"};  // of the gateway
  std::vector<std::string> http = {"127.0.0.1:8080"};    // "none": no HTTP
  std::string model_name;       // empty: the folder's name
  size_t threads = 0;           // of each process's kernels
  size_t kv_blocks = 0;         // per router; 0: by the router's own default
  size_t max_batch_tokens = 0;  // 0: the router's default; so the others
  size_t max_sequences = 0;
  size_t max_queued = 0;
  size_t max_requests = 0;
  size_t queue_rows = 0;
  bool no_prefix_cache = false;
  std::string hop;  // empty: the router's default; so the next
  std::string wire_dtype;
  size_t hop_ring_kb = 0;
  std::string kv_dtype;  // empty: the router's default; so the next
  std::string capacity_factor;
  std::string refuse;
  std::string fallback;
  // A set of certificates (troupe certs); empty: plain text. Every process gets
  // those of its role; unix sockets stay plain.
  std::string certs_dir;
  bool require_client_certs = false;
  bool allow_plaintext = false;  // of the gateway
  // Each process says on a port of its own how it is (--ops-listen).
  bool ops = false;
  int drain_seconds = 30;
  std::string log_level = "info";
  std::string api_keys;  // file of the gateway; empty: none are demanded

  std::string binary_dir;  // where troupe-expert and the others are
  std::string run_dir;     // for sockets
};

// The cluster in the order in which it starts: experts, routers, gateway.
// `new_address` gives the process of that name an address of its own.
// InvalidArgument names the flag.
using NewAddress =
    std::function<absl::StatusOr<std::string>(const std::string& name)>;
absl::StatusOr<std::vector<ProcessSpec>> PlanProcesses(
    const ServeOptions& options, size_t num_experts,
    const NewAddress& new_address);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_SERVE_PLAN_H_

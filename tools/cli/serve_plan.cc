#include "tools/cli/serve_plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cluster/expert_range.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

// The start of every process's command line.
std::vector<std::string> CommonArguments(const ServeOptions& options,
                                         const std::string& role,
                                         const std::string& name) {
  std::vector<std::string> arguments = {
      absl::StrCat(options.binary_dir, "/troupe-", role),
      options.model_dir,
      "--name",
      name,
      "--drain-seconds",
      absl::StrCat(options.drain_seconds),
      "--log-level",
      options.log_level,
      "--die-with-parent"};
  if (!options.certs_dir.empty()) {
    const std::string files = absl::StrCat(options.certs_dir, "/", role);
    for (const std::string& argument :
         {std::string("--tls-cert"), files + ".pem", std::string("--tls-key"),
          files + ".key", std::string("--tls-ca"),
          options.certs_dir + "/ca.pem"}) {
      arguments.push_back(argument);
    }
  }
  if (options.ops) {
    arguments.insert(arguments.end(), {"--ops-listen", "127.0.0.1:0"});
  }
  return arguments;
}

void AddFlag(std::vector<std::string>& arguments, const std::string& flag,
             const std::string& value) {
  arguments.push_back(flag);
  arguments.push_back(value);
}

void AddUnlessZero(std::vector<std::string>& arguments, const std::string& flag,
                   size_t value) {
  if (value > 0) AddFlag(arguments, flag, absl::StrCat(value));
}

absl::StatusOr<size_t> NumExpertProcesses(const ServeOptions& options,
                                          size_t num_experts) {
  if (options.num_expert_processes < 0) {
    return std::min<size_t>(4, num_experts);
  }
  const auto wanted = static_cast<size_t>(options.num_expert_processes);
  if (num_experts == 0 && wanted > 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--experts is ", wanted, ", but this is a dense model: it has none"));
  }
  if (wanted > num_experts || (wanted == 0 && num_experts > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--experts is ", wanted, "; this model has ", num_experts,
                     " experts per layer: 1 to ", num_experts, " processes"));
  }
  return wanted;
}

}  // namespace

absl::StatusOr<std::vector<ProcessSpec>> PlanProcesses(
    const ServeOptions& options, size_t num_experts,
    const NewAddress& new_address) {
  if (options.replicas == 0) {
    return absl::InvalidArgumentError("--replicas is 0; at least 1");
  }
  if (options.num_routers == 0) {
    return absl::InvalidArgumentError("--routers is 0; at least 1");
  }
  ABSL_ASSIGN_OR_RETURN(const size_t num_processes,
                        NumExpertProcesses(options, num_experts));
  std::vector<std::string> ranges;  // none for a dense model
  if (num_processes > 0) ranges = SplitExperts(num_experts, num_processes);
  std::vector<ProcessSpec> processes;
  std::vector<std::string> expert_addresses;
  for (size_t i = 0; i < ranges.size(); ++i) {
    for (size_t replica = 0; replica < options.replicas; ++replica) {
      ProcessSpec process;
      process.tier = ProcessTier::kExpert;
      process.name = options.replicas == 1
                         ? absl::StrCat("expert-", i)
                         : absl::StrCat("expert-", i, ".", replica);
      ABSL_ASSIGN_OR_RETURN(process.address, new_address(process.name));
      process.arguments = CommonArguments(options, "expert", process.name);
      AddFlag(process.arguments, "--listen", process.address);
      AddFlag(process.arguments, "--experts", ranges[i]);
      AddUnlessZero(process.arguments, "--threads", options.threads);
      AddUnlessZero(process.arguments, "--queue-rows", options.queue_rows);
      AddUnlessZero(process.arguments, "--hop-ring-kb", options.hop_ring_kb);
      if (options.hop == "grpc") process.arguments.push_back("--no-shm");
      expert_addresses.push_back(process.address);
      processes.push_back(std::move(process));
    }
  }
  std::vector<std::string> router_addresses;
  for (size_t i = 0; i < options.num_routers; ++i) {
    ProcessSpec process;
    process.tier = ProcessTier::kRouter;
    process.name = absl::StrCat("router-", i);
    ABSL_ASSIGN_OR_RETURN(process.address, new_address(process.name));
    process.arguments = CommonArguments(options, "router", process.name);
    AddFlag(process.arguments, "--listen", process.address);
    if (!expert_addresses.empty()) {
      AddFlag(process.arguments, "--experts",
              absl::StrJoin(expert_addresses, ","));
    }
    if (!options.hop.empty()) AddFlag(process.arguments, "--hop", options.hop);
    if (!options.wire_dtype.empty()) {
      AddFlag(process.arguments, "--wire-dtype", options.wire_dtype);
    }
    AddUnlessZero(process.arguments, "--threads", options.threads);
    AddUnlessZero(process.arguments, "--kv-blocks", options.kv_blocks);
    AddUnlessZero(process.arguments, "--max-batch-tokens",
                  options.max_batch_tokens);
    AddUnlessZero(process.arguments, "--max-sequences", options.max_sequences);
    AddUnlessZero(process.arguments, "--max-queued", options.max_queued);
    if (!options.kv_dtype.empty()) {
      AddFlag(process.arguments, "--kv-dtype", options.kv_dtype);
    }
    for (const auto& [flag, value] :
         {std::pair("--capacity-factor", options.capacity_factor),
          std::pair("--refuse", options.refuse),
          std::pair("--fallback", options.fallback)}) {
      if (!value.empty()) AddFlag(process.arguments, flag, value);
    }
    if (options.no_prefix_cache) {
      process.arguments.push_back("--no-prefix-cache");
    }
    router_addresses.push_back(process.address);
    processes.push_back(std::move(process));
  }
  ProcessSpec gateway;
  gateway.tier = ProcessTier::kGateway;
  gateway.name = "gateway";
  gateway.address = absl::StrCat("unix:", options.run_dir, "/gateway.sock");
  gateway.arguments = CommonArguments(options, "gateway", gateway.name);
  AddFlag(gateway.arguments, "--routers", absl::StrJoin(router_addresses, ","));
  for (const std::string& listen : options.listen) {
    AddFlag(gateway.arguments, "--listen", listen);
  }
  AddFlag(gateway.arguments, "--listen", gateway.address);
  for (const std::string& http : options.http) {
    if (http != "none") AddFlag(gateway.arguments, "--http-listen", http);
  }
  if (options.require_client_certs) {
    gateway.arguments.push_back("--require-client-certs");
  }
  if (options.allow_plaintext) {
    gateway.arguments.push_back("--allow-plaintext");
  }
  if (!options.model_name.empty()) {
    AddFlag(gateway.arguments, "--model-name", options.model_name);
  }
  AddUnlessZero(gateway.arguments, "--max-requests", options.max_requests);
  if (!options.api_keys.empty()) {
    AddFlag(gateway.arguments, "--api-keys", options.api_keys);
  }
  processes.push_back(std::move(gateway));
  return processes;
}

}  // namespace troupe

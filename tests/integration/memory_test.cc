// An expert process holds only its own experts, the router only the rest.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/expert_range.h"
#include "gtest/gtest.h"
#include "model/checkpoint.h"
#include "tests/fakes/process_cluster.h"
#include "tests/fakes/temp_dir.h"
#include "tools/cli/make_model.h"

namespace troupe {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

uint64_t ExpertResidentBytes(ProcessCluster& cluster, size_t i) {
  grpc::ClientContext context;
  v1::ExpertStats stats;
  EXPECT_TRUE(cluster.expert_stub(i).GetStats(&context, {}, &stats).ok());
  return stats.resident_bytes();
}

TEST(MemoryTest, ResidentBytesFollowTheOwnedExperts) {
  // Big enough to stand out of what a process needs anyway: 8 experts of 2
  // layers, 9 MiB each in bfloat16; 16 MiB for the rest.
  TempDir dir;
  MakeModelOptions model;
  model.family = "mixtral";
  model.output_dir = dir.File("model");
  model.hidden_size = 1024;
  model.num_layers = 2;
  model.num_heads = 8;
  model.num_kv_heads = 4;
  model.vocab_size = 2048;
  model.num_experts = 8;
  model.top_k = 2;
  model.expert_intermediate_size = 1536;
  const absl::Status made = MakeModel(model);
  ASSERT_TRUE(made.ok()) << made;
  const auto checkpoint = *Checkpoint::Open(model.output_dir);
  const double expert_mib =
      2 * static_cast<double>(checkpoint->expert_bytes(0, 0)) / kMiB;
  const double router_mib =
      static_cast<double>(checkpoint->router_bytes()) / kMiB;
  ASSERT_GT(8 * expert_mib, 120.0);

  ProcessClusterOptions options;
  options.model_dir = model.output_dir;
  options.expert_ranges = {"0", "1-2", "3-7"};
  options.router_flags = {"--kv-blocks", "8"};
  ProcessCluster cluster(options);
  // What a process needs besides its weights: code, gRPC, buffers.
  const double base_mib = 40.0;
  const double owned[] = {1, 2, 5};
  for (size_t i = 0; i < 3; ++i) {
    const double resident =
        static_cast<double>(ExpertResidentBytes(cluster, i)) / kMiB;
    EXPECT_GT(resident, owned[i] * expert_mib) << "expert process " << i;
    EXPECT_LT(resident, owned[i] * expert_mib + base_mib)
        << "expert process " << i;
  }
  const double router =
      static_cast<double>(cluster.Stats().resident_bytes()) / kMiB;
  EXPECT_GT(router, 0.5 * router_mib);
  EXPECT_LT(router, router_mib + base_mib);
}

}  // namespace
}  // namespace troupe

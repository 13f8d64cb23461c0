#include "tools/cli/balance_apply.h"

#include <cstdint>
#include <random>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/balance_input.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Processes that a test can look into. `fail_at`: the call that fails, having
// done `half` of its work.
class FakeActions final : public BalanceActions {
 public:
  explicit FakeActions(BalanceProblem& problem) : problem_(problem) {}

  absl::Status Load(size_t process,
                    const std::vector<BalanceUnit>& units) override {
    if (Fails()) return absl::UnavailableError("gone");
    for (const BalanceUnit& unit : units) At(unit) = true;
    CheckServed();
    return absl::OkStatus();
  }
  absl::Status AwaitRouters(size_t process,
                            const std::vector<BalanceUnit>& units) override {
    if (Fails()) return absl::DeadlineExceededError("late");
    for (const BalanceUnit& unit : units) EXPECT_TRUE(At(unit));
    return absl::OkStatus();
  }
  absl::Status Unload(size_t process,
                      const std::vector<BalanceUnit>& units) override {
    if (Fails()) return absl::UnavailableError("gone");
    for (const BalanceUnit& unit : units) At(unit) = false;
    CheckServed();
    return absl::OkStatus();
  }

  size_t calls = 0;
  size_t fail_at = SIZE_MAX;

 private:
  bool Fails() { return calls++ == fail_at; }
  std::vector<bool>::reference At(const BalanceUnit& unit) {
    return problem_.processes[unit.process]
        .holds[unit.layer * problem_.num_experts + unit.expert];
  }
  void CheckServed() {
    for (size_t i = 0; i < problem_.num_layers * problem_.num_experts; ++i) {
      bool served = false;
      for (const BalanceProcess& p : problem_.processes) {
        served = served || p.holds[i];
      }
      EXPECT_TRUE(served) << "unit " << i;
    }
  }
  BalanceProblem& problem_;
};

BalanceProblem Skewed() {
  BalanceProblem problem;
  problem.num_layers = 3;
  problem.num_experts = 6;
  problem.processes.resize(3);
  for (size_t p = 0; p < 3; ++p) {
    BalanceProcess& process = problem.processes[p];
    process.name = absl::StrCat("p", p);
    process.max_units = 6;
    process.holds.resize(18);
    for (size_t i = 0; i < 18; ++i) process.holds[i] = i % 6 / 2 == p;
  }
  std::mt19937 random(4);
  problem.weights.assign(3, std::vector<double>(6));
  for (auto& row : problem.weights) {
    for (double& weight : row) weight = static_cast<double>(random() % 100);
  }
  return problem;
}

TEST(ApplyBalance, DoesWhatThePlanSays) {
  const BalanceProblem problem = Skewed();
  const auto plan = PlanBalance(problem, {});
  ASSERT_TRUE(plan.ok());
  ASSERT_GT(plan->num_loads(), 0u);
  BalanceProblem now = problem;
  FakeActions actions(now);
  std::vector<std::string> lines;
  const BalanceApplied applied =
      ApplyBalance(*plan, problem, actions,
                   [&](const std::string& line) { lines.push_back(line); });
  EXPECT_TRUE(applied.status.ok());
  EXPECT_EQ(applied.loads, plan->num_loads());
  EXPECT_EQ(applied.unloads, plan->num_unloads());
  EXPECT_THAT(lines.front(), HasSubstr("phase 1 of "));
  const BalanceProblem after = AfterPlan(problem, *plan);
  for (size_t p = 0; p < 3; ++p) {
    EXPECT_EQ(now.processes[p].holds, after.processes[p].holds);
  }
}

// Whatever call fails, every expert keeps a replica (the fake looks after every
// call), and planning again ends close to where it would have.
TEST(ApplyBalance, AFailureLosesNothingAndCanBeResumed) {
  const BalanceProblem problem = Skewed();
  const auto plan = PlanBalance(problem, {});
  ASSERT_TRUE(plan.ok());
  size_t num_calls = 0;
  {
    BalanceProblem now = problem;
    FakeActions actions(now);
    ApplyBalance(*plan, problem, actions, [](const std::string&) {});
    num_calls = actions.calls;
  }
  ASSERT_GT(num_calls, 3u);
  for (size_t fail_at = 0; fail_at < num_calls; ++fail_at) {
    BalanceProblem now = problem;
    FakeActions actions(now);
    actions.fail_at = fail_at;
    const BalanceApplied applied =
        ApplyBalance(*plan, problem, actions, [](const std::string&) {});
    EXPECT_FALSE(applied.status.ok());
    EXPECT_THAT(applied.status.message(), HasSubstr("phase "));
    EXPECT_EQ(actions.calls, fail_at + 1) << "it went on";
    // Again.
    const auto rest = PlanBalance(now, {});
    ASSERT_TRUE(rest.ok());
    FakeActions again(now);
    EXPECT_TRUE(
        ApplyBalance(*rest, BalanceProblem(now), again, [](const std::string&) {
        }).status.ok());
    // What is left may gain less than the bound (5%), or end in another
    // placement that is as good to the search.
    EXPECT_LE(QualityOf(now).step, 1.1 * plan->after.step);
  }
}

TEST(ApplyBalance, UnitsAsPeopleReadThem) {
  EXPECT_EQ(TextOf({{0, 3, 0}, {2, 3, 0}, {1, 3, 0}, {5, 3, 0}, {1, 4, 0}}),
            "expert 3 of layers 0-2,5, expert 4 of layer 1");
}

v1::ModelInfo Model() {
  v1::ModelInfo model;
  model.set_num_layers(3);
  model.set_num_experts(4);
  return model;
}

v1::ExpertPeer& AddPeer(v1::RouterStats& router, const std::string& address,
                        const std::string& name, uint32_t expert_begin,
                        uint32_t expert_end) {
  v1::ExpertPeer& peer = *router.add_peers();
  peer.set_address(address);
  peer.mutable_description()->set_name(name);
  peer.mutable_description()->set_state(v1::SERVING_STATE_READY);
  peer.mutable_description()->set_weight_bytes(4 << 20);
  v1::ExpertRange& range =
      *peer.mutable_description()->add_experts()->mutable_range();
  range.set_layer_begin(0);
  range.set_layer_end(3);
  range.set_expert_begin(expert_begin);
  range.set_expert_end(expert_end);
  return peer;
}

v1::ClusterStats TwoProcesses() {
  v1::ClusterStats stats;
  v1::RouterStats& router = *stats.add_routers();
  for (const uint32_t layer : {0u, 2u}) {  // layer 1 is dense
    v1::LayerLoad& load = *router.add_layer_load();
    load.set_layer(layer);
    load.set_recent_steps(10);
    for (const double tokens : {40.0, 0.0, 10.0, 30.0}) {
      load.add_recent_tokens_per_expert(tokens);
      load.add_recent_active_steps_per_expert(tokens / 10);
    }
  }
  AddPeer(router, "10.0.0.1:7200", "a", 0, 2);
  AddPeer(router, "10.0.0.2:7200", "b", 2, 4);
  return stats;
}

TEST(BalanceInput, ReadsLoadAndProcesses) {
  const auto input = MakeBalanceInput(Model(), TwoProcesses(), {});
  ASSERT_TRUE(input.ok()) << input.status();
  EXPECT_EQ(input->tokens, 160);
  EXPECT_THAT(input->addresses, ElementsAre("10.0.0.1:7200", "10.0.0.2:7200"));
  const BalanceProblem& problem = input->problem;
  EXPECT_THAT(problem.weights[0], ElementsAre(4, 0, 1, 3));
  EXPECT_TRUE(problem.weights[1].empty());
  ASSERT_EQ(problem.processes.size(), 2u);
  EXPECT_EQ(problem.processes[1].node, "10.0.0.2");
  EXPECT_THAT(problem.processes[1].holds,
              ElementsAre(false, false, true, true, false, false, false, false,
                          false, false, true, true));
  // 8 units, two processes, a quarter more.
  EXPECT_EQ(problem.processes[0].max_units, 5u);
  EXPECT_TRUE(PlanBalance(problem, {}).ok());
}

TEST(BalanceInput, BoundsBySlotsAndMemory) {
  BalanceInputOptions options;
  options.slots = 7;
  EXPECT_EQ(MakeBalanceInput(Model(), TwoProcesses(), options)
                ->problem.processes[0]
                .max_units,
            7u);
  options.slots = 0;
  options.memory_mb = 6;  // a unit has 1 MiB
  EXPECT_EQ(MakeBalanceInput(Model(), TwoProcesses(), options)
                ->problem.processes[0]
                .max_units,
            6u);
}

TEST(BalanceInput, AProcessThatIsNotReadyIsNotThere) {
  v1::ClusterStats stats = TwoProcesses();
  stats.mutable_routers(0)->mutable_peers(1)->mutable_description()->set_state(
      v1::SERVING_STATE_DRAINING);
  const auto input = MakeBalanceInput(Model(), stats, {});
  ASSERT_TRUE(input.ok());
  EXPECT_EQ(input->problem.processes.size(), 1u);
  const auto plan = PlanBalance(input->problem, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->mandatory);
  EXPECT_EQ(plan->num_loads(), 4u);
}

TEST(BalanceInput, SaysWhatIsWrong) {
  BalanceInputOptions options;
  options.without = {"c"};
  EXPECT_THAT(
      MakeBalanceInput(Model(), TwoProcesses(), options).status().message(),
      HasSubstr("\"c\""));
  options = {};
  options.num_groups = 3;
  EXPECT_THAT(
      MakeBalanceInput(Model(), TwoProcesses(), options).status().message(),
      HasSubstr("--groups"));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      MakeBalanceInput(Model(), v1::ClusterStats(), {}).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      MakeBalanceInput(v1::ModelInfo(), TwoProcesses(), {}).status()));
}

TEST(BalanceInput, AProcessToBeEmptiedByNameOrAddress) {
  BalanceInputOptions options;
  options.without = {"10.0.0.2:7200"};
  const auto input = MakeBalanceInput(Model(), TwoProcesses(), options);
  ASSERT_TRUE(input.ok());
  EXPECT_TRUE(input->problem.processes[1].leaving);
  EXPECT_EQ(input->problem.processes[0].max_units, 10u);
}

}  // namespace
}  // namespace troupe

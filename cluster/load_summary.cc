#include "cluster/load_summary.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace troupe {
namespace {

// A description is untrusted: ranges beyond that are left out.
constexpr size_t kMaxLayers = 4096;
constexpr size_t kMaxExperts = 65536;
constexpr uint64_t kMaxUnits = 1 << 20;  // layers x experts
constexpr size_t kMaxTextRanges = 4;

double Sane(double value) {
  return std::isfinite(value) && value > 0 ? value : 0;
}

void AddTo(const google::protobuf::RepeatedField<double>& from,
           std::vector<double>& sum) {
  const size_t size =
      std::min<size_t>(static_cast<size_t>(from.size()), kMaxExperts);
  if (sum.size() < size) sum.resize(size);
  for (size_t i = 0; i < size; ++i) sum[i] += Sane(from[static_cast<int>(i)]);
}

// "0-3,6"
std::string Numbers(const std::set<size_t>& numbers) {
  std::vector<std::string> parts;
  for (auto it = numbers.begin(); it != numbers.end();) {
    const size_t begin = *it;
    size_t last = begin;
    for (++it; it != numbers.end() && *it == last + 1; ++it) last = *it;
    parts.push_back(begin == last ? absl::StrCat(begin)
                                  : absl::StrCat(begin, "-", last));
  }
  return absl::StrJoin(parts, ",");
}

std::map<size_t, std::set<size_t>> ExpertsByLayer(
    const v1::ExpertDescription& description) {
  std::map<size_t, std::set<size_t>> experts;
  for (const v1::ExpertVersion& version : description.experts()) {
    const v1::ExpertRange& range = version.range();
    if (version.leaving() || range.layer_end() > kMaxLayers ||
        range.expert_end() > kMaxExperts ||
        uint64_t{range.layer_end()} * range.expert_end() > kMaxUnits) {
      continue;
    }
    for (size_t layer = range.layer_begin(); layer < range.layer_end();
         ++layer) {
      for (size_t expert = range.expert_begin(); expert < range.expert_end();
           ++expert) {
        experts[layer].insert(expert);
      }
    }
  }
  return experts;
}

// [num processes]: the load of each in a layer, its replicas taken as equal.
double ProcessImbalance(
    const std::vector<double>& tokens, size_t layer,
    const std::vector<std::map<size_t, std::set<size_t>>>& processes) {
  std::vector<size_t> replicas(tokens.size(), 0);
  for (const auto& process : processes) {
    const auto experts = process.find(layer);
    if (experts == process.end()) continue;
    for (const size_t expert : experts->second) {
      if (expert < replicas.size()) ++replicas[expert];
    }
  }
  std::vector<double> loads;
  for (const auto& process : processes) {
    double load = 0;
    const auto experts = process.find(layer);
    if (experts != process.end()) {
      for (const size_t expert : experts->second) {
        if (expert < tokens.size()) {
          load += tokens[expert] / static_cast<double>(replicas[expert]);
        }
      }
    }
    loads.push_back(load);
  }
  return MaxOverMean(loads);
}

void SummarizeLayers(v1::ClusterStats& stats) {
  // A process that several routers know counts once.
  std::map<std::string, const v1::ExpertPeer*> peers;
  for (const v1::RouterStats& router : stats.routers()) {
    for (const v1::ExpertPeer& peer : router.peers()) {
      if (peer.description().state() == v1::SERVING_STATE_READY) {
        peers[peer.address()] = &peer;
      }
    }
  }
  std::vector<std::map<size_t, std::set<size_t>>> processes;
  for (const auto& [address, peer] : peers) {
    processes.push_back(ExpertsByLayer(peer->description()));
  }
  for (const auto& [layer, load] : MergeRecentLoad(stats.routers())) {
    const std::vector<double>& tokens = load.tokens_per_expert;
    const double total = std::accumulate(tokens.begin(), tokens.end(), 0.0);
    v1::LayerBalance& balance = *stats.add_layer_balance();
    balance.set_layer(static_cast<uint32_t>(layer));
    balance.set_tokens(total);
    if (total <= 0) continue;
    const size_t hottest = static_cast<size_t>(
        std::max_element(tokens.begin(), tokens.end()) - tokens.begin());
    balance.set_imbalance(MaxOverMean(tokens));
    balance.set_cv(CoefficientOfVariation(tokens));
    balance.set_hottest_expert(static_cast<uint32_t>(hottest));
    balance.set_hottest_share(tokens[hottest] / total);
    balance.set_process_imbalance(ProcessImbalance(tokens, layer, processes));
  }
}

void SummarizeGroups(v1::ClusterStats& stats) {
  std::map<std::map<size_t, std::set<size_t>>, v1::ExpertGroup> groups;
  for (const v1::ExpertStats& expert : stats.experts()) {
    const v1::ExpertDescription& description = expert.description();
    v1::ExpertGroup& group = groups[ExpertsByLayer(description)];
    if (group.processes().empty()) {
      group.set_experts(DescribeExperts(description));
    }
    group.add_processes(description.name());
    if (description.state() != v1::SERVING_STATE_READY) continue;
    const double busy = std::min(1.0, Sane(expert.busy_share()));
    group.set_ready(group.ready() + 1);
    group.set_busy_share_mean(group.busy_share_mean() + busy);  // the sum yet
    group.set_busy_share_max(std::max(group.busy_share_max(), busy));
    group.set_queued_rows(group.queued_rows() + expert.queued_rows());
    group.set_free_rows(group.free_rows() + expert.free_rows());
    group.set_capacity_rows(group.capacity_rows() +
                            description.queue_capacity_rows());
    group.set_refused_rows(group.refused_rows() + expert.refused_rows());
  }
  for (auto& [experts, group] : groups) {
    if (group.ready() > 0) {
      group.set_busy_share_mean(group.busy_share_mean() / group.ready());
    }
    *stats.add_expert_groups() = std::move(group);
  }
}

}  // namespace

double MaxOverMean(absl::Span<const double> values) {
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  if (total <= 0) return 0;
  return *std::max_element(values.begin(), values.end()) *
         static_cast<double>(values.size()) / total;
}

double CoefficientOfVariation(absl::Span<const double> values) {
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  if (total <= 0) return 0;
  const double mean = total / static_cast<double>(values.size());
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size())) / mean;
}

std::map<size_t, RecentLoad> MergeRecentLoad(
    const google::protobuf::RepeatedPtrField<v1::RouterStats>& routers) {
  std::map<size_t, RecentLoad> layers;
  for (const v1::RouterStats& router : routers) {
    for (const v1::LayerLoad& load : router.layer_load()) {
      if (load.layer() >= kMaxLayers) continue;
      RecentLoad& sum = layers[load.layer()];
      AddTo(load.recent_tokens_per_expert(), sum.tokens_per_expert);
      AddTo(load.recent_active_steps_per_expert(), sum.active_steps_per_expert);
      sum.active_steps_per_expert.resize(sum.tokens_per_expert.size());
      sum.steps += Sane(load.recent_steps());
    }
  }
  return layers;
}

std::string DescribeExperts(const v1::ExpertDescription& description) {
  // Layers with the same experts go together.
  std::map<std::set<size_t>, std::set<size_t>> layers;
  for (const auto& [layer, experts] : ExpertsByLayer(description)) {
    layers[experts].insert(layer);
  }
  if (layers.empty()) return "no experts";
  std::map<size_t, std::string> parts;  // by their first layer
  for (const auto& [experts, of] : layers) {
    parts[*of.begin()] =
        absl::StrCat("experts ", Numbers(experts), " of layers ", Numbers(of));
  }
  std::vector<std::string> texts;
  for (const auto& [first, text] : parts) {
    if (texts.size() == kMaxTextRanges) {
      texts.push_back(absl::StrCat(parts.size() - kMaxTextRanges, " more"));
      break;
    }
    texts.push_back(text);
  }
  return absl::StrJoin(texts, "; ");
}

void SummarizeLoad(v1::ClusterStats& stats) {
  SummarizeLayers(stats);
  SummarizeGroups(stats);
}

}  // namespace troupe

#include "router_service/router_metrics.h"

#include <map>
#include <numeric>
#include <string>

#include "cluster/discovery_metrics.h"
#include "cluster/load_summary.h"

namespace troupe {
namespace {

void AddSequences(const v1::RouterStats& stats, MetricScope& scope) {
  scope.Gauge("running_sequences", "Sequences that run.",
              stats.running_sequences());
  scope.Gauge("waiting_sequences", "Sequences that wait for their start.",
              stats.waiting_sequences());
  scope.Counter("preemptions_total",
                "Times that a sequence gave its KV blocks up to others.",
                stats.preemptions());
  scope.Counter("prefill_tokens_total", "Tokens of prompts computed.",
                stats.prefill_tokens());
  scope.Counter("decode_tokens_total", "Tokens of outputs computed.",
                stats.decode_tokens());
  scope.Counter("steps_total", "Steps committed.", stats.steps());
  scope.Counter("logit_rows_total", "Rows whose logits were computed.",
                stats.logit_rows());
}

void AddCache(const v1::RouterStats& stats, MetricScope& scope) {
  const auto total = static_cast<double>(stats.kv_blocks_total());
  const auto free = static_cast<double>(stats.kv_blocks_free());
  scope.Gauge("kv_blocks", "KV blocks of 16 positions.", total);
  scope.Gauge("kv_blocks_free", "KV blocks that no sequence holds.", free);
  scope.Gauge("kv_blocks_cached",
              "Of the free KV blocks, those that hold a prefix.",
              static_cast<double>(stats.kv_blocks_cached()));
  scope.Gauge("kv_cache_usage_ratio",
              "Share of the KV blocks that sequences hold, 0 to 1.",
              total > 0 ? (total - free) / total : 0);
  scope.Counter("prefix_cache_queries_total",
                "Tokens that were looked up in the prefix cache.",
                stats.prefix_lookup_tokens());
  scope.Counter("prefix_cache_hits_total",
                "Tokens looked up whose keys and values were cached.",
                stats.prefix_hit_tokens());
  scope.Counter("prefix_cache_evictions_total",
                "Cached KV blocks that were given to others.",
                stats.prefix_evictions());
  scope.Counter("prefix_cache_copies_total",
                "Cached KV blocks that were copied to be written.",
                stats.prefix_copies());
}

void AddCopies(const v1::RouterStats& stats, MetricScope& scope) {
  const v1::CopyUsage& copies = stats.copies();
  MetricFamilies::Family& by_outcome = scope.Counter(
      "copies_total",
      "Routed copies of committed steps by what became of them; next_best and "
      "dropped are fallbacks.");
  for (const auto& [outcome, count] :
       {std::pair("first_choice", copies.first_choice()),
        std::pair("by_replica", copies.by_replica()),
        std::pair("after_wait", copies.after_wait()),
        std::pair("other_version", copies.other_version()),
        std::pair("next_best", copies.next_best()),
        std::pair("dropped", copies.dropped())}) {
    by_outcome.Add(static_cast<double>(count), {{"outcome", outcome}});
  }
  scope.Counter("computed_tokens_total",
                "Tokens that went through the layers in committed steps.",
                copies.computed_tokens());
  scope.Counter("copies_refused_total",
                "Times that an expert process refused a copy for want of room.",
                stats.copies_refused());
  scope.Counter("copies_over_capacity_total",
                "Times that a copy was over the capacity factor.",
                stats.copies_over_capacity());
  scope.Counter("copies_resent_total",
                "Copies sent again after a lost, silent or full process.",
                stats.copies_resent());
}

void AddFailover(const v1::RouterStats& stats, MetricScope& scope) {
  const v1::FailoverStats& failover = stats.failover();
  scope.Counter("hop_messages_total", "Messages to expert processes.",
                failover.messages());
  scope.Counter("hop_retries_total", "Messages sent again after a failure.",
                failover.retries());
  scope.Counter("hop_retries_held_back_total",
                "Messages sent again later, since the budget was spent.",
                failover.retries_held_back());
  scope.Counter("hop_hedges_total",
                "Late messages that were sent to another replica, too.",
                failover.hedges());
  scope.Counter("hop_hedges_won_total",
                "Hedges that the other replica answered first.",
                failover.hedges_won());
  scope.Counter(
      "hop_hedges_held_back_total",
      "Late messages that were not hedged, since the budget was spent.",
      failover.hedges_held_back());
  scope.Counter("ejections_total", "Times that an expert process was ejected.",
                failover.ejections());
  scope.Counter(
      "ejections_forgone_total",
      "Times that a sick expert process was not, being the last replica.",
      failover.ejections_forgone());
  scope.Counter("readmissions_total",
                "Times that an ejected process was taken back.",
                failover.readmissions());
}

void AddVersions(const v1::RouterStats& stats, MetricScope& scope) {
  scope.Gauge("placement_epoch",
              "Grows with every change of who serves which expert.",
              static_cast<double>(stats.placement_epoch()));
  MetricFamilies::Family& snapshot = scope.Gauge(
      "snapshot_info",
      "Always 1; the model snapshot of new sequences, and the canary's.");
  if (!stats.current_snapshot().empty()) {
    snapshot.Add(1,
                 {{"role", "current"}, {"snapshot", stats.current_snapshot()}});
  }
  if (!stats.canary_snapshot().empty()) {
    snapshot.Add(1,
                 {{"role", "canary"}, {"snapshot", stats.canary_snapshot()}});
  }
  scope.Counter("canary_sequences_total",
                "Sequences that began with the canary's snapshot.",
                stats.sequences_canary());
  scope.Counter("moved_version_sequences_total",
                "Sequences that changed a version under way.",
                stats.sequences_moved_version());
  scope.Counter(
      "moved_version_copies_total",
      "Copies computed by another version than their sequence began with.",
      stats.copies_moved_version());
}

// "ejected: why" is "ejected".
std::string FirstWord(const std::string& state) {
  return state.substr(0, state.find(':'));
}

void AddPeers(const v1::RouterStats& stats, MetricScope& scope) {
  std::map<std::string, int> by_state;
  for (const char* state : {"connecting", "loading", "ready", "draining",
                            "ejected", "leaving", "refused", "away"}) {
    by_state[state] = 0;
  }
  MetricFamilies::Family& count =
      scope.Gauge("expert_processes", "Expert processes by their state.");
  MetricFamilies::Family& messages = scope.Counter(
      "peer_messages_total", "Messages that the expert process answered.");
  MetricFamilies::Family& failures = scope.Counter(
      "peer_failures_total", "Streams to the expert process that were lost.");
  MetricFamilies::Family& late =
      scope.Counter("peer_late_total", "Messages whose answer was late.");
  MetricFamilies::Family& timeouts =
      scope.Counter("peer_timeouts_total",
                    "Messages without an answer by the hop's deadline.");
  MetricFamilies::Family& in_flight =
      scope.Gauge("peer_in_flight_rows", "Rows that wait for an answer.");
  MetricFamilies::Family& free_rows = scope.Gauge(
      "peer_free_rows", "Room in the process's queue at its last answer.");
  size_t num_series = 0;
  for (const v1::ExpertPeer& peer : stats.peers()) {
    ++by_state[FirstWord(peer.state())];
    if (++num_series > kMaxPeerSeries) continue;
    const MetricLabels labels = {{"address", peer.address()}};
    messages.Add(static_cast<double>(peer.messages()), labels);
    failures.Add(static_cast<double>(peer.failures()), labels);
    late.Add(static_cast<double>(peer.health().late()), labels);
    timeouts.Add(static_cast<double>(peer.health().timeouts()), labels);
    in_flight.Add(static_cast<double>(peer.in_flight_rows()), labels);
    free_rows.Add(static_cast<double>(peer.free_rows()), labels);
  }
  for (const auto& [state, number] : by_state) {
    count.Add(number, {{"state", state}});
  }
}

void AddLayers(const v1::RouterStats& stats, MetricScope& scope) {
  size_t num_series = 0;
  for (const v1::LayerLoad& load : stats.layer_load()) {
    num_series += static_cast<size_t>(load.tokens_per_expert_size());
  }
  MetricFamilies::Family& of_layer = scope.Counter(
      "layer_copies_total",
      "Times that an expert of the layer was chosen for a token.");
  MetricFamilies::Family& imbalance = scope.Gauge(
      "layer_imbalance_ratio",
      "Of late, copies of the hottest expert of the layer over the mean.");
  MetricFamilies::Family& of_expert = scope.Counter(
      "expert_tokens_total", "Tokens that the expert was chosen for.");
  for (const v1::LayerLoad& load : stats.layer_load()) {
    const std::string layer = std::to_string(load.layer());
    const auto& tokens = load.tokens_per_expert();
    of_layer.Add(static_cast<double>(std::accumulate(
                     tokens.begin(), tokens.end(), uint64_t{0})),
                 {{"layer", layer}});
    const auto& recent = load.recent_tokens_per_expert();
    imbalance.Add(MaxOverMean(absl::MakeConstSpan(
                      recent.data(), static_cast<size_t>(recent.size()))),
                  {{"layer", layer}});
    if (num_series > kMaxExpertSeries) continue;
    for (int expert = 0; expert < tokens.size(); ++expert) {
      of_expert.Add(static_cast<double>(tokens[expert]),
                    {{"layer", layer}, {"expert", std::to_string(expert)}});
    }
  }
  scope.Gauge("collapsed_layers", "Layers whose copies go to few experts, now.",
              stats.collapsed_layers_size());
  scope.Counter("collapses_total", "Times that a layer collapsed.",
                stats.collapses());
}

}  // namespace

void AddRouterMetrics(const v1::RouterStats& stats, const LoopHistograms& loop,
                      const HopHistograms* hop, MetricFamilies& families) {
  MetricScope scope(families, "troupe_router_");
  AddSequences(stats, scope);
  scope.Histogram("step_seconds", "Duration of committed steps.",
                  loop.step_seconds);
  scope.Histogram("step_tokens",
                  "Tokens of committed steps, of prompts and outputs.",
                  loop.step_tokens);
  scope.Histogram("queue_seconds",
                  "What sequences waited for their first step.",
                  loop.queue_seconds);
  AddCache(stats, scope);
  AddDiscoveryMetrics("troupe_router", stats.discovery(), families);
  if (hop == nullptr) return;
  scope.Histogram("expert_wait_seconds",
                  "What a layer of a step waited for its experts.",
                  hop->wait_seconds);
  scope.Histogram(
      "hop_seconds",
      "What a layer of a step waited for its experts beyond their computing.",
      hop->hop_seconds);
  AddCopies(stats, scope);
  AddFailover(stats, scope);
  AddVersions(stats, scope);
  AddPeers(stats, scope);
  AddLayers(stats, scope);
}

}  // namespace troupe

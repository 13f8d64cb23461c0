// troupe stats: where the tokens go and how the processes are.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "cluster/rollout.h"
#include "google/protobuf/util/json_util.h"
#include "tools/cli/client_flags.h"
#include "tools/cli/command.h"
#include "tools/cli/generation_flags.h"
#include "tools/cli/heat_map.h"
#include "tools/cli/interrupts.h"
#include "tools/cli/load_lines.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

struct Flags {
  ClientFlags gateway;
  bool watch = false;
  double interval_s = 1;
  bool json = false;
};

std::vector<HeatMapRow> LayersOf(const v1::ClusterStats& stats) {
  std::vector<HeatMapRow> rows;
  for (const v1::RouterStats& router : stats.routers()) {
    for (const v1::LayerLoad& load : router.layer_load()) {
      rows.push_back(
          {load.layer(),
           {load.tokens_per_expert().begin(), load.tokens_per_expert().end()}});
    }
  }
  return MergeLayers(rows);
}

// Where its streams go, and how each router is.
std::string RouterPeerLines(const v1::GatewayStats& gateway) {
  std::string text;
  if (gateway.router_peers_size() > 0) {
    text =
        absl::StrFormat("  %-24s %-10s %8s %8s %6s %6s %10s\n", "router",
                        "state", "streams", "so far", "moved", "lost", "probe");
  }
  for (const v1::RouterPeer& peer : gateway.router_peers()) {
    absl::StrAppendFormat(
        &text, "  %-24s %-10s %8d %8s %6d %6d %7.1f ms\n",
        peer.name().empty() ? peer.address() : peer.name(),
        peer.removed() ? absl::StrCat(peer.state(), "*") : peer.state(),
        peer.active_streams(), FormatCount(static_cast<double>(peer.streams())),
        peer.moved_streams(), peer.lost_streams(), peer.probe_ms_mean());
    if (!peer.reason().empty() && peer.reason() != peer.state()) {
      absl::StrAppend(&text, "    ", peer.reason(), "\n");
    }
    if (peer.removed()) {
      absl::StrAppend(&text, "    * no longer among the addresses\n");
    }
  }
  for (const v1::DiscoveryStats& source : gateway.router_discovery()) {
    absl::StrAppend(&text, "  routers of ", source.source(), ": ",
                    source.addresses(), source.last_error().empty() ? "" : "; ",
                    source.last_error(), "\n");
  }
  return text;
}

std::string GatewayLines(const v1::GatewayStats& gateway) {
  return absl::StrFormat(
             "%s%s: %d of %d requests active; %d served, %d refused, %d "
             "failed, %d cancelled; %d streams moved\n"
             "  tokens in %s, out %s; %s resident\n",
             gateway.name(),
             gateway.state() == v1::SERVING_STATE_DRAINING  ? " (draining)"
             : gateway.state() == v1::SERVING_STATE_LOADING ? " (not ready)"
                                                            : "",
             gateway.active_requests(), gateway.max_requests(),
             gateway.requests_ok(), gateway.requests_refused(),
             gateway.requests_failed(), gateway.requests_cancelled(),
             gateway.moved_streams(),
             FormatCount(static_cast<double>(gateway.prompt_tokens())),
             FormatCount(static_cast<double>(gateway.completion_tokens())),
             FormatBytes(static_cast<double>(gateway.resident_bytes()))) +
         RouterPeerLines(gateway);
}

std::string PeerLine(const v1::ExpertPeer& peer) {
  // "away: why": the reason goes on a line of its own.
  const std::pair<std::string, std::string> state =
      absl::StrSplit(peer.state(), absl::MaxSplits(": ", 1));
  std::string line = absl::StrFormat(
      "  %-14s %-9s %-5s %9s %9s %9.3f ms %9.3f %9.3f %9d\n",
      peer.description().name().empty() ? peer.address()
                                        : peer.description().name(),
      state.first, peer.transport(),
      FormatCount(static_cast<double>(peer.free_rows())),
      FormatCount(static_cast<double>(peer.messages())),
      peer.round_trip_ms_mean(), peer.compute_ms_mean(), peer.queue_ms_mean(),
      peer.failures());
  if (!state.second.empty()) {
    absl::StrAppend(&line, "    ", state.second, "\n");
  }
  const v1::PeerHealth& health = peer.health();
  if (health.late() + health.timeouts() + health.ejections() > 0) {
    absl::StrAppendFormat(
        &line,
        "    late %d (hedges won %d), timeouts %d, ejected %d times (probes "
        "%d, failed %d); p50 %.3f ms, p99 %.3f ms, late after %.1f ms\n",
        health.late(), health.hedges_won(), health.timeouts(),
        health.ejections(), health.probes(), health.failed_probes(),
        health.round_trip_ms_p50(), health.round_trip_ms_p99(),
        health.hedge_delay_ms());
  }
  return line;
}

// Which versions of the experts are in use.
std::string VersionLines(const v1::RouterStats& router) {
  if (router.current_snapshot().empty()) return "";  // a dense model
  std::string text =
      absl::StrFormat("  placement %d, snapshot %s", router.placement_epoch(),
                      router.current_snapshot());
  const v1::Rollout& rollout = router.rollout();
  if (rollout.revision() > 0) {
    absl::StrAppendFormat(&text, "; rollout %d: %s", rollout.revision(),
                          LabelsText(rollout.labels()));
    if (!rollout.canary_labels().empty()) {
      absl::StrAppendFormat(&text, ", canary %s (%s) for %g %%",
                            LabelsText(rollout.canary_labels()),
                            router.canary_snapshot(),
                            rollout.canary_share() / 100.0);
    }
  }
  text += "\n";
  for (const v1::SnapshotUse& use : router.snapshots()) {
    if (use.id() == router.current_snapshot()) continue;
    absl::StrAppendFormat(&text, "    %d sequences with snapshot %s %s\n",
                          use.sequences(), use.id(), use.labels());
  }
  if (router.sequences_moved_version() > 0) {
    absl::StrAppendFormat(
        &text, "    %d sequences (%d copies) moved to another version\n",
        router.sequences_moved_version(), router.copies_moved_version());
  }
  return text;
}

std::string FallbackLine(const v1::RouterStats& router) {
  std::string text = absl::StrCat("  fallback ", router.fallback());
  if (router.capacity_factor() > 0) {
    absl::StrAppendFormat(&text, ", capacity factor %g by %s, %d over it",
                          router.capacity_factor(), router.refuse(),
                          router.copies_over_capacity());
  }
  const std::string copies = DescribeCopies(router.copies());
  return absl::StrCat(
      text, "; copies: ",
      FormatCount(static_cast<double>(router.copies().first_choice())),
      " by first choice", copies.empty() ? "" : ", ", copies, "\n");
}

std::string RouterLines(const v1::RouterStats& router) {
  const double steps = std::max<double>(static_cast<double>(router.steps()), 1);
  std::string text = absl::StrFormat(
      "%s: %d running, %d waiting; KV %d of %d blocks free (%d cached); %s "
      "resident\n"
      "  %s steps of %.2f ms (%.0f%% waiting for experts, of it %.0f%% the "
      "hop: %.0f us a layer), %d preemptions\n"
      "  tokens: prefill %s, decode %s\n"
      "  prefix cache: %s of %s tokens found (%.0f%%), %d blocks copied, %d "
      "evicted\n"
      "  copies: dispatched %s, resent %d, refused %d, dropped %d\n",
      router.name(), router.running_sequences(), router.waiting_sequences(),
      router.kv_blocks_free(), router.kv_blocks_total(),
      router.kv_blocks_cached(),
      FormatBytes(static_cast<double>(router.resident_bytes())),
      FormatCount(static_cast<double>(router.steps())),
      1000 * router.step_seconds() / steps,
      router.step_seconds() > 0
          ? 100 * router.expert_wait_seconds() / router.step_seconds()
          : 0.0,
      router.expert_wait_seconds() > 0
          ? 100 * router.hop_seconds() / router.expert_wait_seconds()
          : 0.0,
      1e6 * router.hop_seconds() /
          std::max<double>(static_cast<double>(router.hops()), 1),
      router.preemptions(),
      FormatCount(static_cast<double>(router.prefill_tokens())),
      FormatCount(static_cast<double>(router.decode_tokens())),
      FormatCount(static_cast<double>(router.prefix_hit_tokens())),
      FormatCount(static_cast<double>(router.prefix_lookup_tokens())),
      router.prefix_lookup_tokens() > 0
          ? 100.0 * static_cast<double>(router.prefix_hit_tokens()) /
                static_cast<double>(router.prefix_lookup_tokens())
          : 0.0,
      router.prefix_copies(), router.prefix_evictions(),
      FormatCount(static_cast<double>(router.copies_dispatched())),
      router.copies_resent(), router.copies_refused(), router.copies_dropped());
  text += VersionLines(router);
  text += FallbackLine(router);
  if (router.has_failover()) {
    const v1::FailoverStats& failover = router.failover();
    absl::StrAppendFormat(
        &text,
        "  failover: %s messages, hedges %d (won %d, held back %d), retries %d "
        "(held back %d), ejections %d (last replica: %d), readmissions %d\n",
        FormatCount(static_cast<double>(failover.messages())),
        failover.hedges(), failover.hedges_won(), failover.hedges_held_back(),
        failover.retries(), failover.retries_held_back(), failover.ejections(),
        failover.ejections_forgone(), failover.readmissions());
  }
  for (const v1::DiscoveryStats& source : router.discovery()) {
    absl::StrAppendFormat(&text, "  %s: %d addresses, %d changes%s\n",
                          source.source(), source.addresses(), source.changes(),
                          source.last_error().empty()
                              ? ""
                              : absl::StrCat("; ", source.last_error()));
  }
  if (router.peers_size() > 0) {
    absl::StrAppendFormat(&text, "  %-14s %-9s %-5s %9s %9s %12s %9s %9s %9s\n",
                          "peer", "state", "hop", "room", "messages",
                          "round trip", "computing", "queued", "failures");
  }
  for (const v1::ExpertPeer& peer : router.peers()) text += PeerLine(peer);
  return text;
}

std::string Render(const v1::ClusterStats& stats,
                   const std::vector<HeatMapRow>& layers,
                   const std::string& caption) {
  std::string text = GatewayLines(stats.gateway());
  for (const v1::RouterStats& router : stats.routers()) {
    text += RouterLines(router);
  }
  for (const std::string& address : stats.unreachable()) {
    absl::StrAppend(&text, address, ": does not answer\n");
  }
  text += LoadLines(stats);
  if (!layers.empty()) {
    HeatMapStyle style;
    style.colour = UseColour(STDOUT_FILENO);
    style.columns = TerminalColumns(STDOUT_FILENO);
    absl::StrAppend(&text, "\n", caption, "\n", RenderHeatMap(layers, style));
  }
  return text;
}

int PrintJson(const v1::ClusterStats& stats) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(stats, &json, options)
           .ok()) {
    return kExitFailed;
  }
  std::fputs(json.c_str(), stdout);
  return kExitOk;
}

// The screen again and again; the heat map is that of the last interval once
// there was work in one.
int Watch(GatewayClient& client, const Flags& flags) {
  const bool terminal = IsTerminal(STDOUT_FILENO);
  const Interrupts interrupts(nullptr);
  std::vector<HeatMapRow> before;
  do {
    const absl::StatusOr<v1::ClusterStats> stats = client.GetStats(true);
    if (!stats.ok()) {
      std::fprintf(stderr, "troupe: %s\n",
                   Explain(stats.status(), flags.gateway.address).c_str());
      return kExitFailed;
    }
    const std::vector<HeatMapRow> now = LayersOf(*stats);
    if (terminal) std::fputs("\x1b[H\x1b[J", stdout);
    std::fputs(
        Render(*stats, SubtractLayers(now, before),
               before.empty() ? "share of tokens per layer and expert so far"
                              : absl::StrFormat("share of tokens per layer and "
                                                "expert, last %g s",
                                                flags.interval_s))
            .c_str(),
        stdout);
    std::fflush(stdout);
    before = now;
  } while (!interrupts.WaitFor(
      milliseconds(static_cast<int>(flags.interval_s * 1000))));
  return kExitOk;
}

int Run(const Flags& flags) {
  GatewayClient client(flags.gateway.address, flags.gateway.api_key,
                       flags.gateway.to_gateway);
  if (flags.watch) return Watch(client, flags);
  const absl::StatusOr<v1::ClusterStats> stats = client.GetStats(true);
  if (!stats.ok()) {
    std::fprintf(stderr, "troupe: %s\n",
                 Explain(stats.status(), flags.gateway.address).c_str());
    return kExitFailed;
  }
  if (flags.json) return PrintJson(*stats);
  std::fputs(Render(*stats, LayersOf(*stats),
                    "share of tokens per layer and expert (1.00: an equal one)")
                 .c_str(),
             stdout);
  return kExitOk;
}

}  // namespace

Command AddStats(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand(
      "stats", "Show counters, peers and the load of every expert");
  AddClientFlags(*app, flags->gateway);
  CLI::Option* watch = app->add_flag("-w,--watch", flags->watch,
                                     "Draw again and again until Ctrl-C");
  app->add_option("--interval", flags->interval_s, "Of --watch, in seconds")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  app->add_flag("--json", flags->json,
                "Everything, the signals to scale by included, as JSON "
                "(64-bit numbers are texts, as in protobuf's JSON)")
      ->excludes(watch);
  app->footer(
      "Each row of the heat map is a layer, each column an expert; max/mean "
      "is\nthe imbalance of the layer. Colour: on a terminal, unless NO_COLOR "
      "is set.\n"
      "Examples:\n  troupe stats\n  troupe stats --watch\n"
      "  troupe stats --json | jq '.routers[0].layer_load'");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace troupe

#include "tools/cli/generation_flags.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cluster/fallback_policy.h"
#include "common/status_macros.h"
#include "tools/cli/terminal.h"

namespace troupe {

void AddGenerationFlags(CLI::App& app, GenerationFlags& flags) {
  const std::string group = "Generation";
  app.add_option("--max-tokens", flags.max_tokens,
                 "Tokens to generate at most; 0: as many as fit")
      ->capture_default_str()
      ->group(group);
  app.add_option("--seed", flags.seed,
                 "The same seed gives the same text; default: a random one")
      ->group(group);
  app.add_option("--temperature", flags.sampling.temperature, "0: greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->group(group);
  app.add_option("--top-k", flags.sampling.top_k,
                 "Sample from so many tokens; 0: from all")
      ->group(group);
  app.add_option("--top-p", flags.sampling.top_p,
                 "Sample from the tokens that make up this probability")
      ->check(CLI::Range(0.0, 1.0))
      ->group(group);
  app.add_option("--min-p", flags.sampling.min_p,
                 "Leave out tokens less probable than this share of the best")
      ->check(CLI::Range(0.0, 1.0))
      ->group(group);
  app.add_option("--repetition-penalty", flags.sampling.repetition_penalty,
                 "Above 1: avoid tokens of prompt and text")
      ->group(group);
  app.add_option("--presence-penalty", flags.sampling.presence_penalty,
                 "-2 to 2: avoid tokens of the text")
      ->check(CLI::Range(-2.0, 2.0))
      ->group(group);
  app.add_option("--frequency-penalty", flags.sampling.frequency_penalty,
                 "-2 to 2: the same per occurrence")
      ->check(CLI::Range(-2.0, 2.0))
      ->group(group);
  app.add_option("--stop", flags.stop, "End before this text; may be repeated")
      ->group(group);
  app.add_option("--fallback", flags.fallback,
                 "When an expert has no room: exact, balanced, fast, or a "
                 "chain of replica,wait,next_best,drop; default: the server's")
      ->check([](const std::string& text) {
        return std::string(ParseFallback(text).status().message());
      })
      ->group(group);
  app.add_option("--timeout", flags.timeout_s,
                 "Seconds until the request is given up; 0: never")
      ->check(CLI::Range(0.0, 86400.0))
      ->group(group);
}

absl::StatusOr<v1::GenerateRequest> MakeRequest(GatewayClient& client,
                                                const GenerationFlags& flags) {
  v1::GenerateRequest request;
  request.set_max_tokens(flags.max_tokens);
  if (flags.seed) request.set_seed(*flags.seed);
  for (const std::string& stop : flags.stop) request.add_stop(stop);
  if (!flags.fallback.empty()) {
    ABSL_ASSIGN_OR_RETURN(const FallbackPolicy policy,
                          ParseFallback(flags.fallback));
    *request.mutable_fallback() = ToProto(policy);
  }
  if (flags.sampling.any()) {
    ABSL_ASSIGN_OR_RETURN(const v1::ModelInfo model, client.GetModel());
    *request.mutable_sampling() =
        MergeSampling(model.default_sampling(), flags.sampling);
  }
  return request;
}

absl::Status StreamToStdout(GatewayClient& client,
                            const v1::GenerateRequest& request,
                            const GenerationFlags& flags, v1::Usage* usage,
                            std::string* text) {
  const bool terminal = IsTerminal(STDOUT_FILENO);
  const absl::Status status = client.Generate(
      request, static_cast<int>(flags.timeout_s * 1000),
      [&](const v1::GenerateResponse& response) {
        const std::string shown =
            terminal ? WithoutControls(response.text()) : response.text();
        std::fwrite(shown.data(), 1, shown.size(), stdout);
        std::fflush(stdout);
        text->append(response.text());
        if (response.has_usage()) *usage = response.usage();
      });
  if (!text->empty() && !absl::EndsWith(*text, "\n")) std::fputc('\n', stdout);
  std::fflush(stdout);
  return status;
}

std::string DescribeUsage(const v1::Usage& usage) {
  const double decode_ms = usage.total_ms() - usage.ttft_ms();
  std::string rate;
  if (usage.completion_tokens() > 1 && decode_ms > 0) {
    rate =
        absl::StrFormat(", %.1f tokens/s",
                        1000.0 * (usage.completion_tokens() - 1) / decode_ms);
  }
  std::string cached;
  if (usage.cached_tokens() > 0) {
    cached = absl::StrFormat(" (%d cached)", usage.cached_tokens());
  }
  std::string copies = DescribeCopies(usage.copies());
  if (!copies.empty()) {
    copies = absl::StrCat("; copies: ", usage.copies().first_choice(),
                          " by first choice, ", copies);
  }
  std::string moved;
  if (usage.moved_streams() > 0) {
    moved = absl::StrFormat(", router changed %d times", usage.moved_streams());
  }
  return absl::StrFormat("%d%s + %d tokens, first after %.0f ms%s%s, seed %d%s",
                         usage.prompt_tokens(), cached,
                         usage.completion_tokens(), usage.ttft_ms(), rate,
                         moved, usage.seed(), copies);
}

std::string DescribeCopies(const v1::CopyUsage& copies) {
  std::vector<std::string> parts;
  for (const auto& [count, what] :
       {std::pair(copies.by_replica(), "by replica"),
        std::pair(copies.after_wait(), "after a wait"),
        std::pair(copies.other_version(), "by another version"),
        std::pair(copies.next_best(), "by next best"),
        std::pair(copies.dropped(), "dropped")}) {
    if (count > 0) parts.push_back(absl::StrCat(count, " ", what));
  }
  return absl::StrJoin(parts, ", ");
}

}  // namespace troupe

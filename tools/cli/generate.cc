// troupe generate: one prompt, streamed.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tools/cli/client_flags.h"
#include "tools/cli/command.h"
#include "tools/cli/generation_flags.h"
#include "tools/cli/interrupts.h"

namespace troupe {
namespace {

struct Flags {
  std::string prompt;
  ClientFlags gateway;
  GenerationFlags generation;
  uint32_t n = 1;
  bool echo = false;
  bool json = false;
  bool logprobs = false;
  bool quiet = false;
};

nlohmann::json CopiesJson(const v1::CopyUsage& copies) {
  return {{"computed_tokens", copies.computed_tokens()},
          {"first_choice", copies.first_choice()},
          {"by_replica", copies.by_replica()},
          {"after_wait", copies.after_wait()},
          {"other_version", copies.other_version()},
          {"next_best", copies.next_best()},
          {"dropped", copies.dropped()}};
}

nlohmann::json UsageJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"total_tokens", usage.total_tokens()},
          {"cached_tokens", usage.cached_tokens()},
          {"seed", usage.seed()},
          {"request_id", usage.request_id()},
          {"preemptions", usage.preemptions()},
          {"copies", CopiesJson(usage.copies())},
          {"queue_ms", usage.queue_ms()},
          {"ttft_ms", usage.ttft_ms()},
          {"total_ms", usage.total_ms()}};
}

const char* Name(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return "";
  }
}

struct ChoiceResult {
  std::string text;
  std::string finish_reason;
  std::string stop_reason;
  nlohmann::json tokens = nlohmann::json::array();
};

void Collect(const v1::GenerateResponse& response, bool logprobs,
             ChoiceResult& choice) {
  choice.text += response.text();
  choice.finish_reason = Name(response.finish_reason());
  if (!response.stop_reason().empty()) {
    choice.stop_reason = response.stop_reason();
  }
  for (const v1::GeneratedToken& token : response.tokens()) {
    nlohmann::json entry = {{"id", token.token_id()}, {"text", token.text()}};
    if (logprobs && token.has_logprob()) entry["logprob"] = token.logprob();
    choice.tokens.push_back(std::move(entry));
  }
}

// All choices when they are complete: as JSON, or one after the other.
absl::Status CollectAndPrint(GatewayClient& client,
                             const v1::GenerateRequest& request,
                             const Flags& flags, v1::Usage* usage) {
  std::vector<ChoiceResult> choices(flags.n);
  const absl::Status status = client.Generate(
      request, static_cast<int>(flags.generation.timeout_s * 1000),
      [&](const v1::GenerateResponse& response) {
        if (response.index() < choices.size()) {
          Collect(response, flags.logprobs, choices[response.index()]);
        }
        if (response.has_usage()) *usage = response.usage();
      });
  if (!status.ok()) return status;
  if (!flags.json) {
    for (size_t i = 0; i < choices.size(); ++i) {
      std::printf("--- choice %zu ---\n%s\n", i, choices[i].text.c_str());
    }
    return status;
  }
  nlohmann::json json = {{"choices", nlohmann::json::array()},
                         {"usage", UsageJson(*usage)}};
  for (size_t i = 0; i < choices.size(); ++i) {
    json["choices"].push_back({{"index", i},
                               {"text", choices[i].text},
                               {"finish_reason", choices[i].finish_reason},
                               {"stop_reason", choices[i].stop_reason},
                               {"tokens", choices[i].tokens}});
  }
  std::printf("%s\n", json.dump(2).c_str());
  return status;
}

int Run(Flags& flags) {
  GatewayClient client(flags.gateway.address, flags.gateway.api_key,
                       flags.gateway.to_gateway);
  Interrupts interrupts([&client] { client.CancelAll(); });
  if (flags.prompt == "-") {
    flags.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  absl::StatusOr<v1::GenerateRequest> request =
      MakeRequest(client, flags.generation);
  absl::Status status = request.status();
  v1::Usage usage;
  if (status.ok()) {
    request->set_text(flags.prompt);
    request->set_n(flags.n);
    request->set_echo(flags.echo);
    request->set_logprobs(flags.logprobs);
    std::string text;
    status =
        flags.json || flags.n > 1
            ? CollectAndPrint(client, *request, flags, &usage)
            : StreamToStdout(client, *request, flags.generation, &usage, &text);
  }
  if (interrupts.interrupted()) return kExitInterrupted;
  if (!status.ok()) {
    std::fprintf(stderr, "troupe: %s\n",
                 Explain(status, flags.gateway.address).c_str());
    return kExitFailed;
  }
  if (!flags.quiet && !flags.json) {
    std::fprintf(stderr, "[%s]\n", DescribeUsage(usage).c_str());
  }
  return kExitOk;
}

}  // namespace

Command AddGenerate(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand(
      "generate", "Continue a prompt and stream the text");
  app->add_option("PROMPT", flags->prompt, "Text; - reads standard input")
      ->required();
  AddClientFlags(*app, flags->gateway);
  app->add_option("-n,--choices", flags->n, "Different continuations")
      ->check(CLI::Range(1, 16))
      ->capture_default_str();
  app->add_flag("--echo", flags->echo, "Print the prompt, too");
  app->add_flag("--json", flags->json, "Everything as one JSON object");
  app->add_flag("--logprobs", flags->logprobs,
                "With --json: log-probabilities of the tokens");
  app->add_flag("-q,--quiet", flags->quiet, "No line about tokens and speed");
  AddGenerationFlags(*app, flags->generation);
  app->footer(
      "Examples:\n"
      "  troupe generate \"Once upon a time\"\n"
      "  troupe generate \"Once upon a time\" --seed 7 --temperature 0.8\n"
      "  troupe generate \"One day\" --stop \"The end\" --max-tokens 500\n"
      "  echo \"Tom had a red\" | troupe generate - --json --logprobs\n"
      "Ctrl-C cancels the request in the whole cluster.");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace troupe

// troupe chat: a conversation, turn by turn.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "common/status_macros.h"
#include "tools/cli/chat_format.h"
#include "tools/cli/client_flags.h"
#include "tools/cli/command.h"
#include "tools/cli/generation_flags.h"
#include "tools/cli/interrupts.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

struct Flags {
  ClientFlags gateway;
  std::string system;
  GenerationFlags generation;
};

// Up to where the assistant's next words begin. The gateway knows how the
// checkpoint writes turns, and that what people type is no control token.
absl::StatusOr<std::vector<uint32_t>> EncodeChat(
    GatewayClient& client, bool has_template,
    const std::vector<v1::ChatMessage>& messages) {
  if (has_template) return client.TokenizeChat(messages);
  return client.Tokenize(PlainChat(messages), /*add_special_tokens=*/true,
                         /*parse_special=*/false);
}

void Introduce(const v1::ModelInfo& model) {
  std::fprintf(stderr, "%s (%s), context %u tokens\n", model.name().c_str(),
               model.family().c_str(), model.max_context());
  if (model.chat_template().empty()) {
    std::fprintf(stderr,
                 "The model has no chat template: it continues the text of "
                 "the conversation.\n");
  }
  std::fprintf(stderr,
               "/reset forgets the conversation, /quit or Ctrl-D ends. Ctrl-C "
               "stops an answer.\n");
}

// One answer, appended to the conversation.
absl::Status Answer(GatewayClient& client, const Flags& flags,
                    bool has_template, std::vector<v1::ChatMessage>& messages) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<uint32_t> prompt,
                        EncodeChat(client, has_template, messages));
  ABSL_ASSIGN_OR_RETURN(v1::GenerateRequest request,
                        MakeRequest(client, flags.generation));
  request.mutable_tokens()->mutable_token_ids()->Add(prompt.begin(),
                                                     prompt.end());
  v1::Usage usage;
  std::string text;
  const absl::Status status =
      StreamToStdout(client, request, flags.generation, &usage, &text);
  if (!text.empty()) messages.push_back(NewMessage("assistant", text));
  if (status.ok()) {
    std::fprintf(stderr, "[%s]\n", DescribeUsage(usage).c_str());
  }
  return status;
}

std::vector<v1::ChatMessage> FreshConversation(const Flags& flags) {
  if (flags.system.empty()) return {};
  return {NewMessage("system", flags.system)};
}

int Run(const Flags& flags) {
  GatewayClient client(flags.gateway.address, flags.gateway.api_key,
                       flags.gateway.to_gateway);
  std::atomic<bool> answering = false;
  Interrupts interrupts([&] {
    if (!answering) _exit(kExitInterrupted);
    client.CancelAll();
  });
  const absl::StatusOr<v1::ModelInfo> model = client.GetModel();
  if (!model.ok()) {
    std::fprintf(stderr, "troupe: %s\n",
                 Explain(model.status(), flags.gateway.address).c_str());
    return kExitFailed;
  }
  const bool has_template = !model->chat_template().empty();
  const bool terminal = IsTerminal(STDIN_FILENO);
  if (terminal) Introduce(*model);
  std::vector<v1::ChatMessage> messages = FreshConversation(flags);
  std::string line;
  while (true) {
    if (terminal) std::fputs("> ", stderr);
    if (!std::getline(std::cin, line) || line == "/quit") return kExitOk;
    if (line == "/reset") {
      messages = FreshConversation(flags);
      continue;
    }
    if (line.empty()) continue;
    const size_t size_before = messages.size();
    messages.push_back(NewMessage("user", line));
    answering = true;
    const absl::Status status = Answer(client, flags, has_template, messages);
    answering = false;
    if (interrupts.interrupted()) {
      interrupts.Reset();
      std::fputs("[stopped]\n", stderr);
    } else if (!status.ok()) {
      std::fprintf(stderr, "troupe: %s\n",
                   Explain(status, flags.gateway.address).c_str());
      if (!terminal) return kExitFailed;
      messages.resize(size_before);
    }
  }
}

}  // namespace

Command AddChat(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand("chat", "Talk with the model");
  AddClientFlags(*app, flags->gateway);
  app->add_option("--system", flags->system, "System message");
  AddGenerationFlags(*app, flags->generation);
  app->footer(
      "The checkpoint's chat template decides how turns are written. A model\n"
      "without one (a base model, such as the demo) continues the text: type\n"
      "the beginning of a story.\n"
      "Examples:\n"
      "  troupe chat\n"
      "  troupe chat --system \"Answer in one sentence.\" --temperature 0.7");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace troupe

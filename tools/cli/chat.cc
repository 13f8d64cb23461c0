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

// Each segment on its own: only those of the format may be control tokens.
absl::StatusOr<std::vector<uint32_t>> EncodeChat(
    GatewayClient& client, const std::vector<ChatSegment>& segments) {
  // The beginning-of-text token alone, if the model has one.
  ABSL_ASSIGN_OR_RETURN(std::vector<uint32_t> token_ids,
                        client.Tokenize("", true, false));
  for (const ChatSegment& segment : segments) {
    ABSL_ASSIGN_OR_RETURN(
        const std::vector<uint32_t> part,
        client.Tokenize(segment.text, false, segment.is_control));
    token_ids.insert(token_ids.end(), part.begin(), part.end());
  }
  return token_ids;
}

// The ids of the texts that end a turn, where they are single tokens.
absl::StatusOr<std::vector<uint32_t>> StopTokens(GatewayClient& client,
                                                 ChatFormat format) {
  std::vector<uint32_t> token_ids;
  for (const std::string& stop : ChatStops(format)) {
    ABSL_ASSIGN_OR_RETURN(const std::vector<uint32_t> part,
                          client.Tokenize(stop, false, true));
    if (part.size() == 1) token_ids.push_back(part[0]);
  }
  return token_ids;
}

void Introduce(const v1::ModelInfo& model, ChatFormat format) {
  std::fprintf(stderr, "%s (%s), context %u tokens, chat format: %s\n",
               model.name().c_str(), model.family().c_str(),
               model.max_context(), Name(format));
  if (format == ChatFormat::kPlain) {
    std::fprintf(stderr,
                 "The model has no chat template: it continues the text of "
                 "the conversation.\n");
  } else if (format == ChatFormat::kUnknown) {
    std::fprintf(stderr,
                 "The model's chat template is none of those known here "
                 "(ChatML, Llama 3, Mistral):\nthe text of the conversation "
                 "simply continues.\n");
  }
  std::fprintf(stderr,
               "/reset forgets the conversation, /quit or Ctrl-D ends. Ctrl-C "
               "stops an answer.\n");
}

// One answer, appended to the conversation.
absl::Status Answer(GatewayClient& client, const Flags& flags,
                    ChatFormat format, const std::vector<uint32_t>& stops,
                    std::vector<ChatMessage>& messages) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<uint32_t> prompt,
                        EncodeChat(client, FormatChat(format, messages)));
  ABSL_ASSIGN_OR_RETURN(v1::GenerateRequest request,
                        MakeRequest(client, flags.generation));
  request.mutable_tokens()->mutable_token_ids()->Add(prompt.begin(),
                                                     prompt.end());
  request.mutable_stop_token_ids()->Add(stops.begin(), stops.end());
  v1::Usage usage;
  std::string text;
  const absl::Status status =
      StreamToStdout(client, request, flags.generation, &usage, &text);
  if (!text.empty()) {
    messages.push_back({ChatMessage::Role::kAssistant, text});
  }
  if (status.ok()) {
    std::fprintf(stderr, "[%s]\n", DescribeUsage(usage).c_str());
  }
  return status;
}

std::vector<ChatMessage> FreshConversation(const Flags& flags) {
  if (flags.system.empty()) return {};
  return {{ChatMessage::Role::kSystem, flags.system}};
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
  const ChatFormat format = DetectChatFormat(model->chat_template());
  const absl::StatusOr<std::vector<uint32_t>> stops =
      StopTokens(client, format);
  if (!stops.ok()) {
    std::fprintf(stderr, "troupe: %s\n",
                 Explain(stops.status(), flags.gateway.address).c_str());
    return kExitFailed;
  }
  const bool terminal = IsTerminal(STDIN_FILENO);
  if (terminal) Introduce(*model, format);
  std::vector<ChatMessage> messages = FreshConversation(flags);
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
    messages.push_back({ChatMessage::Role::kUser, line});
    answering = true;
    const absl::Status status = Answer(client, flags, format, *stops, messages);
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
      "The checkpoint's chat template decides how turns are written if it is\n"
      "ChatML, Llama 3 or Mistral. A model without one (a base model, such as\n"
      "the demo) continues the text: type the beginning of a story.\n"
      "Examples:\n"
      "  troupe chat\n"
      "  troupe chat --system \"Answer in one sentence.\" --temperature 0.7");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace troupe

#include "gateway/generation_choice.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "cluster/copy_usage.h"

namespace troupe {
namespace {

// Prompt tokens per response with echo: log-probabilities with alternatives of
// a long prompt would not fit the 4 MiB that clients accept by default.
constexpr size_t kEchoTokensPerResponse = 256;

}  // namespace

v1::GeneratedToken DescribeToken(const Tokenizer& tokenizer,
                                 const v1::TokenOutput& token,
                                 bool has_logprob) {
  v1::GeneratedToken described;
  described.set_token_id(token.token_id());
  described.set_text(TokenText(tokenizer, token.token_id()));
  if (!has_logprob) return described;
  described.set_has_logprob(true);
  described.set_logprob(token.logprob());
  for (const v1::TokenLogprob& top : token.top_logprobs()) {
    v1::GeneratedToken::Alternative* alternative = described.add_top_logprobs();
    alternative->set_token_id(top.token_id());
    alternative->set_text(TokenText(tokenizer, top.token_id()));
    alternative->set_logprob(top.logprob());
  }
  return described;
}

std::vector<v1::GenerateResponse> EchoPrompt(
    const v1::GenerateRequest& request, const Tokenizer& tokenizer,
    const v1::RouterGenerateRequest& plan,
    const v1::RouterGenerateResponse& response) {
  const auto& prompt = plan.prompt_token_ids();
  const bool has_logprobs = response.prompt_size() == prompt.size();
  std::string text = request.text();
  if (!request.has_text()) {
    // Ids without text in the tokenizer leave a gap, as in the output.
    StreamDecoder decoder(
        tokenizer, {.skip_special_tokens = !request.keep_special_tokens()});
    for (const uint32_t token_id : prompt) {
      text += decoder.Append(static_cast<int32_t>(token_id));
    }
    text += decoder.Finish();
  }
  std::vector<v1::GenerateResponse> outputs;
  v1::GenerateResponse output;
  output.set_text(std::move(text));
  for (int i = 0; i < prompt.size(); ++i) {
    v1::TokenOutput token;
    if (has_logprobs) token = response.prompt(i);
    token.set_token_id(prompt[i]);
    *output.add_tokens() =
        DescribeToken(tokenizer, token, /*has_logprob=*/has_logprobs && i > 0);
    output.mutable_tokens()->rbegin()->set_is_prompt(true);
    if (i + 1 == prompt.size() ||
        output.tokens_size() == static_cast<int>(kEchoTokensPerResponse)) {
      outputs.push_back(std::exchange(output, v1::GenerateResponse()));
    }
  }
  return outputs;
}

v1::Usage SumUsage(const std::vector<GenerationChoice>& choices,
                   size_t num_prompt_tokens) {
  v1::Usage usage;
  uint32_t preemptions = 0;
  double queue_ms = 0;
  uint32_t experts_moved = 0;
  std::set<std::string> snapshots;
  uint32_t cached_tokens = std::numeric_limits<uint32_t>::max();
  for (const GenerationChoice& choice : choices) {
    preemptions += choice.usage.preemptions();
    queue_ms = std::max(queue_ms, choice.usage.queue_ms());
    cached_tokens = std::min(cached_tokens, choice.usage.cached_tokens());
    experts_moved += choice.moved_before + choice.usage.experts_moved_version();
    if (!choice.usage.snapshot().empty()) {
      snapshots.insert(choice.usage.snapshot());
    }
    AddCopies(choice.copies_of_earlier, *usage.mutable_copies());
    AddCopies(choice.usage.copies(), *usage.mutable_copies());
  }
  const size_t completion_tokens = NumGenerated(choices);
  usage.set_experts_moved_version(experts_moved);
  usage.mutable_snapshots()->Assign(snapshots.begin(), snapshots.end());
  usage.set_prompt_tokens(static_cast<uint32_t>(num_prompt_tokens));
  usage.set_completion_tokens(static_cast<uint32_t>(completion_tokens));
  usage.set_total_tokens(
      static_cast<uint32_t>(num_prompt_tokens + completion_tokens));
  usage.set_preemptions(preemptions);
  usage.set_queue_ms(queue_ms);
  // What a router says may be any number.
  usage.set_cached_tokens(
      std::min(cached_tokens, static_cast<uint32_t>(num_prompt_tokens)));
  usage.set_moved_streams(NumMoves(choices));
  return usage;
}

uint32_t NumMoves(const std::vector<GenerationChoice>& choices) {
  uint32_t moves = 0;
  for (const GenerationChoice& choice : choices) moves += choice.moves;
  return moves;
}

size_t NumGenerated(const std::vector<GenerationChoice>& choices) {
  size_t count = 0;
  for (const GenerationChoice& choice : choices) {
    count += choice.generated.size();
  }
  return count;
}

}  // namespace troupe

#include "gateway/openai/openai_response.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/copy_usage.h"

namespace troupe {
namespace {

using nlohmann::json;

json NullIfEmpty(const std::string& text) {
  return text.empty() ? json(nullptr) : json(text);
}

const char* FinishReason(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return "";
  }
}

size_t NumCharacters(const std::string& utf8) {
  size_t count = 0;
  for (const char c : utf8) count += (c & 0xc0) != 0x80;
  return count;
}

json EmptyLogprobs(bool is_chat) {
  if (is_chat) return {{"content", json::array()}};
  return {{"tokens", json::array()},
          {"token_logprobs", json::array()},
          {"top_logprobs", json::array()},
          {"text_offset", json::array()}};
}

}  // namespace

json CopiesJson(const v1::CopyUsage& copies) {
  return {{"first_choice", copies.first_choice()},
          {"by_replica", copies.by_replica()},
          {"after_wait", copies.after_wait()},
          {"other_version", copies.other_version()},
          {"next_best", copies.next_best()},
          {"dropped", copies.dropped()},
          {"computed_tokens", copies.computed_tokens()}};
}

OpenAiResponse::OpenAiResponse(const OpenAiRequest& request,
                               const Tokenizer& tokenizer,
                               std::string request_id, std::string model_name,
                               std::string fingerprint, int64_t created_s)
    : request_(request),
      tokenizer_(tokenizer),
      request_id_(std::move(request_id)),
      model_name_(std::move(model_name)),
      fingerprint_(std::move(fingerprint)),
      created_s_(created_s),
      choices_(request.generations.size() * request.n),
      usages_(request.generations.size()),
      prompt_tokens_(request.generations.size()),
      completion_tokens_(request.generations.size()) {
  for (Choice& choice : choices_) {
    choice.logprobs =
        request.logprobs ? EmptyLogprobs(request.is_chat) : json(nullptr);
  }
}

json OpenAiResponse::Head(const char* chat_object, const char* object) const {
  return {{"id",
           absl::StrCat(request_.is_chat ? "chatcmpl-" : "cmpl-", request_id_)},
          {"object", request_.is_chat ? chat_object : object},
          {"created", created_s_},
          {"model", model_name_},
          {"system_fingerprint", absl::StrCat("fp_", fingerprint_)}};
}

json OpenAiResponse::Usage() const {
  uint64_t prompt_tokens = 0;
  uint64_t completion_tokens = 0;
  uint64_t cached_tokens = 0;
  uint64_t moved_streams = 0;
  uint64_t preemptions = 0;
  uint64_t moved_version = 0;
  double queue_ms = 0;
  v1::CopyUsage copies;
  json seeds = json::array();
  json snapshots = json::array();
  for (size_t i = 0; i < usages_.size(); ++i) {
    const v1::Usage& usage = usages_[i];
    prompt_tokens += prompt_tokens_[i];
    completion_tokens += completion_tokens_[i];
    cached_tokens += usage.cached_tokens();
    moved_streams += usage.moved_streams();
    preemptions += usage.preemptions();
    moved_version += usage.experts_moved_version();
    queue_ms = std::max(queue_ms, usage.queue_ms());
    AddCopies(usage.copies(), copies);
    seeds.push_back(usage.seed());
    for (const std::string& snapshot : usage.snapshots()) {
      snapshots.push_back(snapshot);
    }
  }
  json troupe = {{"copies", CopiesJson(copies)},
                 {"moved_streams", moved_streams},
                 {"preemptions", preemptions},
                 {"experts_moved_version", moved_version},
                 {"queue_ms", queue_ms},
                 {"seeds", std::move(seeds)},
                 {"snapshots", std::move(snapshots)}};
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", completion_tokens},
          {"total_tokens", prompt_tokens + completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", 0}}},
          {"troupe", std::move(troupe)}};
}

json OpenAiResponse::ChatLogprob(const std::string& text, uint32_t token_id,
                                 float logprob) const {
  json bytes = json::array();
  for (const char c : tokenizer_.TokenBytes(static_cast<int32_t>(token_id))) {
    bytes.push_back(static_cast<unsigned char>(c));
  }
  return {{"token", text},
          {"logprob", static_cast<double>(logprob)},
          {"bytes", std::move(bytes)}};
}

void OpenAiResponse::AppendLogprobs(const v1::GenerateResponse& response,
                                    Choice& choice, json& logprobs) const {
  for (const v1::GeneratedToken& token : response.tokens()) {
    if (request_.only_prompt && !token.is_prompt()) continue;
    if (request_.is_chat) {
      json entry = ChatLogprob(token.text(), token.token_id(), token.logprob());
      json& top = entry["top_logprobs"] = json::array();
      for (const auto& other : token.top_logprobs()) {
        top.push_back(
            ChatLogprob(other.text(), other.token_id(), other.logprob()));
      }
      logprobs["content"].push_back(std::move(entry));
      continue;
    }
    logprobs["tokens"].push_back(token.text());
    logprobs["text_offset"].push_back(choice.offset);
    // A control token that the text leaves out takes no room in it.
    if (request_.generations[0].keep_special_tokens() ||
        !tokenizer_.IsSpecial(static_cast<int32_t>(token.token_id()))) {
      choice.offset += NumCharacters(token.text());
    }
    if (!token.has_logprob()) {  // nothing comes before the first token
      logprobs["token_logprobs"].push_back(nullptr);
      logprobs["top_logprobs"].push_back(nullptr);
      continue;
    }
    logprobs["token_logprobs"].push_back(static_cast<double>(token.logprob()));
    // The chosen token is always among them.
    json top = {{token.text(), static_cast<double>(token.logprob())}};
    for (const auto& other : token.top_logprobs()) {
      const auto entry = top.find(other.text());
      const auto logprob = static_cast<double>(other.logprob());
      // Several tokens may have the same text: the most probable one counts.
      if (entry == top.end() || entry->get<double>() < logprob) {
        top[other.text()] = logprob;
      }
    }
    logprobs["top_logprobs"].push_back(std::move(top));
  }
}

json OpenAiResponse::Add(size_t part, const v1::GenerateResponse& response) {
  const size_t index = part * request_.n + response.index();
  Choice& choice = choices_.at(index);
  bool any_prompt = false;
  std::vector<uint32_t> token_ids;
  for (const v1::GeneratedToken& token : response.tokens()) {
    any_prompt = any_prompt || token.is_prompt();
    if (!token.is_prompt()) {
      token_ids.push_back(token.token_id());
    }
  }
  const bool hidden = request_.only_prompt && !any_prompt;
  if (hidden) token_ids.clear();
  completion_tokens_[part] += static_cast<uint32_t>(token_ids.size());
  if (response.has_usage()) {
    usages_[part] = response.usage();
    prompt_tokens_[part] = response.usage().prompt_tokens();
  }
  choice.finish_reason =
      request_.only_prompt &&
              response.finish_reason() != v1::FINISH_REASON_UNSPECIFIED
          ? "length"
          : FinishReason(response.finish_reason());
  choice.stop_reason = hidden ? "" : response.stop_reason();
  const std::string text = hidden ? std::string() : response.text();
  if (!request_.stream) {
    choice.text += text;
    if (request_.logprobs) AppendLogprobs(response, choice, choice.logprobs);
    choice.token_ids.insert(choice.token_ids.end(), token_ids.begin(),
                            token_ids.end());
    return nullptr;
  }
  if (hidden && choice.finish_reason.empty()) return nullptr;
  json entry = {{"index", index},
                {"finish_reason", NullIfEmpty(choice.finish_reason)},
                {"stop_reason", NullIfEmpty(choice.stop_reason)},
                {"logprobs", nullptr}};
  if (request_.logprobs) {
    json logprobs = EmptyLogprobs(request_.is_chat);
    AppendLogprobs(response, choice, logprobs);
    entry["logprobs"] = std::move(logprobs);
  }
  if (request_.is_chat) {
    entry["delta"] = {{"content", text}};
    // With the first token, not before it.
    if (!std::exchange(choice.begun, true)) {
      entry["delta"]["role"] = "assistant";
    }
  } else {
    entry["text"] = text;
  }
  if (request_.return_token_ids) entry["token_ids"] = token_ids;
  json event = Head("chat.completion.chunk", "text_completion");
  event["choices"] = json::array({std::move(entry)});
  if (request_.continuous_usage) event["usage"] = Usage();
  return event;
}

json OpenAiResponse::UsageEvent() const {
  json event = Head("chat.completion.chunk", "text_completion");
  event["choices"] = json::array();
  event["usage"] = Usage();
  return event;
}

json OpenAiResponse::ChoiceJson(size_t index, const Choice& choice) const {
  json entry = {{"index", index},
                {"finish_reason", NullIfEmpty(choice.finish_reason)},
                {"stop_reason", NullIfEmpty(choice.stop_reason)},
                {"logprobs", choice.logprobs}};
  if (request_.is_chat) {
    entry["message"] = {
        {"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}};
  } else {
    entry["text"] = choice.text;
  }
  if (request_.return_token_ids) entry["token_ids"] = choice.token_ids;
  return entry;
}

json OpenAiResponse::Whole() const {
  json whole = Head("chat.completion", "text_completion");
  json& choices = whole["choices"] = json::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    choices.push_back(ChoiceJson(i, choices_[i]));
  }
  whole["usage"] = Usage();
  return whole;
}

}  // namespace troupe

#include "gateway/openai/openai_request.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cluster/fallback_policy.h"
#include "gateway/openai/api_error.h"
#include "gateway/openai/json_fields.h"

namespace troupe {
namespace {

using nlohmann::json;

constexpr size_t kMaxPrompts = 64;
constexpr size_t kMaxSequences = 128;  // prompts times choices
constexpr size_t kMaxMessages = 4096;
constexpr size_t kMaxTokenIds = size_t{1} << 20;
constexpr int64_t kMaxCount = 1 << 30;
constexpr uint32_t kDefaultCompletionTokens = 16;
// What a template may be told by a client; others could change what it does
// with the messages.
constexpr const char* kTemplateVariables[] = {
    "enable_thinking", "thinking",          "reasoning_effort",
    "documents",       "preserve_thinking", "date_string"};

// Of the fields of both bodies.
class Reader {
 public:
  Reader(const json& body, const ServedModel& model)
      : fields_(body, ""), model_(model) {}

  absl::StatusOr<OpenAiRequest> Completion() {
    Common();
    ReadCompletionLogprobs();
    request_.echo = fields_.Bool("echo").value_or(false);
    base_.set_echo(request_.echo);
    RefuseUnless("suffix", [](const json& value) {
      return value.is_string() && value.get_ref<const std::string&>().empty();
    });
    const auto best_of = fields_.Integer("best_of", 1, kMaxCount);
    if (best_of && *best_of != request_.n) {
      fields_.Fail("best_of", absl::StrCat("is ", *best_of, ", and n is ",
                                           request_.n, ": they must be equal"));
    }
    const auto max_tokens = fields_.Integer("max_tokens", 0, kMaxCount);
    request_.only_prompt = max_tokens && *max_tokens == 0;
    if (request_.only_prompt && !request_.echo) {
      fields_.Fail("max_tokens", "is 0; that makes sense with echo alone");
    }
    base_.set_max_tokens(request_.only_prompt
                             ? 1
                             : static_cast<uint32_t>(max_tokens.value_or(
                                   kDefaultCompletionTokens)));
    ReadPrompts();
    return Done();
  }

  absl::StatusOr<OpenAiRequest> Chat() {
    request_.is_chat = true;
    Common();
    request_.logprobs = fields_.Bool("logprobs").value_or(false);
    base_.set_logprobs(request_.logprobs);
    base_.set_top_logprobs(static_cast<uint32_t>(
        fields_.Integer("top_logprobs", 0, kMaxCount).value_or(0)));
    if (base_.top_logprobs() > 0 && !request_.logprobs) {
      fields_.Fail("top_logprobs", "is set, but logprobs is false");
    }
    // Both names; the new one counts.
    auto max_tokens = fields_.Integer("max_completion_tokens", 1, kMaxCount);
    if (!max_tokens) max_tokens = fields_.Integer("max_tokens", 1, kMaxCount);
    base_.set_max_tokens(static_cast<uint32_t>(max_tokens.value_or(0)));
    RefuseUnless("response_format", [](const json& value) {
      return value.is_object() && value.value("type", json()) == "text";
    });
    RefuseUnless("tools", [](const json& value) {
      return value.is_array() && value.empty();
    });
    RefuseUnless("tool_choice", [](const json& value) {
      return value == "none" || value == "auto";
    });
    RefuseUnless("functions", [](const json& value) {
      return value.is_array() && value.empty();
    });
    RefuseUnless("audio", [](const json&) { return false; });
    request_.add_generation_prompt =
        fields_.Bool("add_generation_prompt").value_or(true);
    // The template writes the control tokens, the beginning-of-text included.
    base_.set_parse_special(true);
    base_.set_no_special_tokens(true);
    ReadTemplateVariables();
    ReadMessages();
    request_.generations.push_back(base_);
    return Done();
  }

 private:
  void Common() {
    if (const auto name = fields_.Text("model")) base_.set_model(*name);
    request_.n =
        static_cast<uint32_t>(fields_.Integer("n", 1, kMaxCount).value_or(1));
    base_.set_n(request_.n);
    ReadSampling();
    ReadStops();
    // Any whole number; negative ones are seeds, too.
    if (const auto seed = fields_.Integer("seed", INT64_MIN, INT64_MAX)) {
      base_.set_seed(static_cast<uint64_t>(*seed));
    }
    base_.set_ignore_eos(fields_.Bool("ignore_eos").value_or(false));
    base_.set_include_stop(
        fields_.Bool("include_stop_str_in_output").value_or(false));
    base_.set_min_tokens(static_cast<uint32_t>(
        fields_.Integer("min_tokens", 0, kMaxCount).value_or(0)));
    base_.set_keep_special_tokens(
        !fields_.Bool("skip_special_tokens").value_or(true));
    request_.return_token_ids =
        fields_.Bool("return_token_ids").value_or(false);
    ReadStream();
    ReadExtension();
  }

  void ReadSampling() {
    v1::SamplingParams& sampling = *base_.mutable_sampling();
    sampling = model_.default_sampling;
    // Where the checkpoint does not say, the API's own default counts.
    if (sampling.temperature() == 0.0f) sampling.set_temperature(1.0f);
    const auto read = [&](const char* name, auto set) {
      if (const auto value = fields_.Number(name)) {
        set(static_cast<float>(*value));
      }
    };
    read("temperature", [&](float v) { sampling.set_temperature(v); });
    read("top_p", [&](float v) { sampling.set_top_p(v); });
    read("min_p", [&](float v) { sampling.set_min_p(v); });
    read("repetition_penalty",
         [&](float v) { sampling.set_repetition_penalty(v); });
    read("presence_penalty",
         [&](float v) { sampling.set_presence_penalty(v); });
    read("frequency_penalty",
         [&](float v) { sampling.set_frequency_penalty(v); });
    // -1 is "all", as 0 is.
    if (const auto top_k = fields_.Integer("top_k", -1, kMaxCount)) {
      sampling.set_top_k(static_cast<uint32_t>(std::max<int64_t>(*top_k, 0)));
    }
    for (const char* positive : {"top_p", "repetition_penalty"}) {
      const auto value = fields_.Number(positive);
      if (value && *value == 0) {
        fields_.Fail(positive, "is 0; allowed: more than 0");
      }
    }
    const json* biases = fields_.Object("logit_bias");
    if (biases == nullptr) return;
    for (const auto& [key, value] : biases->items()) {
      uint32_t token_id = 0;
      if (!absl::SimpleAtoi(key, &token_id) || !value.is_number()) {
        fields_.Fail("logit_bias", "is not a map of token ids to numbers");
        return;
      }
      (*sampling.mutable_logit_bias())[token_id] = value.get<float>();
    }
  }

  void ReadStops() {
    if (const json* stop = fields_.Find("stop")) {
      if (stop->is_string()) {
        base_.add_stop(stop->get<std::string>());
      } else if (stop->is_array()) {
        for (const json& text : *stop) {
          if (!text.is_string()) {
            fields_.Fail("stop", "is neither a string nor an array of them");
            return;
          }
          base_.add_stop(text.get<std::string>());
        }
      } else {
        fields_.Fail("stop", "is neither a string nor an array of them");
      }
    }
    if (const json* ids = fields_.Find("stop_token_ids")) {
      if (!ids->is_array()) {
        fields_.Fail("stop_token_ids", "is not an array of token ids");
        return;
      }
      for (const uint32_t token_id :
           fields_.TokenIds("stop_token_ids", *ids, kMaxTokenIds)) {
        base_.add_stop_token_ids(token_id);
      }
    }
  }

  void ReadStream() {
    request_.stream = fields_.Bool("stream").value_or(false);
    const json* options = fields_.Object("stream_options");
    if (options == nullptr) return;
    if (!request_.stream) {
      fields_.Fail("stream_options", "is for streams; stream is false");
      return;
    }
    JsonFields fields(*options, "stream_options");
    request_.continuous_usage =
        fields.Bool("continuous_usage_stats").value_or(false);
    request_.include_usage = fields.Bool("include_usage").value_or(false);
    fields_.Adopt(fields.status());
  }

  // {"troupe": {"fallback": "balanced" or ["replica", "drop"]}}
  void ReadExtension() {
    const json* extension = fields_.Object("troupe");
    if (extension == nullptr) return;
    JsonFields fields(*extension, "troupe");
    const json* fallback = fields.Find("fallback");
    if (fallback != nullptr) {
      std::string text;
      if (fallback->is_string()) {
        text = fallback->get<std::string>();
      } else if (fallback->is_array() && !fallback->empty() &&
                 std::all_of(fallback->begin(), fallback->end(),
                             [](const json& v) { return v.is_string(); })) {
        text = absl::StrJoin(fallback->get<std::vector<std::string>>(), ",");
      }
      const absl::StatusOr<FallbackPolicy> policy = ParseFallback(text);
      if (policy.ok()) {
        *base_.mutable_fallback() = ToProto(*policy);
      } else {
        fields.Fail("fallback",
                    "is not exact, balanced, fast or a list of replica, wait, "
                    "next_best, drop in that order");
      }
    }
    fields_.Adopt(fields.status());
  }

  // A number here, a boolean in chats.
  void ReadCompletionLogprobs() {
    const json* logprobs = fields_.Find("logprobs");
    if (logprobs == nullptr) return;
    const auto count = fields_.Integer("logprobs", 0, kMaxCount);
    if (!count) return;
    request_.logprobs = true;
    base_.set_logprobs(true);
    base_.set_top_logprobs(static_cast<uint32_t>(*count));
  }

  void RefuseUnless(const char* name, bool (*harmless)(const json& value)) {
    const json* value = fields_.Find(name);
    if (value != nullptr && !harmless(*value)) {
      fields_.Fail(name, "is not supported by this server");
    }
  }

  void ReadPrompts() {
    const json* prompt = fields_.Find("prompt");
    if (prompt == nullptr) return fields_.Fail("prompt", "is missing");
    if (prompt->is_string()) return AddPrompt(*prompt);
    if (!prompt->is_array() || prompt->empty()) {
      return fields_.Fail("prompt",
                          "is not a string, an array of strings, an array of "
                          "token ids or an array of these");
    }
    if ((*prompt)[0].is_number()) return AddPrompt(*prompt);
    if (prompt->size() > kMaxPrompts ||
        prompt->size() * request_.n > kMaxSequences) {
      return fields_.Fail(
          "prompt", absl::StrCat("has ", prompt->size(), " prompts with n = ",
                                 request_.n, "; allowed: ", kMaxPrompts,
                                 " prompts, ", kMaxSequences, " choices"));
    }
    for (const json& one : *prompt) AddPrompt(one);
  }

  void AddPrompt(const json& prompt) {
    v1::GenerateRequest generation = base_;
    if (prompt.is_string()) {
      generation.set_text(prompt.get<std::string>());
    } else if (prompt.is_array() && !prompt.empty()) {
      for (const uint32_t token_id :
           fields_.TokenIds("prompt", prompt, kMaxTokenIds)) {
        generation.mutable_tokens()->add_token_ids(token_id);
      }
    } else {
      return fields_.Fail("prompt",
                          absl::StrCat("holds ", KindOf(prompt),
                                       prompt.empty() ? " that is empty" : "",
                                       " where a string or an array of token "
                                       "ids belongs"));
    }
    request_.generations.push_back(std::move(generation));
  }

  void ReadTemplateVariables() {
    const json* variables = fields_.Object("chat_template_kwargs");
    if (variables == nullptr) return;
    for (const auto& [name, value] : variables->items()) {
      const bool known = std::any_of(
          std::begin(kTemplateVariables), std::end(kTemplateVariables),
          [&name = name](const char* one) { return name == one; });
      if (!known) {
        return fields_.Fail(absl::StrCat("chat_template_kwargs.", name),
                            "is not a variable that a request may set");
      }
      request_.template_variables[name] = value;
    }
  }

  // Contents become plain text: a list of text parts is joined.
  void ReadMessages() {
    const json* messages = fields_.Find("messages");
    if (messages == nullptr) return fields_.Fail("messages", "is missing");
    if (!messages->is_array() || messages->empty() ||
        messages->size() > kMaxMessages) {
      return fields_.Fail("messages", absl::StrCat("is not an array of 1 to ",
                                                   kMaxMessages, " messages"));
    }
    request_.messages = json::array();
    for (size_t i = 0; i < messages->size(); ++i) {
      const std::string path = absl::StrCat("messages[", i, "]");
      const json& message = (*messages)[i];
      if (!message.is_object()) {
        return fields_.Fail(path, "is not an object");
      }
      if (!message.contains("role") || !message["role"].is_string()) {
        return fields_.Fail(path + ".role", "is not a string");
      }
      json plain = message;
      if (!ReadContent(path, plain)) return;
      request_.messages.push_back(std::move(plain));
    }
  }

  bool ReadContent(const std::string& path, json& message) {
    const auto entry = message.find("content");
    if (entry == message.end() || entry->is_null()) {
      message["content"] = "";
      return true;
    }
    if (entry->is_string()) return true;
    std::string text;
    const bool parts = entry->is_array();
    for (size_t i = 0; parts && i < entry->size(); ++i) {
      const json& part = (*entry)[i];
      if (!part.is_object() || part.value("type", json()) != "text" ||
          !part.contains("text") || !part["text"].is_string()) {
        fields_.Fail(absl::StrCat(path, ".content[", i, "]"),
                     "is not a part of type text");
        return false;
      }
      text += part["text"].get<std::string>();
    }
    if (!parts) {
      fields_.Fail(path + ".content",
                   "is neither a string nor an array of parts");
      return false;
    }
    *entry = std::move(text);
    return true;
  }

  absl::StatusOr<OpenAiRequest> Done() {
    if (!fields_.status().ok()) return fields_.status();
    return std::move(request_);
  }

  JsonFields fields_;
  const ServedModel& model_;
  OpenAiRequest request_;
  v1::GenerateRequest base_;  // but for the prompt
};

absl::Status CheckBody(const json& body) {
  if (body.is_object()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the body is ", KindOf(body), ", not an object"));
}

}  // namespace

absl::StatusOr<OpenAiRequest> ParseCompletion(const json& body,
                                              const ServedModel& model) {
  if (absl::Status status = CheckBody(body); !status.ok()) return status;
  return Reader(body, model).Completion();
}

absl::StatusOr<OpenAiRequest> ParseChat(const json& body,
                                        const ServedModel& model) {
  if (absl::Status status = CheckBody(body); !status.ok()) return status;
  return Reader(body, model).Chat();
}

}  // namespace troupe

#include "model/chat_template/chat_template.h"

#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/interpreter.h"
#include "model/chat_template/limits.h"
#include "model/chat_template/parser.h"
#include "model/tokenizer/utf8.h"

namespace troupe {
namespace {

using jinja::Heap;
using jinja::Value;

absl::StatusOr<Value> TextValue(Heap& heap, const std::string& text) {
  if (tokenizer::FindInvalidUtf8(text) != text.size()) {
    return absl::InvalidArgumentError("a text that is not UTF-8");
  }
  return heap.NewText(text);
}

template <typename Json>
absl::StatusOr<Value> JsonValue(Heap& heap, const Json& json, int depth) {
  if (depth > jinja::kMaxInputDepth) {
    return absl::InvalidArgumentError(absl::StrCat(
        "lists and objects more than ", jinja::kMaxInputDepth, " deep"));
  }
  ABSL_RETURN_IF_ERROR(heap.Spend(1));
  switch (json.type()) {
    case Json::value_t::null:
      return Value::None();
    case Json::value_t::boolean:
      return Value::Bool(json.template get<bool>());
    case Json::value_t::number_integer:
      return Value::Int(json.template get<int64_t>());
    case Json::value_t::number_unsigned:
      if (json.template get<uint64_t>() >
          static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return absl::InvalidArgumentError("an integer beyond 64 bits");
      }
      return Value::Int(json.template get<int64_t>());
    case Json::value_t::number_float:
      return Value::Float(json.template get<double>());
    case Json::value_t::string:
      return TextValue(heap,
                       json.template get_ref<const typename Json::string_t&>());
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) {
        ABSL_ASSIGN_OR_RETURN(const Value value,
                              JsonValue(heap, item, depth + 1));
        items.push_back(value);
      }
      return heap.NewList(std::move(items));
    }
    case Json::value_t::object: {
      std::vector<std::pair<Value, Value>> items;
      items.reserve(json.size());
      for (auto item = json.begin(); item != json.end(); ++item) {
        ABSL_ASSIGN_OR_RETURN(const Value key, TextValue(heap, item.key()));
        ABSL_ASSIGN_OR_RETURN(const Value value,
                              JsonValue(heap, item.value(), depth + 1));
        items.emplace_back(key, value);
      }
      return heap.NewMap(std::move(items));
    }
    default:
      return absl::InvalidArgumentError("a value that is not JSON");
  }
}

template <typename Json>
absl::Status SetVariable(Heap& heap, jinja::Scope* scope,
                         const std::string& name, const Json& json) {
  ABSL_ASSIGN_OR_RETURN(const Value key, TextValue(heap, name));
  absl::StatusOr<Value> value = JsonValue(heap, json, 0);
  if (!value.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", value.status().message()));
  }
  scope->Set(key.text(), *value);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Compile(const std::string& source,
                                                   Tokens tokens,
                                                   WallClock now) {
  if (source.size() > jinja::kMaxTemplateBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a chat template of ", source.size(),
                     " bytes, of at most ", jinja::kMaxTemplateBytes));
  }
  const size_t invalid = tokenizer::FindInvalidUtf8(source);
  if (invalid != source.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("not UTF-8 from byte ", invalid, " on"));
  }
  for (const auto& [name, text] : tokens) {
    if (tokenizer::FindInvalidUtf8(text) != text.size()) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is not UTF-8"));
    }
  }
  ChatTemplate result;
  ABSL_ASSIGN_OR_RETURN(result.template_, jinja::Parse(source));
  result.tokens_ = std::move(tokens);
  result.now_ = now ? std::move(now) : [] { return std::time(nullptr); };
  return result;
}

template <typename Json>
absl::StatusOr<std::string> ChatTemplate::RenderJson(const Json& messages,
                                                     bool add_generation_prompt,
                                                     const Json& extra) const {
  if (!messages.is_array()) {
    return absl::InvalidArgumentError("messages is not an array");
  }
  if (!extra.is_object() && !extra.is_null()) {
    return absl::InvalidArgumentError(
        "the further variables are not an object");
  }
  jinja::Runtime runtime;
  runtime.now = now_;
  Heap& heap = runtime.heap;
  ABSL_ASSIGN_OR_RETURN(jinja::Scope* const scope, heap.NewScope(nullptr));
  for (const auto& [name, text] : tokens_) {
    ABSL_RETURN_IF_ERROR(SetVariable(heap, scope, name, Json(text)));
  }
  // transformers passes both, none when there are not any.
  ABSL_RETURN_IF_ERROR(SetVariable(heap, scope, "tools", Json(nullptr)));
  ABSL_RETURN_IF_ERROR(SetVariable(heap, scope, "documents", Json(nullptr)));
  for (auto entry = extra.begin(); entry != extra.end(); ++entry) {
    const std::string& name = entry.key();
    if (name == "messages" || name == "add_generation_prompt") {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " cannot be a further variable"));
    }
    ABSL_RETURN_IF_ERROR(SetVariable(heap, scope, name, entry.value()));
  }
  ABSL_RETURN_IF_ERROR(SetVariable(heap, scope, "messages", messages));
  ABSL_RETURN_IF_ERROR(SetVariable(heap, scope, "add_generation_prompt",
                                   Json(add_generation_prompt)));
  jinja::Interpreter interpreter(*template_, runtime);
  absl::StatusOr<std::string> text = interpreter.Run(scope);
  if (text.ok() || runtime.has_raised) return text;
  return absl::InvalidArgumentError(absl::StrCat("chat template, line ",
                                                 interpreter.error_line(), ": ",
                                                 text.status().message()));
}

absl::StatusOr<std::string> ChatTemplate::Render(
    const nlohmann::json& messages, bool add_generation_prompt,
    const nlohmann::json& extra) const {
  return RenderJson(messages, add_generation_prompt, extra);
}

absl::StatusOr<std::string> ChatTemplate::Render(
    const nlohmann::ordered_json& messages, bool add_generation_prompt,
    const nlohmann::ordered_json& extra) const {
  return RenderJson(messages, add_generation_prompt, extra);
}

}  // namespace troupe

// A checkpoint's chat template: how a conversation is written for the model.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_CHAT_TEMPLATE_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_CHAT_TEMPLATE_H_

#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace troupe {

namespace jinja {
struct Template;
}  // namespace jinja

// The subset of Jinja2 that such templates use, in the environment that
// transformers gives them (docs/chat_templates.md). A template can compute and
// print, nothing else, within the bounds of limits.h.
//
// Immutable and thread-safe. Copies share the template.
class ChatTemplate {
 public:
  // bos_token, eos_token and other special tokens: names and texts.
  using Tokens = std::map<std::string, std::string>;
  // The time that strftime_now() shows, in the zone of this machine.
  using WallClock = std::function<std::time_t()>;

  // InvalidArgument names the line and the construct that is wrong or not
  // supported.
  static absl::StatusOr<ChatTemplate> Compile(const std::string& source,
                                              Tokens tokens,
                                              WallClock now = nullptr);

  // messages: JSON array as in the OpenAI API. extra: further variables
  // (tools, documents, enable_thinking, ...), a JSON object or null.
  // InvalidArgument: raise_exception() of the template (its text alone), an
  // error of the template (with its line), a limit, or a bad argument.
  //
  // ordered_json keeps the order in which a client wrote the keys of its
  // objects, as transformers does: a tool's description prints differently
  // when they are sorted.
  absl::StatusOr<std::string> Render(const nlohmann::json& messages,
                                     bool add_generation_prompt,
                                     const nlohmann::json& extra) const;
  absl::StatusOr<std::string> Render(const nlohmann::ordered_json& messages,
                                     bool add_generation_prompt,
                                     const nlohmann::ordered_json& extra) const;

 private:
  ChatTemplate() = default;
  template <typename Json>
  absl::StatusOr<std::string> RenderJson(const Json& messages,
                                         bool add_generation_prompt,
                                         const Json& extra) const;

  std::shared_ptr<const jinja::Template> template_;
  Tokens tokens_;
  WallClock now_;
};

}  // namespace troupe

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_CHAT_TEMPLATE_H_

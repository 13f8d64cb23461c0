#include "model/tokenizer/post_processor.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace troupe::tokenizer {
namespace {

constexpr size_t kMaxTemplateIds = 64;

// The ids that "special_tokens" of a template gives for a name.
absl::StatusOr<std::vector<int32_t>> TemplateIds(const JsonValue& value,
                                                 const std::string& name,
                                                 int32_t end_id) {
  ABSL_ASSIGN_OR_RETURN(const JsonValue tokens, value.Get("special_tokens"));
  ABSL_ASSIGN_OR_RETURN(const JsonValue token, tokens.Get(name));
  ABSL_ASSIGN_OR_RETURN(const std::vector<JsonValue> members,
                        token.GetArray("ids"));
  std::vector<int32_t> ids;
  for (const JsonValue& member : members) {
    if (!member.json().is_number_unsigned() ||
        member.json().get<uint64_t>() >= static_cast<uint64_t>(end_id)) {
      return member.Error(absl::StrCat("is not an id from 0 to ", end_id - 1));
    }
    ids.push_back(member.json().get<int32_t>());
  }
  return ids;
}

absl::StatusOr<PostProcessor> ParseTemplate(const JsonValue& value,
                                            int32_t end_id) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<JsonValue> single,
                        value.GetArray("single"));
  PostProcessor result;
  bool seen_text = false;
  for (const JsonValue& element : single) {
    if (const auto sequence = element.Find("Sequence")) {
      ABSL_ASSIGN_OR_RETURN(const std::string id, sequence->GetString("id"));
      if (id != "A" || seen_text) {
        return element.Unsupported("is not the one and only sequence \"A\"");
      }
      seen_text = true;
      continue;
    }
    ABSL_ASSIGN_OR_RETURN(const JsonValue special, element.Get("SpecialToken"));
    ABSL_ASSIGN_OR_RETURN(const std::string name, special.GetString("id"));
    ABSL_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                          TemplateIds(value, name, end_id));
    std::vector<int32_t>& side = seen_text ? result.suffix : result.prefix;
    side.insert(side.end(), ids.begin(), ids.end());
    if (side.size() > kMaxTemplateIds) {
      return element.Error(absl::StrCat("more than ", kMaxTemplateIds, " ids"));
    }
  }
  if (!seen_text) return value.Error("single has no sequence \"A\"");
  return result;
}

}  // namespace

absl::StatusOr<PostProcessor> PostProcessor::Parse(
    const std::optional<JsonValue>& value, int32_t end_id) {
  if (!value) return PostProcessor();
  ABSL_ASSIGN_OR_RETURN(const std::string type, value->GetString("type"));
  // ByteLevel changes the offsets of tokens, which are not kept here.
  if (type == "ByteLevel") return PostProcessor();
  if (type == "TemplateProcessing") return ParseTemplate(*value, end_id);
  if (type == "Sequence") {
    ABSL_ASSIGN_OR_RETURN(const std::vector<JsonValue> members,
                          value->GetArray("processors"));
    PostProcessor result;
    for (const JsonValue& member : members) {
      ABSL_ASSIGN_OR_RETURN(const PostProcessor inner, Parse(member, end_id));
      result.prefix.insert(result.prefix.begin(), inner.prefix.begin(),
                           inner.prefix.end());
      result.suffix.insert(result.suffix.end(), inner.suffix.begin(),
                           inner.suffix.end());
    }
    return result;
  }
  return value->Unsupported(absl::StrCat("post-processor \"", type, "\""));
}

}  // namespace troupe::tokenizer

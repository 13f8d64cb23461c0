#include "model/chat_template/builtin.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/print.h"

namespace troupe::jinja {
namespace {

size_t IndexOf(const Builtin& builtin, absl::string_view keyword) {
  size_t i = 0;
  while (i < builtin.parameters.size() && builtin.parameters[i] != keyword) ++i;
  return i;
}

// Whether parameter `i` is among the first `num_positional` or is a keyword.
bool IsGiven(const Builtin& builtin, size_t i, size_t num_positional,
             absl::Span<const absl::string_view> keywords) {
  if (i < num_positional) return true;
  for (const absl::string_view keyword : keywords) {
    if (keyword == builtin.parameters[i]) return true;
  }
  return false;
}

absl::Status CallError(const Builtin& builtin, absl::string_view message) {
  return TypeError(absl::StrCat("'", builtin.name, "' ", message));
}

}  // namespace

absl::Status CheckCall(const Builtin& builtin, size_t num_positional,
                       absl::Span<const absl::string_view> keywords) {
  if (num_positional > builtin.parameters.size() && !builtin.takes_more) {
    return CallError(builtin,
                     absl::StrCat("takes ", builtin.parameters.size(),
                                  " arguments here, not ", num_positional));
  }
  for (const absl::string_view keyword : keywords) {
    const size_t i = IndexOf(builtin, keyword);
    if (i < num_positional && i < builtin.parameters.size()) {
      return CallError(builtin,
                       absl::StrCat("gets '", keyword, "' more than once"));
    }
    if (i == builtin.parameters.size() && !builtin.takes_more) {
      return CallError(builtin,
                       absl::StrCat("takes no argument '", keyword, "' here"));
    }
  }
  for (size_t i = 0; i < builtin.num_required; ++i) {
    if (!IsGiven(builtin, i, num_positional, keywords)) {
      return CallError(builtin,
                       absl::StrCat("lacks its argument ", i + 1, ", '",
                                    builtin.parameters[i], "'"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Args> Bind(const Builtin& builtin, CallArguments call) {
  std::vector<absl::string_view> keywords;
  for (const auto& [name, value] : call.keywords) keywords.push_back(name);
  ABSL_RETURN_IF_ERROR(CheckCall(builtin, call.positional.size(), keywords));
  Args args;
  args.values_.resize(builtin.parameters.size());
  for (size_t i = 0; i < call.positional.size(); ++i) {
    if (i < args.values_.size()) {
      args.values_[i] = call.positional[i];
    } else {
      args.more.positional.push_back(call.positional[i]);
    }
  }
  for (const auto& [name, value] : call.keywords) {
    const size_t i = IndexOf(builtin, name);
    if (i < args.values_.size()) {
      args.values_[i] = value;
    } else {
      args.more.keywords.emplace_back(name, value);
    }
  }
  return args;
}

absl::StatusOr<Value> Call(Runtime& runtime, const Builtin& builtin,
                           const Value& subject, CallArguments call) {
  ABSL_ASSIGN_OR_RETURN(const Args args, Bind(builtin, std::move(call)));
  return builtin.function(runtime, subject, args);
}

const Builtin* FindIn(absl::Span<const Builtin> table, absl::string_view name) {
  for (const Builtin& builtin : table) {
    if (builtin.name == name) return &builtin;
  }
  return nullptr;
}

absl::StatusOr<absl::string_view> TextOf(const Value& value,
                                         absl::string_view what) {
  if (value.Is(Value::Kind::kText)) return value.text();
  if (value.Is(Value::Kind::kUndefined)) return UndefinedError(value);
  return TypeError(
      absl::StrCat(what, " must be a text, not a ", TypeName(value)));
}

absl::StatusOr<int64_t> IntOf(const Value& value, absl::string_view what) {
  if (value.IsIntegral()) return value.AsInt();
  if (value.Is(Value::Kind::kUndefined)) return UndefinedError(value);
  return TypeError(
      absl::StrCat(what, " must be an integer, not a ", TypeName(value)));
}

absl::StatusOr<Value> FormatPercent(Heap& heap, absl::string_view format,
                                    absl::Span<const Value> values) {
  Writer out(heap);
  size_t next = 0;
  while (!format.empty()) {
    const size_t percent = format.find('%');
    out.Append(format.substr(0, percent));
    if (percent == absl::string_view::npos) break;
    format.remove_prefix(percent + 1);
    const char conversion = format.empty() ? '\0' : format[0];
    if (!format.empty()) format.remove_prefix(1);
    if (conversion == '%') {
      out.Append("%");
      continue;
    }
    if (conversion != 's' && conversion != 'd' && conversion != 'i') {
      return absl::InvalidArgumentError(
          "of the conversions of % only %s, %d, %i and %% are supported");
    }
    if (next == values.size()) {
      return TypeError("not enough values for the conversions of %");
    }
    const Value& value = values[next++];
    if (conversion == 's') {
      ABSL_RETURN_IF_ERROR(Print(heap, value, &out));
    } else {
      if (!value.IsNumber()) {
        return TypeError(
            absl::StrCat("%d takes a number, not a ", TypeName(value)));
      }
      const double number = value.AsFloat();
      if (!(number > -9e18 && number < 9e18)) {
        return absl::InvalidArgumentError("an integer beyond 64 bits");
      }
      out.Append(absl::StrCat(
          value.IsIntegral() ? value.AsInt() : static_cast<int64_t>(number)));
    }
  }
  if (next != values.size()) {
    return TypeError("more values than conversions of %");
  }
  return out.TakeValue();
}

}  // namespace troupe::jinja

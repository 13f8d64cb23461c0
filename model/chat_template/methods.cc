// Methods of texts, dicts, lists and `loop`.
#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "model/chat_template/builtin.h"
#include "model/chat_template/operators.h"
#include "model/chat_template/print.h"
#include "model/chat_template/text.h"

namespace troupe::jinja {
namespace {

using Kind = Value::Kind;
constexpr size_t kNpos = absl::string_view::npos;

absl::StatusOr<Value> NewText(Runtime& runtime, absl::string_view text) {
  return runtime.heap.NewText(std::string(text));
}

// Texts.

template <std::string (*kChange)(absl::string_view)>
absl::StatusOr<Value> Changed(Runtime& runtime, const Value& self,
                              const Args&) {
  return runtime.heap.NewText(kChange(self.text()));
}

template <Side kSide>
absl::StatusOr<Value> Stripped(Runtime& runtime, const Value& self,
                               const Args& args) {
  const Value* chars = args.Get(0);
  if (chars == nullptr || chars->Is(Kind::kNone)) {
    return NewText(runtime, Strip(self.text(), kSide));
  }
  ABSL_ASSIGN_OR_RETURN(const absl::string_view set,
                        TextOf(*chars, "what to strip"));
  // Every character is looked for in the set.
  ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(
      self.text().size() * std::min<size_t>(set.size(), size_t{1} << 20)));
  return NewText(runtime, Strip(self.text(), kSide, &set));
}

// startswith and endswith: a text, or a tuple of which one fits.
template <bool (*kFits)(absl::string_view, absl::string_view)>
absl::StatusOr<Value> Fits(Runtime& runtime, const Value& self,
                           const Args& args) {
  std::vector<Value> parts = {args[0]};
  if (args[0].Is(Kind::kSequence) &&
      args[0].sequence().shape == Sequence::Shape::kTuple) {
    parts = args[0].sequence().items;
  }
  for (const Value& part : parts) {
    ABSL_ASSIGN_OR_RETURN(const absl::string_view text,
                          TextOf(part, "how it starts or ends"));
    ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(text.size()));
    if (kFits(self.text(), text)) return Value::Bool(true);
  }
  return Value::Bool(false);
}

bool StartsWith(absl::string_view text, absl::string_view part) {
  return absl::StartsWith(text, part);
}
bool EndsWith(absl::string_view text, absl::string_view part) {
  return absl::EndsWith(text, part);
}

std::string Reversed(absl::string_view text) {
  return std::string(text.rbegin(), text.rend());
}

size_t FindLast(absl::string_view text, absl::string_view part) {
  const size_t at = Find(Reversed(text), Reversed(part));
  return at == kNpos ? kNpos : text.size() - at - part.size();
}

template <size_t (*kFind)(absl::string_view, absl::string_view), bool kMust>
absl::StatusOr<Value> Found(Runtime& runtime, const Value& self,
                            const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const absl::string_view part,
                        TextOf(args[0], "what to find"));
  ABSL_RETURN_IF_ERROR(
      runtime.heap.SpendBytes(2 * self.text().size() + part.size()));
  const size_t at = kFind(self.text(), part);
  if (at != kNpos) return Value::Int(CountChars(self.text().substr(0, at)));
  if (kMust) return absl::InvalidArgumentError("substring not found");
  return Value::Int(-1);
}

size_t FindFirst(absl::string_view text, absl::string_view part) {
  return Find(text, part);
}

absl::StatusOr<Value> CountOf(Runtime& runtime, const Value& self,
                              const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const absl::string_view part,
                        TextOf(args[0], "what to count"));
  ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(self.text().size()));
  if (part.empty()) return Value::Int(self.text_object().num_chars + 1);
  int64_t count = 0;
  for (size_t at = Find(self.text(), part); at != kNpos;
       at = Find(self.text(), part, at + part.size())) {
    ++count;
  }
  return Value::Int(count);
}

template <CharClass kClass>
absl::StatusOr<Value> IsAll(Runtime& runtime, const Value& self, const Args&) {
  ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(self.text().size()));
  return Value::Bool(AllAre(self.text(), kClass));
}

template <bool (*kPredicate)(absl::string_view)>
absl::StatusOr<Value> HasCase(Runtime& runtime, const Value& self,
                              const Args&) {
  ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(self.text().size()));
  return Value::Bool(kPredicate(self.text()));
}

// Texts that a list is made of, each on the heap at once, so that no text has
// more parts than there is room.
class TextList {
 public:
  explicit TextList(Runtime& runtime) : runtime_(runtime) {}

  absl::Status Add(absl::string_view text) {
    ABSL_ASSIGN_OR_RETURN(const Value item, NewText(runtime_, text));
    items_.push_back(item);
    return absl::OkStatus();
  }
  int64_t size() const { return static_cast<int64_t>(items_.size()); }
  void Reverse() { std::reverse(items_.begin(), items_.end()); }
  absl::StatusOr<Value> Take(Sequence::Shape shape = Sequence::Shape::kList) {
    return runtime_.heap.NewSequence(shape, std::move(items_));
  }

 private:
  Runtime& runtime_;
  std::vector<Value> items_;
};

// Takes the word at the start, or at the end, off a text that begins, or ends,
// with one.
absl::string_view TakeWord(absl::string_view* text, bool from_end) {
  const absl::string_view all = *text;
  size_t size = 0;
  while (size < all.size()) {
    absl::string_view c;
    if (from_end) {
      size_t at = all.size() - size - 1;
      while (at > 0 && (static_cast<unsigned char>(all[at]) & 0xC0) == 0x80) {
        --at;
      }
      c = all.substr(at, all.size() - size - at);
    } else {
      c = FirstChar(all.substr(size));
    }
    const size_t num_bytes = c.size();
    if (IsSpace(TakeChar(&c))) break;
    size += num_bytes;
  }
  if (from_end) {
    text->remove_suffix(size);
    return all.substr(all.size() - size);
  }
  text->remove_prefix(size);
  return all.substr(0, size);
}

// str.split() without a separator: words between white space.
absl::StatusOr<Value> SplitWords(Runtime& runtime, absl::string_view text,
                                 int64_t max_splits, bool from_end) {
  const Side outer = from_end ? Side::kRight : Side::kLeft;
  TextList words(runtime);
  for (text = Strip(text, outer); !text.empty(); text = Strip(text, outer)) {
    if (max_splits >= 0 && words.size() == max_splits) {
      ABSL_RETURN_IF_ERROR(words.Add(text));
      break;
    }
    ABSL_RETURN_IF_ERROR(words.Add(TakeWord(&text, from_end)));
  }
  if (from_end) words.Reverse();
  return words.Take();
}

absl::StatusOr<Value> SplitForward(Runtime& runtime, absl::string_view text,
                                   absl::string_view separator,
                                   int64_t max_splits) {
  TextList parts(runtime);
  while (max_splits < 0 || parts.size() < max_splits) {
    const size_t at = Find(text, separator);
    if (at == kNpos) break;
    ABSL_RETURN_IF_ERROR(parts.Add(text.substr(0, at)));
    text.remove_prefix(at + separator.size());
  }
  ABSL_RETURN_IF_ERROR(parts.Add(text));
  return parts.Take();
}

absl::StatusOr<Value> SplitBackward(Runtime& runtime, absl::string_view text,
                                    absl::string_view separator,
                                    int64_t max_splits) {
  const std::string reversed = Reversed(text);
  const std::string reversed_separator = Reversed(separator);
  TextList parts(runtime);
  size_t passed = 0;  // bytes from the end
  while (max_splits < 0 || parts.size() < max_splits) {
    const size_t at = Find(reversed, reversed_separator, passed);
    if (at == kNpos) break;
    ABSL_RETURN_IF_ERROR(parts.Add(text.substr(text.size() - at, at - passed)));
    passed = at + separator.size();
  }
  ABSL_RETURN_IF_ERROR(parts.Add(text.substr(0, text.size() - passed)));
  parts.Reverse();
  return parts.Take();
}

template <bool kFromEnd>
absl::StatusOr<Value> Split(Runtime& runtime, const Value& self,
                            const Args& args) {
  int64_t max_splits = -1;
  if (args.Get(1) != nullptr) {
    ABSL_ASSIGN_OR_RETURN(max_splits, IntOf(args[1], "maxsplit"));
  }
  ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(2 * self.text().size()));
  if (args.Get(0) == nullptr || args[0].Is(Kind::kNone)) {
    return SplitWords(runtime, self.text(), max_splits, kFromEnd);
  }
  ABSL_ASSIGN_OR_RETURN(const absl::string_view separator,
                        TextOf(args[0], "a separator"));
  if (separator.empty()) return TypeError("an empty separator");
  return kFromEnd ? SplitBackward(runtime, self.text(), separator, max_splits)
                  : SplitForward(runtime, self.text(), separator, max_splits);
}

absl::StatusOr<Value> SplitIntoLines(Runtime& runtime, const Value& self,
                                     const Args&) {
  ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(self.text().size()));
  TextList lines(runtime);
  for (absl::string_view rest = self.text(); !rest.empty();) {
    ABSL_RETURN_IF_ERROR(lines.Add(TakeLine(&rest)));
  }
  return lines.Take();
}

template <bool kFromEnd>
absl::StatusOr<Value> Partition(Runtime& runtime, const Value& self,
                                const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const absl::string_view separator,
                        TextOf(args[0], "a separator"));
  if (separator.empty()) return TypeError("an empty separator");
  ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(2 * self.text().size()));
  const absl::string_view text = self.text();
  absl::string_view before = kFromEnd ? "" : text;
  absl::string_view found = "";
  absl::string_view after = kFromEnd ? text : "";
  const size_t at =
      kFromEnd ? FindLast(text, separator) : Find(text, separator);
  if (at != kNpos) {
    before = text.substr(0, at);
    found = separator;
    after = text.substr(at + separator.size());
  }
  TextList parts(runtime);
  ABSL_RETURN_IF_ERROR(parts.Add(before));
  ABSL_RETURN_IF_ERROR(parts.Add(found));
  ABSL_RETURN_IF_ERROR(parts.Add(after));
  return parts.Take(Sequence::Shape::kTuple);
}

absl::StatusOr<Value> RemovePrefix(Runtime& runtime, const Value& self,
                                   const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const absl::string_view part,
                        TextOf(args[0], "a prefix"));
  return NewText(runtime, absl::StripPrefix(self.text(), part));
}

absl::StatusOr<Value> RemoveSuffix(Runtime& runtime, const Value& self,
                                   const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const absl::string_view part,
                        TextOf(args[0], "a suffix"));
  return NewText(runtime, absl::StripSuffix(self.text(), part));
}

absl::StatusOr<Value> Replace(Runtime& runtime, const Value& self,
                              const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const absl::string_view old,
                        TextOf(args[0], "what to replace"));
  ABSL_ASSIGN_OR_RETURN(const absl::string_view fresh,
                        TextOf(args[1], "a replacement"));
  int64_t left = -1;
  if (args.Get(2) != nullptr) {
    ABSL_ASSIGN_OR_RETURN(left, IntOf(args[2], "count"));
  }
  ABSL_RETURN_IF_ERROR(runtime.heap.SpendBytes(self.text().size()));
  return ReplaceAll(runtime.heap, self.text(), old, fresh, left);
}

absl::StatusOr<Value> JoinMethod(Runtime& runtime, const Value& self,
                                 const Args& args) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> items,
                        Iterate(runtime.heap, args[0]));
  Writer out(runtime.heap);
  for (size_t i = 0; i < items.size(); ++i) {
    ABSL_ASSIGN_OR_RETURN(const absl::string_view item,
                          TextOf(items[i], "an item that is joined"));
    if (i > 0) out.Append(self.text());
    out.Append(item);
    ABSL_RETURN_IF_ERROR(out.status());
  }
  return out.TakeValue();
}

// The value that a replacement field without format or attributes names.
absl::StatusOr<Value> FieldOf(absl::string_view field, size_t* next,
                              const CallArguments& arguments) {
  size_t index = 0;
  const bool is_number =
      !field.empty() && std::all_of(field.begin(), field.end(), [](char c) {
        return c >= '0' && c <= '9';
      });
  if (field.empty()) {
    index = (*next)++;
  } else if (is_number && field.size() <= 6) {
    for (const char c : field)
      index = 10 * index + static_cast<size_t>(c - '0');
  } else {
    for (const auto& [name, value] : arguments.keywords) {
      if (name == field) return value;
    }
    return absl::InvalidArgumentError(
        absl::StrCat("'format' has no value for the field {", field,
                     "}; formats and attributes in fields are not supported"));
  }
  if (index >= arguments.positional.size()) {
    return absl::InvalidArgumentError("'format' has too few values");
  }
  return arguments.positional[index];
}

absl::StatusOr<Value> Format(Runtime& runtime, const Value& self,
                             const Args& args) {
  absl::string_view format = self.text();
  Writer out(runtime.heap);
  size_t next = 0;
  while (!format.empty()) {
    const size_t brace = format.find_first_of("{}");
    out.Append(format.substr(0, brace));
    if (brace == kNpos) break;
    const char c = format[brace];
    format.remove_prefix(brace + 1);
    if (!format.empty() && format[0] == c) {  // {{ and }}
      out.Append(format.substr(0, 1));
      format.remove_prefix(1);
      continue;
    }
    const size_t end = format.find('}');
    if (c == '}' || end == kNpos) {
      return absl::InvalidArgumentError("'format' has a single brace");
    }
    ABSL_ASSIGN_OR_RETURN(const Value value,
                          FieldOf(format.substr(0, end), &next, args.more));
    ABSL_RETURN_IF_ERROR(Print(runtime.heap, value, &out));
    format.remove_prefix(end + 1);
  }
  return out.TakeValue();
}

// Dicts.

absl::StatusOr<Value> GetOf(Runtime&, const Value& self, const Args& args) {
  const Value* found =
      args[0].Is(Kind::kText) ? self.map().Find(args[0].text()) : nullptr;
  if (found != nullptr) return *found;
  return args.Get(1) != nullptr ? args[1] : Value::None();
}

absl::StatusOr<Value> Keys(Runtime& runtime, const Value& self, const Args&) {
  ABSL_ASSIGN_OR_RETURN(std::vector<Value> keys, Iterate(runtime.heap, self));
  return runtime.heap.NewSequence(Sequence::Shape::kView, std::move(keys));
}

absl::StatusOr<Value> Values(Runtime& runtime, const Value& self, const Args&) {
  std::vector<Value> values;
  for (const auto& [key, value] : self.map().items) values.push_back(value);
  return runtime.heap.NewSequence(Sequence::Shape::kView, std::move(values));
}

absl::StatusOr<Value> Items(Runtime& runtime, const Value& self, const Args&) {
  ABSL_ASSIGN_OR_RETURN(std::vector<Value> pairs,
                        PairsOf(runtime.heap, self.map()));
  return runtime.heap.NewSequence(Sequence::Shape::kView, std::move(pairs));
}

absl::StatusOr<Value> Refused(Runtime&, const Value&, const Args&) {
  return absl::InvalidArgumentError(
      "a template may not change a list or a dict: Jinja's immutable sandbox, "
      "in which chat templates run, refuses it");
}

// Lists and tuples.

absl::StatusOr<Value> IndexIn(Runtime& runtime, const Value& self,
                              const Args& args) {
  const std::vector<Value>& items = self.sequence().items;
  for (size_t i = 0; i < items.size(); ++i) {
    ABSL_ASSIGN_OR_RETURN(const bool equal,
                          Equal(runtime.heap, items[i], args[0]));
    if (equal) return Value::Int(static_cast<int64_t>(i));
  }
  return absl::InvalidArgumentError("'index' finds no such item");
}

absl::StatusOr<Value> CountIn(Runtime& runtime, const Value& self,
                              const Args& args) {
  int64_t count = 0;
  for (const Value& item : self.sequence().items) {
    ABSL_ASSIGN_OR_RETURN(const bool equal, Equal(runtime.heap, item, args[0]));
    count += equal ? 1 : 0;
  }
  return Value::Int(count);
}

// `loop`.

absl::StatusOr<Value> Cycle(Runtime&, const Value& self, const Args& args) {
  const std::vector<Value>& items = args.more.positional;
  if (items.empty()) return TypeError("loop.cycle() takes items");
  return items[self.loop().index0 % items.size()];
}

absl::StatusOr<Value> HasChanged(Runtime& runtime, const Value& self,
                                 const Args& args) {
  Loop& loop = self.loop();
  const std::vector<Value>& items = args.more.positional;
  bool same = loop.has_changed && loop.last_changed.size() == items.size();
  for (size_t i = 0; same && i < items.size(); ++i) {
    ABSL_ASSIGN_OR_RETURN(same,
                          Equal(runtime.heap, loop.last_changed[i], items[i]));
  }
  if (!same) loop.last_changed = items;
  loop.has_changed = true;
  return Value::Bool(!same);
}

absl::Span<const Builtin> TextMethods() {
  static const auto& table = *new std::vector<Builtin>{
      {"strip", {"chars"}, 0, Stripped<Side::kBoth>},
      {"lstrip", {"chars"}, 0, Stripped<Side::kLeft>},
      {"rstrip", {"chars"}, 0, Stripped<Side::kRight>},
      {"split", {"sep", "maxsplit"}, 0, Split<false>},
      {"rsplit", {"sep", "maxsplit"}, 0, Split<true>},
      {"splitlines", {}, 0, SplitIntoLines},
      {"partition", {"sep"}, 1, Partition<false>},
      {"rpartition", {"sep"}, 1, Partition<true>},
      {"startswith", {"prefix"}, 1, Fits<StartsWith>},
      {"endswith", {"suffix"}, 1, Fits<EndsWith>},
      {"removeprefix", {"prefix"}, 1, RemovePrefix},
      {"removesuffix", {"suffix"}, 1, RemoveSuffix},
      {"upper", {}, 0, Changed<Upper>},
      {"lower", {}, 0, Changed<Lower>},
      {"title", {}, 0, Changed<TitleMethod>},
      {"capitalize", {}, 0, Changed<Capitalize>},
      {"replace", {"old", "new", "count"}, 2, Replace},
      {"find", {"sub"}, 1, Found<FindFirst, false>},
      {"rfind", {"sub"}, 1, Found<FindLast, false>},
      {"index", {"sub"}, 1, Found<FindFirst, true>},
      {"count", {"sub"}, 1, CountOf},
      {"join", {"iterable"}, 1, JoinMethod},
      {"format", {}, 0, Format, true},
      {"isalpha", {}, 0, IsAll<CharClass::kAlpha>},
      {"isdigit", {}, 0, IsAll<CharClass::kDigit>},
      {"isalnum", {}, 0, IsAll<CharClass::kAlnum>},
      {"isspace", {}, 0, IsAll<CharClass::kSpace>},
      {"isupper", {}, 0, HasCase<IsUpper>},
      {"islower", {}, 0, HasCase<IsLower>},
  };
  return table;
}

absl::Span<const Builtin> DictMethods() {
  static const auto& table = *new std::vector<Builtin>{
      {"get", {"key", "default"}, 1, GetOf},
      {"items", {}, 0, Items},
      {"keys", {}, 0, Keys},
      {"values", {}, 0, Values},
      {"update", {}, 0, Refused, true},
      {"pop", {}, 0, Refused, true},
      {"popitem", {}, 0, Refused, true},
      {"setdefault", {}, 0, Refused, true},
      {"clear", {}, 0, Refused, true},
  };
  return table;
}

absl::Span<const Builtin> ListMethods() {
  static const auto& table = *new std::vector<Builtin>{
      {"index", {"value"}, 1, IndexIn}, {"count", {"value"}, 1, CountIn},
      {"append", {}, 0, Refused, true}, {"extend", {}, 0, Refused, true},
      {"insert", {}, 0, Refused, true}, {"pop", {}, 0, Refused, true},
      {"remove", {}, 0, Refused, true}, {"reverse", {}, 0, Refused, true},
      {"sort", {}, 0, Refused, true},   {"clear", {}, 0, Refused, true},
  };
  return table;
}

absl::Span<const Builtin> LoopMethods() {
  static const auto& table = *new std::vector<Builtin>{
      {"cycle", {}, 0, Cycle, true},
      {"changed", {}, 0, HasChanged, true},
  };
  return table;
}

}  // namespace

const Builtin* FindMethod(const Value& self, absl::string_view name) {
  switch (self.kind()) {
    case Kind::kText:
      return FindIn(TextMethods(), name);
    case Kind::kMap:
      return FindIn(DictMethods(), name);
    case Kind::kLoop:
      return FindIn(LoopMethods(), name);
    case Kind::kSequence:
      switch (self.sequence().shape) {
        case Sequence::Shape::kList:
          return FindIn(ListMethods(), name);
        case Sequence::Shape::kTuple:
        case Sequence::Shape::kRange:
          // `index` and `count`: a tuple has none that change it.
          return FindIn(ListMethods().subspan(0, 2), name);
        default:
          return nullptr;
      }
    default:
      return nullptr;
  }
}

absl::Status CheckMethodCall(absl::string_view name, size_t num_positional,
                             absl::Span<const absl::string_view> keywords) {
  absl::Status status = absl::InvalidArgumentError(
      absl::StrCat("the method '", name, "' is not supported"));
  for (const absl::Span<const Builtin> table :
       {TextMethods(), DictMethods(), ListMethods(), LoopMethods()}) {
    const Builtin* method = FindIn(table, name);
    if (method == nullptr) continue;
    status = CheckCall(*method, num_positional, keywords);
    if (status.ok()) return status;
  }
  return status;
}

}  // namespace troupe::jinja

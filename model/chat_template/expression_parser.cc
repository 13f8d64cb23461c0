#include "model/chat_template/expression_parser.h"

#include <algorithm>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/limits.h"

namespace troupe::jinja {
namespace {

using Kind = Expr::Kind;
using Type = Token::Type;

ExprPtr NewExpr(Kind kind, int line) {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  return expr;
}

template <typename... Items>
ExprPtr NewExpr(Kind kind, int line, Items... items) {
  ExprPtr expr = NewExpr(kind, line);
  (expr->items.push_back(std::move(items)), ...);
  return expr;
}

bool IsReserved(absl::string_view name) {
  static constexpr absl::string_view kWords[] = {
      "and", "or", "not", "if", "elif", "else", "in", "is", "for"};
  return std::find(std::begin(kWords), std::end(kWords), name) !=
         std::end(kWords);
}

// Counts one level of recursion as long as it lives.
class Level {
 public:
  explicit Level(int* depth) : depth_(depth) { ++*depth_; }
  ~Level() { --*depth_; }

 private:
  int* depth_;
};

absl::Status TooDeep(int line) {
  return SyntaxError(line, absl::StrCat("an expression of more than ",
                                        kMaxExpressionHeight, " levels"));
}

std::vector<absl::string_view> KeywordNames(const Expr& call) {
  std::vector<absl::string_view> names;
  for (const auto& [name, value] : call.keywords) names.push_back(name);
  return names;
}

// A status about a call with the line in front.
absl::Status AtLine(int line, const absl::Status& status) {
  return status.ok() ? status : SyntaxError(line, status.message());
}

}  // namespace

Token TokenStream::Next() {
  const Token token = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool TokenStream::IsName(absl::string_view name) const {
  return Is(Type::kName) && Current().text == name;
}

bool TokenStream::IsOperator(absl::string_view op) const {
  return Is(Type::kOperator) && Current().text == op;
}

bool TokenStream::SkipName(absl::string_view name) {
  if (!IsName(name)) return false;
  Next();
  return true;
}

bool TokenStream::SkipOperator(absl::string_view op) {
  if (!IsOperator(op)) return false;
  Next();
  return true;
}

absl::Status TokenStream::ExpectOperator(absl::string_view op) {
  if (SkipOperator(op)) return absl::OkStatus();
  return Unexpected(absl::StrCat("'", op, "'"));
}

absl::Status TokenStream::ExpectName(absl::string_view name) {
  if (SkipName(name)) return absl::OkStatus();
  return Unexpected(absl::StrCat("'", name, "'"));
}

absl::Status TokenStream::Expect(Type type) {
  if (Is(type)) {
    Next();
    return absl::OkStatus();
  }
  return Unexpected(type == Type::kBlockEnd ? "'%}'" : "'}}'");
}

absl::StatusOr<std::string> TokenStream::TakeName() {
  if (!Is(Type::kName) || IsReserved(Current().text)) {
    return Unexpected("a name");
  }
  return Next().text;
}

absl::Status TokenStream::Unexpected(absl::string_view wanted) const {
  const Token& token = Current();
  std::string what = absl::StrCat("'", token.text, "'");
  switch (token.type) {
    case Type::kData:
      what = "text";
      break;
    case Type::kBlockBegin:
      what = "'{%'";
      break;
    case Type::kBlockEnd:
      what = "'%}'";
      break;
    case Type::kVariableBegin:
      what = "'{{'";
      break;
    case Type::kVariableEnd:
      what = "'}}'";
      break;
    case Type::kString:
      what = "a text";
      break;
    case Type::kInteger:
    case Type::kFloat:
      what = "a number";
      break;
    case Type::kEnd:
      what = "the end of the template";
      break;
    default:
      break;
  }
  return SyntaxError(token.line,
                     absl::StrCat("unexpected ", what, ", wanted ", wanted));
}

absl::StatusOr<ExprPtr> ExpressionParser::Finish(ExprPtr expr) const {
  for (const ExprPtr& item : expr->items) {
    if (item != nullptr)
      expr->height = std::max(expr->height, item->height + 1);
  }
  for (const auto& [name, value] : expr->keywords) {
    expr->height = std::max(expr->height, value->height + 1);
  }
  if (expr->height > kMaxExpressionHeight) return TooDeep(expr->line);
  return expr;
}

absl::StatusOr<ExprPtr> ExpressionParser::Constant(
    int line, absl::StatusOr<Value> value) {
  ABSL_RETURN_IF_ERROR(value.status());
  ExprPtr expr = NewExpr(Kind::kConstant, line);
  expr->constant = *value;
  return expr;
}

absl::StatusOr<ExprPtr> ExpressionParser::Parse(bool with_condition) {
  const Level level(&depth_);
  if (depth_ > kMaxExpressionHeight) return TooDeep(tokens_.line());
  if (!with_condition) return ParseOr();
  const int line = tokens_.line();
  ABSL_ASSIGN_OR_RETURN(ExprPtr value, ParseOr());
  while (tokens_.SkipName("if")) {
    ABSL_ASSIGN_OR_RETURN(ExprPtr condition, ParseOr());
    ExprPtr otherwise;
    if (tokens_.SkipName("else")) {
      ABSL_ASSIGN_OR_RETURN(otherwise, Parse());
    }
    ABSL_ASSIGN_OR_RETURN(
        value, Finish(NewExpr(Kind::kConditional, line, std::move(condition),
                              std::move(value), std::move(otherwise))));
  }
  return value;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseTuple(bool with_condition,
                                                     bool in_parentheses) {
  const int line = tokens_.line();
  const auto is_end = [&] {
    return tokens_.Is(Type::kVariableEnd) || tokens_.Is(Type::kBlockEnd) ||
           tokens_.IsOperator(")");
  };
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  while (!is_end()) {
    ABSL_ASSIGN_OR_RETURN(ExprPtr item, Parse(with_condition));
    items.push_back(std::move(item));
    if (!tokens_.SkipOperator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return std::move(items[0]);
  if (items.empty() && !in_parentheses) {
    return tokens_.Unexpected("an expression");
  }
  ExprPtr tuple = NewExpr(Kind::kTuple, line);
  tuple->items = std::move(items);
  return Finish(std::move(tuple));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseLogic(
    absl::StatusOr<ExprPtr> (ExpressionParser::*next)(), absl::string_view word,
    Kind kind) {
  ABSL_ASSIGN_OR_RETURN(ExprPtr left, (this->*next)());
  while (tokens_.IsName(word)) {
    const int line = tokens_.Next().line;
    ABSL_ASSIGN_OR_RETURN(ExprPtr right, (this->*next)());
    ABSL_ASSIGN_OR_RETURN(
        left, Finish(NewExpr(kind, line, std::move(left), std::move(right))));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseOr() {
  return ParseLogic(&ExpressionParser::ParseAnd, "or", Kind::kOr);
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseAnd() {
  return ParseLogic(&ExpressionParser::ParseNot, "and", Kind::kAnd);
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseNot() {
  if (!tokens_.IsName("not")) return ParseComparison();
  const Level level(&depth_);
  if (depth_ > kMaxExpressionHeight) return TooDeep(tokens_.line());
  const int line = tokens_.Next().line;
  ABSL_ASSIGN_OR_RETURN(ExprPtr operand, ParseNot());
  return Finish(NewExpr(Kind::kNot, line, std::move(operand)));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseComparison() {
  static constexpr std::pair<absl::string_view, Operator> kOperators[] = {
      {"==", Operator::kEqual},  {"!=", Operator::kNotEqual},
      {"<", Operator::kLess},    {"<=", Operator::kLessEqual},
      {">", Operator::kGreater}, {">=", Operator::kGreaterEqual},
  };
  const int line = tokens_.line();
  ABSL_ASSIGN_OR_RETURN(ExprPtr first, ParseSum());
  ExprPtr comparison = NewExpr(Kind::kComparison, line);
  comparison->items.push_back(std::move(first));
  while (true) {
    const Token& token = tokens_.Current();
    const auto* op = std::find_if(
        std::begin(kOperators), std::end(kOperators),
        [&](const auto& entry) { return entry.first == token.text; });
    if (token.type == Type::kOperator && op != std::end(kOperators)) {
      comparison->operators.push_back(op->second);
      tokens_.Next();
    } else if (tokens_.SkipName("in")) {
      comparison->operators.push_back(Operator::kIn);
    } else if (tokens_.IsName("not") && tokens_.Ahead().type == Type::kName &&
               tokens_.Ahead().text == "in") {
      tokens_.Next();
      tokens_.Next();
      comparison->operators.push_back(Operator::kNotIn);
    } else {
      break;
    }
    ABSL_ASSIGN_OR_RETURN(ExprPtr operand, ParseSum());
    comparison->items.push_back(std::move(operand));
  }
  if (comparison->operators.empty()) return std::move(comparison->items[0]);
  return Finish(std::move(comparison));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseChain(
    absl::StatusOr<ExprPtr> (ExpressionParser::*next)(),
    std::initializer_list<std::pair<absl::string_view, Operator>> operators) {
  ABSL_ASSIGN_OR_RETURN(ExprPtr left, (this->*next)());
  while (true) {
    const auto* op = std::find_if(
        operators.begin(), operators.end(),
        [&](const auto& entry) { return tokens_.IsOperator(entry.first); });
    if (op == operators.end()) return left;
    const int line = tokens_.Next().line;
    ABSL_ASSIGN_OR_RETURN(ExprPtr right, (this->*next)());
    left = NewExpr(Kind::kArithmetic, line, std::move(left), std::move(right));
    left->operators.push_back(op->second);
    ABSL_ASSIGN_OR_RETURN(left, Finish(std::move(left)));
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseSum() {
  return ParseChain(&ExpressionParser::ParseConcat,
                    {{"+", Operator::kAdd}, {"-", Operator::kSubtract}});
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseConcat() {
  const int line = tokens_.line();
  ABSL_ASSIGN_OR_RETURN(ExprPtr first, ParseProduct());
  if (!tokens_.IsOperator("~")) return first;
  ExprPtr concat = NewExpr(Kind::kConcat, line, std::move(first));
  while (tokens_.SkipOperator("~")) {
    ABSL_ASSIGN_OR_RETURN(ExprPtr next, ParseProduct());
    concat->items.push_back(std::move(next));
  }
  return Finish(std::move(concat));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseProduct() {
  return ParseChain(&ExpressionParser::ParsePower,
                    {{"*", Operator::kMultiply},
                     {"/", Operator::kDivide},
                     {"//", Operator::kFloorDivide},
                     {"%", Operator::kModulo}});
}

absl::StatusOr<ExprPtr> ExpressionParser::ParsePower() {
  ABSL_ASSIGN_OR_RETURN(ExprPtr left, ParseUnary(/*with_filters=*/true));
  while (tokens_.IsOperator("**")) {
    const int line = tokens_.Next().line;
    ABSL_ASSIGN_OR_RETURN(ExprPtr right, ParseUnary(/*with_filters=*/true));
    left = NewExpr(Kind::kArithmetic, line, std::move(left), std::move(right));
    left->operators.push_back(Operator::kPower);
    ABSL_ASSIGN_OR_RETURN(left, Finish(std::move(left)));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseUnary(bool with_filters) {
  const bool is_minus = tokens_.IsOperator("-");
  ExprPtr value;
  if (is_minus || tokens_.IsOperator("+")) {
    const Level level(&depth_);
    if (depth_ > kMaxExpressionHeight) return TooDeep(tokens_.line());
    const int line = tokens_.Next().line;
    ABSL_ASSIGN_OR_RETURN(ExprPtr operand, ParseUnary(/*with_filters=*/false));
    ABSL_ASSIGN_OR_RETURN(
        value, Finish(NewExpr(is_minus ? Kind::kNegate : Kind::kPlus, line,
                              std::move(operand))));
  } else {
    ABSL_ASSIGN_OR_RETURN(value, ParsePrimary());
  }
  ABSL_ASSIGN_OR_RETURN(value, ParsePostfix(std::move(value)));
  if (!with_filters) return value;
  return ParseFiltersAndTests(std::move(value));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseNameOrWord() {
  const int line = tokens_.line();
  if (tokens_.SkipName("true") || tokens_.SkipName("True")) {
    return Constant(line, Value::Bool(true));
  }
  if (tokens_.SkipName("false") || tokens_.SkipName("False")) {
    return Constant(line, Value::Bool(false));
  }
  if (tokens_.SkipName("none") || tokens_.SkipName("None")) {
    return Constant(line, Value::None());
  }
  ABSL_ASSIGN_OR_RETURN(const std::string name, tokens_.TakeName());
  if (!macros_.empty() && (name == "varargs" || name == "kwargs")) {
    return SyntaxError(line, absl::StrCat("the name '", name,
                                          "' in a macro is not supported"));
  }
  if (name == "caller") {
    for (MacroNode* macro : macros_) macro->uses_caller = true;
  }
  ExprPtr expr = NewExpr(Kind::kName, line);
  expr->name = name;
  return expr;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParsePrimary() {
  const int line = tokens_.line();
  switch (tokens_.Current().type) {
    case Type::kName:
      return ParseNameOrWord();
    case Type::kString: {
      std::string text;
      while (tokens_.Is(Type::kString)) text += tokens_.Next().text;
      return Constant(line, constants_.NewText(std::move(text)));
    }
    case Type::kInteger:
      return Constant(line, Value::Int(tokens_.Next().integer));
    case Type::kFloat:
      return Constant(line, Value::Float(tokens_.Next().real));
    default:
      break;
  }
  if (tokens_.SkipOperator("(")) {
    ABSL_ASSIGN_OR_RETURN(ExprPtr value, ParseTuple(/*with_condition=*/true,
                                                    /*in_parentheses=*/true));
    ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
    return value;
  }
  if (tokens_.IsOperator("[")) return ParseList();
  if (tokens_.IsOperator("{")) return ParseDict();
  return tokens_.Unexpected("an expression");
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseList() {
  ExprPtr list = NewExpr(Kind::kList, tokens_.Next().line);
  while (!tokens_.IsOperator("]")) {
    if (!list->items.empty()) {
      ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.IsOperator("]")) break;
    }
    ABSL_ASSIGN_OR_RETURN(ExprPtr item, Parse());
    list->items.push_back(std::move(item));
  }
  tokens_.Next();
  return Finish(std::move(list));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseDict() {
  ExprPtr dict = NewExpr(Kind::kDict, tokens_.Next().line);
  while (!tokens_.IsOperator("}")) {
    if (!dict->items.empty()) {
      ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.IsOperator("}")) break;
    }
    ABSL_ASSIGN_OR_RETURN(ExprPtr key, Parse());
    if (key->kind == Kind::kConstant && !key->constant.Is(Value::Kind::kText)) {
      return SyntaxError(key->line,
                         "dict keys other than texts are not supported");
    }
    ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator(":"));
    ABSL_ASSIGN_OR_RETURN(ExprPtr value, Parse());
    dict->items.push_back(std::move(key));
    dict->items.push_back(std::move(value));
  }
  tokens_.Next();
  return Finish(std::move(dict));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParsePostfix(ExprPtr value) {
  while (true) {
    if (tokens_.IsOperator(".")) {
      ABSL_ASSIGN_OR_RETURN(value, ParseAttribute(std::move(value)));
    } else if (tokens_.IsOperator("[")) {
      ABSL_ASSIGN_OR_RETURN(value, ParseSubscript(std::move(value)));
    } else if (tokens_.IsOperator("(")) {
      ABSL_ASSIGN_OR_RETURN(value, ParseCall(std::move(value)));
    } else {
      return value;
    }
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseFiltersAndTests(ExprPtr value) {
  while (true) {
    if (tokens_.IsOperator("|")) {
      ABSL_ASSIGN_OR_RETURN(value,
                            ParseFilters(std::move(value), /*with_bar=*/true));
    } else if (tokens_.IsName("is")) {
      ABSL_ASSIGN_OR_RETURN(value, ParseTest(std::move(value)));
    } else if (tokens_.IsOperator("(")) {
      ABSL_ASSIGN_OR_RETURN(value, ParseCall(std::move(value)));
    } else {
      return value;
    }
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseAttribute(ExprPtr object) {
  const int line = tokens_.Next().line;
  if (tokens_.Is(Type::kInteger)) {
    ABSL_ASSIGN_OR_RETURN(ExprPtr key,
                          Constant(line, Value::Int(tokens_.Next().integer)));
    return Finish(
        NewExpr(Kind::kItem, line, std::move(object), std::move(key)));
  }
  if (!tokens_.Is(Type::kName)) return tokens_.Unexpected("a name");
  const std::string name = tokens_.Next().text;
  if (absl::StartsWith(name, "__")) {
    return SyntaxError(
        line, absl::StrCat("the attribute '", name, "' is not supported"));
  }
  ExprPtr attribute = NewExpr(Kind::kAttribute, line, std::move(object));
  attribute->name = name;
  return Finish(std::move(attribute));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseSubscript(ExprPtr object) {
  const int line = tokens_.Next().line;
  ExprPtr key;
  if (!tokens_.IsOperator(":")) {
    ABSL_ASSIGN_OR_RETURN(key, Parse());
  }
  if (tokens_.IsOperator(":")) {
    return ParseSliceRest(std::move(object), std::move(key));
  }
  if (tokens_.IsOperator(",")) {
    return SyntaxError(line, "several subscripts at once are not supported");
  }
  ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator("]"));
  return Finish(NewExpr(Kind::kItem, line, std::move(object), std::move(key)));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseSliceRest(ExprPtr object,
                                                         ExprPtr start) {
  ExprPtr slice = NewExpr(Kind::kSlice, tokens_.Next().line, std::move(object),
                          std::move(start), ExprPtr(), ExprPtr());
  if (!tokens_.IsOperator(":") && !tokens_.IsOperator("]")) {
    ABSL_ASSIGN_OR_RETURN(slice->items[2], Parse());
  }
  if (tokens_.SkipOperator(":") && !tokens_.IsOperator("]")) {
    ABSL_ASSIGN_OR_RETURN(slice->items[3], Parse());
  }
  ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator("]"));
  return Finish(std::move(slice));
}

absl::Status ExpressionParser::ParseArguments(Expr* call) {
  ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator("("));
  bool is_first = true;
  while (!tokens_.IsOperator(")")) {
    if (!std::exchange(is_first, false)) {
      ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.IsOperator(")")) break;
    }
    if (tokens_.IsOperator("*") || tokens_.IsOperator("**")) {
      return SyntaxError(tokens_.line(),
                         "* and ** in a call are not supported");
    }
    const bool is_keyword = tokens_.Is(Type::kName) &&
                            tokens_.Ahead().type == Type::kOperator &&
                            tokens_.Ahead().text == "=";
    if (!is_keyword && !call->keywords.empty()) {
      return tokens_.Unexpected("a named argument after named ones");
    }
    std::string name;
    if (is_keyword) {
      name = tokens_.Next().text;
      tokens_.Next();
    }
    ABSL_ASSIGN_OR_RETURN(ExprPtr value, Parse());
    if (!is_keyword) {
      call->items.push_back(std::move(value));
      continue;
    }
    for (const auto& [other, unused] : call->keywords) {
      if (other == name) {
        return SyntaxError(
            value->line, absl::StrCat("the argument '", name, "' is repeated"));
      }
    }
    call->keywords.emplace_back(name, std::move(value));
  }
  tokens_.Next();
  return absl::OkStatus();
}

absl::Status ExpressionParser::CheckArguments(const Expr& call) const {
  return AtLine(call.line, CheckCall(*call.builtin, call.items.size() - 1,
                                     KeywordNames(call)));
}

// map('upper') and selectattr('role', 'equalto', 'user') name a filter or a
// test in an argument.
absl::Status ExpressionParser::CheckNamedBuiltin(const Expr& filter) const {
  const bool is_map = filter.name == "map";
  const bool is_select = filter.name == "select" || filter.name == "reject";
  const bool by_attribute =
      filter.name == "selectattr" || filter.name == "rejectattr";
  if (!is_map && !is_select && !by_attribute) return absl::OkStatus();
  const size_t at = by_attribute ? 2 : 1;
  if (filter.items.size() <= at) return absl::OkStatus();
  const Expr& name = *filter.items[at];
  if (name.kind != Kind::kConstant || !name.constant.Is(Value::Kind::kText)) {
    return absl::OkStatus();
  }
  const absl::string_view text = name.constant.text();
  const Builtin* builtin = is_map ? FindFilter(text) : FindTest(text);
  if (builtin != nullptr) return absl::OkStatus();
  return SyntaxError(name.line, absl::StrCat("the ", is_map ? "filter" : "test",
                                             " '", text, "' is not supported"));
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseFilters(ExprPtr value,
                                                       bool with_bar) {
  while (!with_bar || tokens_.SkipOperator("|")) {
    with_bar = true;
    ExprPtr filter = NewExpr(Kind::kFilter, tokens_.line(), std::move(value));
    if (!tokens_.Is(Type::kName)) return tokens_.Unexpected("a filter");
    filter->name = tokens_.Next().text;
    filter->builtin = FindFilter(filter->name);
    if (filter->builtin == nullptr) {
      return SyntaxError(
          filter->line,
          absl::StrCat("the filter '", filter->name, "' is not supported"));
    }
    if (tokens_.IsOperator("(")) {
      ABSL_RETURN_IF_ERROR(ParseArguments(filter.get()));
    }
    ABSL_RETURN_IF_ERROR(CheckArguments(*filter));
    ABSL_RETURN_IF_ERROR(CheckNamedBuiltin(*filter));
    ABSL_ASSIGN_OR_RETURN(value, Finish(std::move(filter)));
  }
  return value;
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseTest(ExprPtr value) {
  const int line = tokens_.Next().line;
  const bool is_negated = tokens_.SkipName("not");
  ExprPtr test = NewExpr(Kind::kTest, line, std::move(value));
  if (!tokens_.Is(Type::kName)) return tokens_.Unexpected("a test");
  test->name = tokens_.Next().text;
  test->builtin = FindTest(test->name);
  if (test->builtin == nullptr) {
    return SyntaxError(
        line, absl::StrCat("the test '", test->name, "' is not supported"));
  }
  const Token& next = tokens_.Current();
  const bool starts_value =
      next.type == Type::kString || next.type == Type::kInteger ||
      next.type == Type::kFloat || tokens_.IsOperator("[") ||
      tokens_.IsOperator("{") ||
      (next.type == Type::kName && !IsReserved(next.text));
  if (tokens_.IsOperator("(")) {
    ABSL_RETURN_IF_ERROR(ParseArguments(test.get()));
  } else if (tokens_.IsName("is")) {
    return tokens_.Unexpected("one test at a time");
  } else if (starts_value) {
    ABSL_ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
    ABSL_ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    test->items.push_back(std::move(argument));
  }
  ABSL_RETURN_IF_ERROR(CheckArguments(*test));
  ABSL_ASSIGN_OR_RETURN(test, Finish(std::move(test)));
  if (!is_negated) return test;
  return Finish(NewExpr(Kind::kNot, line, std::move(test)));
}

absl::Status ExpressionParser::CheckCallee(const Expr& call) {
  const Expr& callee = *call.items[0];
  const size_t num_positional = call.items.size() - 1;
  if (callee.kind == Kind::kName) {
    NamedCall named{call.line, callee.name, num_positional, {}};
    for (const auto& [name, value] : call.keywords) {
      named.keywords.push_back(name);
    }
    calls_.push_back(std::move(named));
    return absl::OkStatus();
  }
  if (callee.kind == Kind::kAttribute) {
    return AtLine(call.line, CheckMethodCall(callee.name, num_positional,
                                             KeywordNames(call)));
  }
  return SyntaxError(
      call.line, "only functions, macros and methods by name can be called");
}

absl::StatusOr<ExprPtr> ExpressionParser::ParseCall(ExprPtr callee) {
  ExprPtr call = NewExpr(Kind::kCall, tokens_.line(), std::move(callee));
  ABSL_RETURN_IF_ERROR(ParseArguments(call.get()));
  ABSL_RETURN_IF_ERROR(CheckCallee(*call));
  return Finish(std::move(call));
}

absl::Status ExpressionParser::CheckCalls() const {
  for (const NamedCall& call : calls_) {
    // Only what the template itself defines can be called besides functions:
    // variables from outside are data.
    if (call.name == "caller" || assigned_.contains(call.name)) continue;
    const Builtin* function = FindFunction(call.name);
    if (function == nullptr) {
      return SyntaxError(call.line, absl::StrCat("the function '", call.name,
                                                 "' is not supported"));
    }
    const std::vector<absl::string_view> keywords(call.keywords.begin(),
                                                  call.keywords.end());
    ABSL_RETURN_IF_ERROR(
        AtLine(call.line, CheckCall(*function, call.num_positional, keywords)));
  }
  return absl::OkStatus();
}

}  // namespace troupe::jinja

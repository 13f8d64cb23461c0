// Expressions out of tokens, by Jinja's grammar.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_EXPRESSION_PARSER_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_EXPRESSION_PARSER_H_

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/chat_template/ast.h"
#include "model/chat_template/lexer.h"

namespace troupe::jinja {

// Tokens one after the other. The last one, kEnd, is never passed.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens)
      : tokens_(std::move(tokens)) {}

  const Token& Current() const { return tokens_[at_]; }
  const Token& Ahead() const {
    return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_];
  }
  int line() const { return Current().line; }
  Token Next();

  bool Is(Token::Type type) const { return Current().type == type; }
  bool IsName(absl::string_view name) const;
  bool IsOperator(absl::string_view op) const;
  bool SkipName(absl::string_view name);
  bool SkipOperator(absl::string_view op);

  absl::Status ExpectOperator(absl::string_view op);
  absl::Status ExpectName(absl::string_view name);
  absl::Status Expect(Token::Type type);
  absl::StatusOr<std::string> TakeName();

  // "line 3: unexpected 'x'"
  absl::Status Unexpected(absl::string_view wanted) const;

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
};

// Borrows the tokens and the heap of the constants.
class ExpressionParser {
 public:
  ExpressionParser(TokenStream& tokens, Heap& constants)
      : tokens_(tokens), constants_(constants) {}

  // Without a condition, `a if b else c` ends before its `if`.
  absl::StatusOr<ExprPtr> Parse(bool with_condition = true);
  // An expression, or a tuple where commas follow.
  absl::StatusOr<ExprPtr> ParseTuple(bool with_condition = true,
                                     bool in_parentheses = false);
  // `|name(...)|...` after `value`, or without a first bar; `value` may be
  // null.
  absl::StatusOr<ExprPtr> ParseFilters(ExprPtr value, bool with_bar);

  // Tells that the template assigns to a name, which may then be called.
  void Assigned(const std::string& name) { assigned_.insert(name); }
  // Macros in the source around the expressions that come.
  void EnterMacro(MacroNode* macro) { macros_.push_back(macro); }
  void LeaveMacro() { macros_.pop_back(); }

  // At the end of the template: whether everything that it calls exists.
  absl::Status CheckCalls() const;

 private:
  struct NamedCall {
    int line;
    std::string name;
    size_t num_positional;
    std::vector<std::string> keywords;
  };

  absl::StatusOr<ExprPtr> ParseOr();
  absl::StatusOr<ExprPtr> ParseAnd();
  absl::StatusOr<ExprPtr> ParseNot();
  absl::StatusOr<ExprPtr> ParseComparison();
  absl::StatusOr<ExprPtr> ParseSum();
  absl::StatusOr<ExprPtr> ParseConcat();
  absl::StatusOr<ExprPtr> ParseProduct();
  absl::StatusOr<ExprPtr> ParsePower();
  absl::StatusOr<ExprPtr> ParseUnary(bool with_filters);
  absl::StatusOr<ExprPtr> ParsePrimary();
  absl::StatusOr<ExprPtr> ParseNameOrWord();
  absl::StatusOr<ExprPtr> ParseList();
  absl::StatusOr<ExprPtr> ParseDict();
  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr value);
  absl::StatusOr<ExprPtr> ParseFiltersAndTests(ExprPtr value);
  absl::StatusOr<ExprPtr> ParseAttribute(ExprPtr object);
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr object);
  absl::StatusOr<ExprPtr> ParseSliceRest(ExprPtr object, ExprPtr start);
  absl::StatusOr<ExprPtr> ParseCall(ExprPtr callee);
  absl::StatusOr<ExprPtr> ParseTest(ExprPtr value);

  absl::Status ParseArguments(Expr* call);
  // Checks the arguments of a filter or test against its parameters.
  absl::Status CheckArguments(const Expr& call) const;
  absl::Status CheckNamedBuiltin(const Expr& filter) const;
  absl::Status CheckCallee(const Expr& call);

  // Left-associative chains of arithmetic.
  absl::StatusOr<ExprPtr> ParseChain(
      absl::StatusOr<ExprPtr> (ExpressionParser::*next)(),
      std::initializer_list<std::pair<absl::string_view, Operator>> operators);
  absl::StatusOr<ExprPtr> ParseLogic(
      absl::StatusOr<ExprPtr> (ExpressionParser::*next)(),
      absl::string_view word, Expr::Kind kind);

  absl::StatusOr<ExprPtr> Constant(int line, absl::StatusOr<Value> value);
  // Fills in the height and checks it.
  absl::StatusOr<ExprPtr> Finish(ExprPtr expr) const;

  TokenStream& tokens_;
  Heap& constants_;
  int depth_ = 0;
  std::vector<MacroNode*> macros_;
  absl::flat_hash_set<std::string> assigned_;
  std::vector<NamedCall> calls_;
};

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_EXPRESSION_PARSER_H_

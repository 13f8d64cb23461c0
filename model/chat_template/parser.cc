#include "model/chat_template/parser.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/chat_template/expression_parser.h"
#include "model/chat_template/lexer.h"
#include "model/chat_template/limits.h"

namespace troupe::jinja {
namespace {

using Kind = Node::Kind;
using NodePtr = std::unique_ptr<Node>;
using Type = Token::Type;

NodePtr NewNode(Kind kind, int line) {
  auto node = std::make_unique<Node>();
  node->kind = kind;
  node->line = line;
  return node;
}

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens)
      : template_(std::make_unique<Template>()),
        tokens_(std::move(tokens)),
        expressions_(tokens_, template_->constants) {}

  absl::StatusOr<std::unique_ptr<const Template>> Run() {
    ABSL_RETURN_IF_ERROR(ParseUntil({}, &template_->body).status());
    ABSL_RETURN_IF_ERROR(expressions_.CheckCalls());
    return std::move(template_);
  }

 private:
  // Statements up to one of the words, whose name is taken and returned; up to
  // the end of the template when there are none.
  absl::StatusOr<std::string> ParseUntil(
      const std::vector<absl::string_view>& words, Body* body) {
    while (true) {
      const int line = tokens_.line();
      switch (tokens_.Current().type) {
        case Type::kEnd:
          if (words.empty()) return std::string();
          return SyntaxError(line,
                             absl::StrCat("the template ends before '",
                                          absl::StrJoin(words, "' or '"), "'"));
        case Type::kData: {
          NodePtr node = NewNode(Kind::kText, line);
          node->text = tokens_.Next().text;
          body->push_back(std::move(node));
          break;
        }
        case Type::kVariableBegin: {
          tokens_.Next();
          NodePtr node = NewNode(Kind::kOutput, line);
          ABSL_ASSIGN_OR_RETURN(node->expr, expressions_.ParseTuple());
          ABSL_RETURN_IF_ERROR(tokens_.Expect(Type::kVariableEnd));
          body->push_back(std::move(node));
          break;
        }
        default: {
          tokens_.Next();  // a block begins
          for (const absl::string_view word : words) {
            if (tokens_.SkipName(word)) return std::string(word);
          }
          ABSL_ASSIGN_OR_RETURN(NodePtr node, ParseStatement());
          ABSL_RETURN_IF_ERROR(tokens_.Expect(Type::kBlockEnd));
          body->push_back(std::move(node));
          break;
        }
      }
    }
  }

  // The body of a statement, after its head.
  absl::StatusOr<std::string> ParseBody(
      const std::vector<absl::string_view>& words, Body* body) {
    tokens_.SkipOperator(":");
    ABSL_RETURN_IF_ERROR(tokens_.Expect(Type::kBlockEnd));
    if (++depth_ > kMaxNesting) {
      return SyntaxError(tokens_.line(), absl::StrCat("more than ", kMaxNesting,
                                                      " open statements"));
    }
    absl::StatusOr<std::string> end = ParseUntil(words, body);
    --depth_;
    return end;
  }

  // A body in which break and continue have no loop.
  absl::Status ParseClosedBody(absl::string_view end, Body* body) {
    const int num_loops = std::exchange(num_loops_, 0);
    const absl::Status status = ParseBody({end}, body).status();
    num_loops_ = num_loops;
    return status;
  }

  absl::StatusOr<NodePtr> ParseStatement() {
    static constexpr std::pair<absl::string_view,
                               absl::StatusOr<NodePtr> (Parser::*)(int)>
        kStatements[] = {
            {"if", &Parser::ParseIf},
            {"for", &Parser::ParseFor},
            {"set", &Parser::ParseSet},
            {"macro", &Parser::ParseMacro},
            {"call", &Parser::ParseCallBlock},
            {"filter", &Parser::ParseFilterBlock},
            {"with", &Parser::ParseWith},
            {"generation", &Parser::ParseGeneration},
            {"break", &Parser::ParseBreak},
            {"continue", &Parser::ParseContinue},
        };
    const int line = tokens_.line();
    if (!tokens_.Is(Type::kName)) return tokens_.Unexpected("a statement");
    const std::string name = tokens_.Next().text;
    for (const auto& [word, parse] : kStatements) {
      if (name == word) return (this->*parse)(line);
    }
    return SyntaxError(line, absl::StrCat("the statement '", name,
                                          absl::StartsWith(name, "end") ||
                                                  absl::StartsWith(name, "el")
                                              ? "' is not expected here"
                                              : "' is not supported"));
  }

  absl::StatusOr<NodePtr> ParseIf(int line) {
    NodePtr node = NewNode(Kind::kIf, line);
    std::string end = "elif";
    while (end == "elif") {
      ABSL_ASSIGN_OR_RETURN(ExprPtr condition,
                            expressions_.ParseTuple(/*with_condition=*/false));
      node->exprs.push_back(std::move(condition));
      node->bodies.emplace_back();
      ABSL_ASSIGN_OR_RETURN(
          end, ParseBody({"elif", "else", "endif"}, &node->bodies.back()));
    }
    if (end == "else") {
      ABSL_RETURN_IF_ERROR(ParseBody({"endif"}, &node->else_body).status());
    }
    return node;
  }

  absl::StatusOr<NodePtr> ParseFor(int line) {
    NodePtr node = NewNode(Kind::kFor, line);
    ABSL_ASSIGN_OR_RETURN(node->target, ParseTarget(/*in_for=*/true));
    ABSL_RETURN_IF_ERROR(tokens_.ExpectName("in"));
    ABSL_ASSIGN_OR_RETURN(node->expr,
                          expressions_.ParseTuple(/*with_condition=*/false));
    if (tokens_.SkipName("if")) {
      ABSL_ASSIGN_OR_RETURN(node->test, expressions_.Parse());
    }
    if (tokens_.IsName("recursive")) {
      return SyntaxError(line, "a recursive 'for' is not supported");
    }
    ++num_loops_;
    const absl::StatusOr<std::string> end =
        ParseBody({"else", "endfor"}, &node->body);
    --num_loops_;
    ABSL_RETURN_IF_ERROR(end.status());
    if (*end == "else") {
      ABSL_RETURN_IF_ERROR(ParseBody({"endfor"}, &node->else_body).status());
    }
    return node;
  }

  absl::StatusOr<NodePtr> ParseSet(int line) {
    NodePtr node = NewNode(Kind::kSet, line);
    ABSL_ASSIGN_OR_RETURN(node->target, ParseTarget(/*in_for=*/false));
    if (tokens_.SkipOperator("=")) {
      ABSL_ASSIGN_OR_RETURN(node->expr, expressions_.ParseTuple());
      return node;
    }
    node->kind = Kind::kSetBlock;
    ABSL_ASSIGN_OR_RETURN(node->expr, expressions_.ParseFilters(nullptr, true));
    ABSL_RETURN_IF_ERROR(ParseClosedBody("endset", &node->body));
    return node;
  }

  absl::Status ParseParameters(MacroNode* macro) {
    ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator("("));
    while (!tokens_.IsOperator(")")) {
      if (!macro->parameters.empty()) {
        ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      }
      Parameter parameter;
      ABSL_ASSIGN_OR_RETURN(parameter.name, TakeTargetName());
      if (tokens_.SkipOperator("=")) {
        ABSL_ASSIGN_OR_RETURN(parameter.otherwise, expressions_.Parse());
      } else if (!macro->parameters.empty() &&
                 macro->parameters.back().otherwise != nullptr) {
        return tokens_.Unexpected("a default, as the parameter before has one");
      }
      macro->parameters.push_back(std::move(parameter));
    }
    tokens_.Next();
    return absl::OkStatus();
  }

  absl::Status ParseMacroBody(absl::string_view end, MacroNode* macro) {
    expressions_.EnterMacro(macro);
    const absl::Status status = ParseClosedBody(end, &macro->body);
    expressions_.LeaveMacro();
    return status;
  }

  absl::StatusOr<NodePtr> ParseMacro(int line) {
    NodePtr node = NewNode(Kind::kMacro, line);
    ABSL_ASSIGN_OR_RETURN(node->macro.name, TakeTargetName());
    ABSL_RETURN_IF_ERROR(ParseParameters(&node->macro));
    ABSL_RETURN_IF_ERROR(ParseMacroBody("endmacro", &node->macro));
    return node;
  }

  absl::StatusOr<NodePtr> ParseCallBlock(int line) {
    NodePtr node = NewNode(Kind::kCall, line);
    node->macro.name = "caller";
    if (tokens_.IsOperator("(")) {
      ABSL_RETURN_IF_ERROR(ParseParameters(&node->macro));
    }
    ABSL_ASSIGN_OR_RETURN(node->expr, expressions_.Parse());
    if (node->expr->kind != Expr::Kind::kCall) {
      return SyntaxError(line, "'call' needs a call of a macro");
    }
    ABSL_RETURN_IF_ERROR(ParseMacroBody("endcall", &node->macro));
    return node;
  }

  absl::StatusOr<NodePtr> ParseFilterBlock(int line) {
    NodePtr node = NewNode(Kind::kFilter, line);
    ABSL_ASSIGN_OR_RETURN(node->expr,
                          expressions_.ParseFilters(nullptr, false));
    ABSL_RETURN_IF_ERROR(ParseClosedBody("endfilter", &node->body));
    return node;
  }

  absl::StatusOr<NodePtr> ParseWith(int line) {
    NodePtr node = NewNode(Kind::kWith, line);
    while (!tokens_.Is(Type::kBlockEnd)) {
      if (!node->targets.empty()) {
        ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      }
      Target target;
      ABSL_ASSIGN_OR_RETURN(target.name, TakeTargetName());
      ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator("="));
      ABSL_ASSIGN_OR_RETURN(ExprPtr value, expressions_.Parse());
      node->targets.push_back(std::move(target));
      node->exprs.push_back(std::move(value));
    }
    ABSL_RETURN_IF_ERROR(ParseBody({"endwith"}, &node->body).status());
    return node;
  }

  // Of transformers: marks what the assistant wrote. Its text is the body's.
  absl::StatusOr<NodePtr> ParseGeneration(int line) {
    NodePtr node = NewNode(Kind::kScope, line);
    ABSL_RETURN_IF_ERROR(ParseClosedBody("endgeneration", &node->body));
    return node;
  }

  absl::StatusOr<NodePtr> ParseBreak(int line) {
    return ParseLoopControl(Kind::kBreak, "break", line);
  }
  absl::StatusOr<NodePtr> ParseContinue(int line) {
    return ParseLoopControl(Kind::kContinue, "continue", line);
  }
  absl::StatusOr<NodePtr> ParseLoopControl(Kind kind, absl::string_view name,
                                           int line) {
    if (num_loops_ > 0) return NewNode(kind, line);
    return SyntaxError(line, absl::StrCat("'", name, "' outside of a loop"));
  }

  absl::StatusOr<std::string> TakeTargetName() {
    static constexpr absl::string_view kConstants[] = {"true", "false", "none",
                                                       "True", "False", "None"};
    for (const absl::string_view constant : kConstants) {
      if (tokens_.IsName(constant)) return tokens_.Unexpected("a name");
    }
    ABSL_ASSIGN_OR_RETURN(const std::string name, tokens_.TakeName());
    expressions_.Assigned(name);
    return name;
  }

  // One name, or several with commas, in parentheses or not.
  absl::StatusOr<Target> ParseTarget(bool in_for) {
    std::vector<Target> items;
    bool is_tuple = false;
    const auto is_end = [&] {
      return tokens_.Is(Type::kBlockEnd) || tokens_.IsOperator(")") ||
             tokens_.IsOperator("=") || tokens_.IsName("in");
    };
    do {
      if (!items.empty() && is_end()) break;
      Target item;
      if (tokens_.SkipOperator("(")) {
        if (++depth_ > kMaxNesting) return tokens_.Unexpected("fewer brackets");
        ABSL_ASSIGN_OR_RETURN(item, ParseTarget(in_for));
        --depth_;
        ABSL_RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
      } else {
        ABSL_ASSIGN_OR_RETURN(item.name, TakeTargetName());
        if (!in_for && tokens_.SkipOperator(".")) {
          ABSL_ASSIGN_OR_RETURN(item.attribute, tokens_.TakeName());
          if (absl::StartsWith(item.attribute, "_")) {
            return SyntaxError(tokens_.line(),
                               "a namespace takes no name that begins with an "
                               "underscore");
          }
        }
      }
      items.push_back(std::move(item));
      is_tuple |= tokens_.IsOperator(",");
    } while (tokens_.SkipOperator(","));
    if (!is_tuple) return std::move(items[0]);
    Target tuple;
    tuple.items = std::move(items);
    return tuple;
  }

  std::unique_ptr<Template> template_;
  TokenStream tokens_;
  ExpressionParser expressions_;
  int depth_ = 0;      // of open statements
  int num_loops_ = 0;  // that break and continue can leave
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Template>> Parse(
    absl::string_view source) {
  ABSL_ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace troupe::jinja

// The tree of a template.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_AST_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_AST_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/chat_template/builtin.h"
#include "model/chat_template/operators.h"
#include "model/chat_template/value.h"

namespace troupe::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

// One expression. What its fields hold depends on its kind.
struct Expr {
  enum class Kind {
    kConstant,     // constant
    kName,         // name
    kList,         // items
    kTuple,        // items
    kDict,         // items: key, value, key, value, ...
    kNot,          // items: operand
    kNegate,       // items: operand
    kPlus,         // items: operand
    kArithmetic,   // items: left, right; operators: one
    kConcat,       // items: two or more
    kComparison,   // items: n + 1; operators: n
    kAnd,          // items: left, right
    kOr,           // items: left, right
    kConditional,  // items: condition, value, other value or null
    kAttribute,    // items: object; name
    kItem,         // items: object, key
    kSlice,        // items: object, start, stop, step; the last three or null
    kFilter,       // items: value (null in a filter block), arguments;
                   // keywords; builtin
    kTest,         // items: value, arguments; keywords; builtin
    kCall,         // items: callee, arguments; keywords
  };
  Kind kind;
  int line;
  int height = 1;  // levels of the tree below, this one included
  std::string name;
  Value constant;
  std::vector<ExprPtr> items;
  std::vector<Operator> operators;
  std::vector<std::pair<std::string, ExprPtr>> keywords;
  const Builtin* builtin = nullptr;
};

// What is assigned to: a name, an attribute of a namespace, or several targets.
struct Target {
  std::string name;
  std::string attribute;      // empty for a plain name
  std::vector<Target> items;  // not empty for a tuple
};

struct Node;
using Body = std::vector<std::unique_ptr<Node>>;

struct Parameter {
  std::string name;
  ExprPtr otherwise;  // null where there is no default
};

// A macro, or the body of a call block, which is a macro for its callee.
struct MacroNode {
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
  bool uses_caller = false;
};

// One statement. What its fields hold depends on its kind.
struct Node {
  enum class Kind {
    kText,      // text
    kOutput,    // expr
    kIf,        // exprs and bodies, one for each condition; else_body
    kFor,       // target; expr; test or null; body; else_body
    kSet,       // target; expr
    kSetBlock,  // target; expr: filters or null; body
    kMacro,     // macro
    kCall,      // expr: a kCall; macro: the body
    kFilter,    // expr: filters; body
    kWith,      // targets and exprs; body
    kScope,     // body
    kBreak,
    kContinue,
  };
  Kind kind;
  int line;
  std::string text;
  ExprPtr expr;
  ExprPtr test;
  Target target;
  std::vector<Target> targets;
  std::vector<ExprPtr> exprs;
  std::vector<Body> bodies;
  Body body;
  Body else_body;
  MacroNode macro;
};

// A whole template. Immutable after parsing.
struct Template {
  Body body;
  Heap constants;  // of the expressions
};

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_AST_H_

#include "model/chat_template/interpreter.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/limits.h"
#include "model/chat_template/operators.h"

namespace troupe::jinja {
namespace {

absl::Status TooDeep() {
  return absl::InvalidArgumentError(absl::StrCat(
      "more than ", kMaxDepth,
      " statements and expressions inside one another, macro calls included"));
}

}  // namespace

absl::StatusOr<std::string> Interpreter::Run(Scope* variables) {
  Writer out(heap_, kMaxOutputBytes);
  ABSL_ASSIGN_OR_RETURN(Scope* const scope, heap_.NewScope(variables));
  ABSL_RETURN_IF_ERROR(ExecuteAll(template_.body, scope, &out).status());
  return out.Take();
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteAll(const Body& body,
                                                          Scope* scope,
                                                          Writer* out) {
  for (const std::unique_ptr<Node>& node : body) {
    ABSL_ASSIGN_OR_RETURN(const Flow flow, Execute(*node, scope, out));
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Execute(const Node& node,
                                                       Scope* scope,
                                                       Writer* out) {
  absl::Status status = heap_.Spend(1);
  if (status.ok() && depth_ >= kMaxDepth) status = TooDeep();
  absl::StatusOr<Flow> flow = Flow::kNext;
  if (!status.ok()) {
    flow = status;
  } else {
    ++depth_;
    flow = ExecuteKind(node, scope, out);
    --depth_;
  }
  if (!flow.ok() && error_line_ == 0) error_line_ = node.line;
  return flow;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteKind(const Node& node,
                                                           Scope* scope,
                                                           Writer* out) {
  switch (node.kind) {
    case Node::Kind::kText:
      out->Append(node.text);
      ABSL_RETURN_IF_ERROR(out->status());
      break;
    case Node::Kind::kOutput:
      ABSL_RETURN_IF_ERROR(PrintValue(*node.expr, scope, out));
      break;
    case Node::Kind::kIf:
      return ExecuteIf(node, scope, out);
    case Node::Kind::kFor:
      return ExecuteFor(node, scope, out);
    case Node::Kind::kSet: {
      ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*node.expr, scope));
      ABSL_RETURN_IF_ERROR(Assign(node.target, value, scope));
      break;
    }
    case Node::Kind::kSetBlock:
      ABSL_RETURN_IF_ERROR(ExecuteSetBlock(node, scope));
      break;
    case Node::Kind::kMacro: {
      ABSL_ASSIGN_OR_RETURN(const Value macro,
                            heap_.NewMacro(&node.macro, scope));
      scope->Set(node.macro.name, macro);
      break;
    }
    case Node::Kind::kCall:
      ABSL_RETURN_IF_ERROR(ExecuteCall(node, scope, out));
      break;
    case Node::Kind::kFilter:
      ABSL_RETURN_IF_ERROR(ExecuteFilter(node, scope, out));
      break;
    case Node::Kind::kWith:
      return ExecuteWith(node, scope, out);
    case Node::Kind::kScope:
      return ExecuteInner(node.body, scope, out);
    case Node::Kind::kBreak:
      return Flow::kBreak;
    case Node::Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteIf(const Node& node,
                                                         Scope* scope,
                                                         Writer* out) {
  for (size_t i = 0; i < node.exprs.size(); ++i) {
    ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*node.exprs[i], scope));
    if (IsTrue(value)) return ExecuteAll(node.bodies[i], scope, out);
  }
  return ExecuteAll(node.else_body, scope, out);
}

absl::StatusOr<const std::vector<Value>*> Interpreter::LoopItems(
    const Node& node, Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(const Value list, Evaluate(*node.expr, scope));
  if (node.test == nullptr && list.Is(Value::Kind::kSequence) &&
      list.sequence().shape != Sequence::Shape::kGenerator) {
    return &list.sequence().items;  // they never change
  }
  ABSL_ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(heap_, list));
  if (node.test != nullptr) {
    ABSL_ASSIGN_OR_RETURN(Scope* const inner, heap_.NewScope(scope));
    std::vector<Value> kept;
    for (const Value& item : items) {
      ABSL_RETURN_IF_ERROR(Assign(node.target, item, inner));
      ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*node.test, inner));
      if (IsTrue(value)) kept.push_back(item);
    }
    heap_.Release(inner);
    items = std::move(kept);
  }
  ABSL_ASSIGN_OR_RETURN(const Value kept, heap_.NewList(std::move(items)));
  return &kept.sequence().items;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteFor(const Node& node,
                                                          Scope* scope,
                                                          Writer* out) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value>* const items,
                        LoopItems(node, scope));
  if (items->empty()) return ExecuteInner(node.else_body, scope, out);
  ABSL_ASSIGN_OR_RETURN(const Value loop, heap_.NewLoop(items));
  for (size_t i = 0; i < items->size(); ++i) {
    ABSL_RETURN_IF_ERROR(heap_.Spend(1));
    loop.loop().index0 = i;
    ABSL_ASSIGN_OR_RETURN(Scope* const inner, heap_.NewScope(scope));
    inner->Set("loop", loop);
    ABSL_RETURN_IF_ERROR(Assign(node.target, (*items)[i], inner));
    ABSL_ASSIGN_OR_RETURN(const Flow flow, ExecuteAll(node.body, inner, out));
    heap_.Release(inner);
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteWith(const Node& node,
                                                           Scope* scope,
                                                           Writer* out) {
  ABSL_ASSIGN_OR_RETURN(Scope* const inner, heap_.NewScope(scope));
  for (size_t i = 0; i < node.exprs.size(); ++i) {
    ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*node.exprs[i], scope));
    inner->Set(node.targets[i].name, value);
  }
  ABSL_ASSIGN_OR_RETURN(const Flow flow, ExecuteAll(node.body, inner, out));
  heap_.Release(inner);
  return flow;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteInner(const Body& body,
                                                            Scope* scope,
                                                            Writer* out) {
  if (body.empty()) return Flow::kNext;
  ABSL_ASSIGN_OR_RETURN(Scope* const inner, heap_.NewScope(scope));
  ABSL_ASSIGN_OR_RETURN(const Flow flow, ExecuteAll(body, inner, out));
  heap_.Release(inner);
  return flow;
}

absl::StatusOr<Value> Interpreter::Capture(const Body& body, Scope* scope) {
  Writer out(heap_);
  ABSL_RETURN_IF_ERROR(ExecuteInner(body, scope, &out).status());
  return out.TakeValue();
}

absl::Status Interpreter::ExecuteSetBlock(const Node& node, Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(Value text, Capture(node.body, scope));
  if (node.expr != nullptr) {
    ABSL_ASSIGN_OR_RETURN(text, ApplyFilters(*node.expr, text, scope));
  }
  return Assign(node.target, text, scope);
}

absl::Status Interpreter::ExecuteCall(const Node& node, Scope* scope,
                                      Writer* out) {
  ABSL_ASSIGN_OR_RETURN(const Value caller, heap_.NewMacro(&node.macro, scope));
  ABSL_ASSIGN_OR_RETURN(const Value result,
                        EvaluateCall(*node.expr, &caller, scope));
  return Print(heap_, result, out);
}

absl::Status Interpreter::ExecuteFilter(const Node& node, Scope* scope,
                                        Writer* out) {
  ABSL_ASSIGN_OR_RETURN(const Value text, Capture(node.body, scope));
  ABSL_ASSIGN_OR_RETURN(const Value result,
                        ApplyFilters(*node.expr, text, scope));
  if (!result.Is(Value::Kind::kText)) {
    return TypeError(
        absl::StrCat("a filter block makes a text, not a ", TypeName(result)));
  }
  return Print(heap_, result, out);
}

absl::Status Interpreter::Assign(const Target& target, const Value& value,
                                 Scope* scope) {
  if (!target.items.empty()) {
    ABSL_ASSIGN_OR_RETURN(const std::vector<Value> items,
                          Iterate(heap_, value));
    if (items.size() != target.items.size()) {
      return TypeError(absl::StrCat(items.size(), " values for ",
                                    target.items.size(), " names"));
    }
    for (size_t i = 0; i < items.size(); ++i) {
      ABSL_RETURN_IF_ERROR(Assign(target.items[i], items[i], scope));
    }
    return absl::OkStatus();
  }
  if (target.attribute.empty()) {
    scope->Set(target.name, value);
    return absl::OkStatus();
  }
  const Value* object = scope->Find(target.name);
  if (object == nullptr || !object->Is(Value::Kind::kNamespace)) {
    return TypeError(absl::StrCat("'", target.name,
                                  "' is no namespace: its attributes cannot "
                                  "be assigned"));
  }
  auto& attributes = object->name_space().attributes;
  for (auto& [name, old] : attributes) {
    if (name == target.attribute) {
      old = value;
      return absl::OkStatus();
    }
  }
  attributes.emplace_back(target.attribute, value);
  return absl::OkStatus();
}

absl::Status Interpreter::PrintValue(const Expr& expr, Scope* scope,
                                     Writer* out) {
  ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(expr, scope));
  return Print(heap_, value, out);
}

absl::StatusOr<Value> Interpreter::Evaluate(const Expr& expr, Scope* scope) {
  if (expr.kind == Expr::Kind::kConstant) return expr.constant;
  absl::Status status = heap_.Spend(1);
  if (status.ok() && depth_ >= kMaxDepth) status = TooDeep();
  if (!status.ok()) {
    if (error_line_ == 0) error_line_ = expr.line;
    return status;
  }
  ++depth_;
  absl::StatusOr<Value> value = EvaluateKind(expr, scope);
  --depth_;
  if (!value.ok() && error_line_ == 0) error_line_ = expr.line;
  return value;
}

absl::StatusOr<Value> Interpreter::EvaluateKind(const Expr& expr,
                                                Scope* scope) {
  switch (expr.kind) {
    case Expr::Kind::kConstant:
      return expr.constant;
    case Expr::Kind::kName:
      return Lookup(expr.name, scope);
    case Expr::Kind::kList:
    case Expr::Kind::kTuple: {
      ABSL_ASSIGN_OR_RETURN(std::vector<Value> items,
                            EvaluateItems(expr, 0, scope));
      return heap_.NewSequence(expr.kind == Expr::Kind::kList
                                   ? Sequence::Shape::kList
                                   : Sequence::Shape::kTuple,
                               std::move(items));
    }
    case Expr::Kind::kDict:
      return EvaluateDict(expr, scope);
    case Expr::Kind::kNot: {
      ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*expr.items[0], scope));
      return Value::Bool(!IsTrue(value));
    }
    case Expr::Kind::kNegate: {
      ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*expr.items[0], scope));
      return Negate(value);
    }
    case Expr::Kind::kPlus: {
      ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*expr.items[0], scope));
      ABSL_RETURN_IF_ERROR(Negate(value).status());
      return value.IsIntegral() ? Value::Int(value.AsInt()) : value;
    }
    case Expr::Kind::kArithmetic:
      return EvaluateArithmetic(expr, scope);
    case Expr::Kind::kConcat:
      return EvaluateConcat(expr, scope);
    case Expr::Kind::kComparison:
      return EvaluateComparison(expr, scope);
    case Expr::Kind::kAnd:
    case Expr::Kind::kOr: {
      ABSL_ASSIGN_OR_RETURN(const Value left, Evaluate(*expr.items[0], scope));
      if (IsTrue(left) == (expr.kind == Expr::Kind::kOr)) return left;
      return Evaluate(*expr.items[1], scope);
    }
    case Expr::Kind::kConditional:
      return EvaluateConditional(expr, scope);
    case Expr::Kind::kAttribute: {
      ABSL_ASSIGN_OR_RETURN(const Value object,
                            Evaluate(*expr.items[0], scope));
      return GetAttribute(heap_, object, expr.name);
    }
    case Expr::Kind::kItem:
      return EvaluateItem(expr, scope);
    case Expr::Kind::kSlice:
      return EvaluateSlice(expr, scope);
    case Expr::Kind::kFilter:
      return EvaluateFilter(expr, scope);
    case Expr::Kind::kTest:
      return EvaluateTest(expr, scope);
    case Expr::Kind::kCall:
      return EvaluateCall(expr, nullptr, scope);
  }
  return Value();
}

absl::StatusOr<Value> Interpreter::Lookup(const std::string& name,
                                          Scope* scope) {
  const Value* value = scope->Find(name);
  if (value != nullptr) return *value;
  const Builtin* function = FindFunction(name);
  if (function != nullptr) return Value::Function(function);
  return heap_.NewUndefined(absl::StrCat("'", name, "' is undefined"));
}

absl::StatusOr<std::vector<Value>> Interpreter::EvaluateItems(const Expr& expr,
                                                              size_t first,
                                                              Scope* scope) {
  std::vector<Value> items;
  for (size_t i = first; i < expr.items.size(); ++i) {
    ABSL_ASSIGN_OR_RETURN(const Value item, Evaluate(*expr.items[i], scope));
    items.push_back(item);
  }
  return items;
}

absl::StatusOr<Value> Interpreter::EvaluateDict(const Expr& expr,
                                                Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<Value> flat,
                        EvaluateItems(expr, 0, scope));
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i < flat.size(); i += 2) {
    if (!flat[i].Is(Value::Kind::kText)) {
      return TypeError("dict keys other than texts are not supported");
    }
    items.emplace_back(flat[i], flat[i + 1]);
  }
  return heap_.NewMap(std::move(items));
}

absl::StatusOr<Value> Interpreter::EvaluateArithmetic(const Expr& expr,
                                                      Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(const Value left, Evaluate(*expr.items[0], scope));
  ABSL_ASSIGN_OR_RETURN(const Value right, Evaluate(*expr.items[1], scope));
  return Arithmetic(heap_, expr.operators[0], left, right);
}

absl::StatusOr<Value> Interpreter::EvaluateConcat(const Expr& expr,
                                                  Scope* scope) {
  Writer out(heap_);
  for (const ExprPtr& item : expr.items) {
    ABSL_RETURN_IF_ERROR(PrintValue(*item, scope, &out));
  }
  return out.TakeValue();
}

absl::StatusOr<Value> Interpreter::EvaluateComparison(const Expr& expr,
                                                      Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(Value left, Evaluate(*expr.items[0], scope));
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    ABSL_ASSIGN_OR_RETURN(const Value right,
                          Evaluate(*expr.items[i + 1], scope));
    ABSL_ASSIGN_OR_RETURN(const bool holds,
                          Compare(heap_, expr.operators[i], left, right));
    if (!holds) return Value::Bool(false);
    left = right;
  }
  return Value::Bool(true);
}

absl::StatusOr<Value> Interpreter::EvaluateConditional(const Expr& expr,
                                                       Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(const Value condition, Evaluate(*expr.items[0], scope));
  if (IsTrue(condition)) return Evaluate(*expr.items[1], scope);
  if (expr.items[2] != nullptr) return Evaluate(*expr.items[2], scope);
  return heap_.NewUndefined("an inline 'if' without 'else' was false");
}

absl::StatusOr<Value> Interpreter::EvaluateItem(const Expr& expr,
                                                Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(const Value object, Evaluate(*expr.items[0], scope));
  ABSL_ASSIGN_OR_RETURN(const Value key, Evaluate(*expr.items[1], scope));
  return GetItem(heap_, object, key);
}

absl::StatusOr<Value> Interpreter::EvaluateSlice(const Expr& expr,
                                                 Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(const Value object, Evaluate(*expr.items[0], scope));
  Value bounds[3];
  const Value* given[3] = {};
  for (size_t i = 0; i < 3; ++i) {
    if (expr.items[i + 1] == nullptr) continue;
    ABSL_ASSIGN_OR_RETURN(bounds[i], Evaluate(*expr.items[i + 1], scope));
    given[i] = &bounds[i];
  }
  return Slice(heap_, object, given[0], given[1], given[2]);
}

absl::StatusOr<CallArguments> Interpreter::EvaluateArguments(const Expr& call,
                                                             Scope* scope) {
  CallArguments arguments;
  ABSL_ASSIGN_OR_RETURN(arguments.positional, EvaluateItems(call, 1, scope));
  for (const auto& [name, expr] : call.keywords) {
    ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*expr, scope));
    arguments.keywords.emplace_back(name, value);
  }
  return arguments;
}

absl::StatusOr<Value> Interpreter::EvaluateTest(const Expr& expr,
                                                Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*expr.items[0], scope));
  ABSL_ASSIGN_OR_RETURN(CallArguments arguments,
                        EvaluateArguments(expr, scope));
  return Call(runtime_, *expr.builtin, value, std::move(arguments));
}

absl::StatusOr<Value> Interpreter::ApplyFilter(const Expr& filter,
                                               const Value& value,
                                               Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(CallArguments arguments,
                        EvaluateArguments(filter, scope));
  return Call(runtime_, *filter.builtin, value, std::move(arguments));
}

absl::StatusOr<Value> Interpreter::EvaluateFilter(const Expr& expr,
                                                  Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(const Value value, Evaluate(*expr.items[0], scope));
  return ApplyFilter(expr, value, scope);
}

absl::StatusOr<Value> Interpreter::ApplyFilters(const Expr& filters,
                                                const Value& input,
                                                Scope* scope) {
  std::vector<const Expr*> chain;  // the outermost, applied last, first
  for (const Expr* filter = &filters; filter != nullptr;
       filter = filter->items[0].get()) {
    chain.push_back(filter);
  }
  Value value = input;
  for (auto filter = chain.rbegin(); filter != chain.rend(); ++filter) {
    ABSL_ASSIGN_OR_RETURN(value, ApplyFilter(**filter, value, scope));
  }
  return value;
}

absl::StatusOr<Value> Interpreter::EvaluateCall(const Expr& expr,
                                                const Value* caller,
                                                Scope* scope) {
  ABSL_ASSIGN_OR_RETURN(const Value callee, Evaluate(*expr.items[0], scope));
  ABSL_ASSIGN_OR_RETURN(CallArguments arguments,
                        EvaluateArguments(expr, scope));
  if (caller != nullptr) arguments.keywords.emplace_back("caller", *caller);
  switch (callee.kind()) {
    case Value::Kind::kMacro:
      return CallMacro(callee.macro(), std::move(arguments));
    case Value::Kind::kMethod:
      return Call(runtime_, *callee.method().builtin, callee.method().self,
                  std::move(arguments));
    case Value::Kind::kFunction:
      return Call(runtime_, callee.function(), Value(), std::move(arguments));
    case Value::Kind::kUndefined:
      return UndefinedError(callee);
    default:
      return TypeError(
          absl::StrCat("a ", TypeName(callee), " cannot be called"));
  }
}

absl::Status Interpreter::BindParameters(const MacroNode& node,
                                         const CallArguments& call,
                                         Scope* scope) {
  const auto error = [&](absl::string_view message) {
    return TypeError(absl::StrCat("the macro '", node.name, "' ", message));
  };
  if (call.positional.size() > node.parameters.size()) {
    return error(
        absl::StrCat("takes at most ", node.parameters.size(), " arguments"));
  }
  for (const auto& [name, value] : call.keywords) {
    const auto parameter = std::find_if(
        node.parameters.begin(), node.parameters.end(),
        [&, key = name](const Parameter& p) { return p.name == key; });
    if (parameter == node.parameters.end()) {
      if (name != "caller" || !node.uses_caller) {
        return error(absl::StrCat("takes no argument '", name, "'"));
      }
    } else if (static_cast<size_t>(parameter - node.parameters.begin()) <
               call.positional.size()) {
      return error(absl::StrCat("gets '", name, "' twice"));
    }
    scope->Set(name, value);
  }
  for (size_t i = 0; i < call.positional.size(); ++i) {
    scope->Set(node.parameters[i].name, call.positional[i]);
  }
  for (size_t i = call.positional.size(); i < node.parameters.size(); ++i) {
    const Parameter& parameter = node.parameters[i];
    const bool is_given = std::any_of(
        call.keywords.begin(), call.keywords.end(),
        [&](const auto& keyword) { return keyword.first == parameter.name; });
    if (is_given) continue;
    if (parameter.otherwise == nullptr) {
      scope->Set(parameter.name,
                 heap_.NewUndefined(absl::StrCat(
                     "the parameter '", parameter.name, "' was not given")));
      continue;
    }
    ABSL_ASSIGN_OR_RETURN(const Value value,
                          Evaluate(*parameter.otherwise, scope));
    scope->Set(parameter.name, value);
  }
  return absl::OkStatus();
}

absl::StatusOr<Value> Interpreter::CallMacro(const Macro& macro,
                                             CallArguments call) {
  ABSL_ASSIGN_OR_RETURN(Scope* const scope, heap_.NewScope(macro.scope));
  ABSL_RETURN_IF_ERROR(BindParameters(*macro.node, call, scope));
  Writer out(heap_);
  ABSL_RETURN_IF_ERROR(ExecuteAll(macro.node->body, scope, &out).status());
  heap_.Release(scope);
  return out.TakeValue();
}

}  // namespace troupe::jinja

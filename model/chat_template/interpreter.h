// Runs a template.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_INTERPRETER_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_INTERPRETER_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/chat_template/ast.h"
#include "model/chat_template/builtin.h"
#include "model/chat_template/print.h"
#include "model/chat_template/value.h"

namespace troupe::jinja {

// One rendering of a template, which it borrows with the runtime. Not
// thread-safe; any number may run one template.
class Interpreter {
 public:
  Interpreter(const Template& source, Runtime& runtime)
      : template_(source), runtime_(runtime), heap_(runtime.heap) {}

  // The output. `variables` are those of outside.
  absl::StatusOr<std::string> Run(Scope* variables);

  // Where the error of Run is, or 0.
  int error_line() const { return error_line_; }

 private:
  // What a statement asks of the loop around it.
  enum class Flow { kNext, kBreak, kContinue };

  absl::StatusOr<Flow> ExecuteAll(const Body& body, Scope* scope, Writer* out);
  absl::StatusOr<Flow> Execute(const Node& node, Scope* scope, Writer* out);
  absl::StatusOr<Flow> ExecuteKind(const Node& node, Scope* scope, Writer* out);
  absl::StatusOr<Flow> ExecuteIf(const Node& node, Scope* scope, Writer* out);
  absl::StatusOr<Flow> ExecuteFor(const Node& node, Scope* scope, Writer* out);
  // What a `for` walks through; the heap owns it.
  absl::StatusOr<const std::vector<Value>*> LoopItems(const Node& node,
                                                      Scope* scope);
  absl::StatusOr<Flow> ExecuteWith(const Node& node, Scope* scope, Writer* out);
  absl::Status ExecuteSetBlock(const Node& node, Scope* scope);
  absl::Status ExecuteCall(const Node& node, Scope* scope, Writer* out);
  absl::Status ExecuteFilter(const Node& node, Scope* scope, Writer* out);
  // In a scope of its own.
  absl::StatusOr<Flow> ExecuteInner(const Body& body, Scope* scope,
                                    Writer* out);
  absl::StatusOr<Value> Capture(const Body& body, Scope* scope);
  absl::Status Assign(const Target& target, const Value& value, Scope* scope);
  absl::Status PrintValue(const Expr& expr, Scope* scope, Writer* out);

  absl::StatusOr<Value> Evaluate(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateKind(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> Lookup(const std::string& name, Scope* scope);
  absl::StatusOr<std::vector<Value>> EvaluateItems(const Expr& expr,
                                                   size_t first, Scope* scope);
  absl::StatusOr<Value> EvaluateDict(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateArithmetic(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateConcat(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateComparison(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateConditional(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateItem(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateSlice(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvaluateTest(const Expr& expr, Scope* scope);
  // `filters` applied to `input`, which stands where the innermost of them has
  // no value of its own.
  absl::StatusOr<Value> ApplyFilters(const Expr& filters, const Value& input,
                                     Scope* scope);
  absl::StatusOr<Value> EvaluateFilter(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> ApplyFilter(const Expr& filter, const Value& value,
                                    Scope* scope);
  // `caller` may be null: the body of a call block.
  absl::StatusOr<Value> EvaluateCall(const Expr& expr, const Value* caller,
                                     Scope* scope);
  absl::StatusOr<CallArguments> EvaluateArguments(const Expr& call,
                                                  Scope* scope);
  absl::StatusOr<Value> CallMacro(const Macro& macro, CallArguments call);
  absl::Status BindParameters(const MacroNode& node, const CallArguments& call,
                              Scope* scope);

  const Template& template_;
  Runtime& runtime_;
  Heap& heap_;
  int depth_ = 0;
  int error_line_ = 0;
};

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_INTERPRETER_H_

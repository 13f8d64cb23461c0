// The filters, by what they work on. Each table is for FindFilter alone.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_FILTERS_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_FILTERS_H_

#include "absl/types/span.h"
#include "model/chat_template/builtin.h"

namespace troupe::jinja {

absl::Span<const Builtin> TextFilters();
absl::Span<const Builtin> NumberFilters();
absl::Span<const Builtin> ListFilters();

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_FILTERS_H_

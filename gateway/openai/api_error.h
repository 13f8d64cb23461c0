// Errors as the OpenAI API tells them.
#ifndef TROUPE_GATEWAY_OPENAI_API_ERROR_H_
#define TROUPE_GATEWAY_OPENAI_API_ERROR_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/http/http_message.h"
#include "nlohmann/json.hpp"

namespace troupe {

// A fault of the request; `param` names the field in its JSON.
absl::Status InvalidParam(absl::string_view param, absl::string_view message);

struct ApiError {
  int http_status = 500;
  std::string type;   // "invalid_request_error" and its kind
  std::string code;   // empty: null
  std::string param;  // empty: null
  std::string message;
  int retry_after_ms = -1;  // -1: no hint
};

// The table of codes is in docs/http_api.md. `retry_after_ms`: of the refusal,
// or -1. The field's name is found in messages of CheckGenerateRequest, too.
ApiError ToApiError(const absl::Status& status, int retry_after_ms = -1);

// {"error": {...}}
nlohmann::json ErrorJson(const ApiError& error);
HttpResponse ErrorResponse(const ApiError& error);

// For requests that never were one of the API: by HTTP status alone.
HttpResponse HttpErrorResponse(int http_status, const std::string& message);

// A JSON body with that status. Text that is not UTF-8 is repaired.
HttpResponse JsonResponse(int http_status, const nlohmann::json& json);
std::string DumpJson(const nlohmann::json& json);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_OPENAI_API_ERROR_H_

#include "gateway/openai/api_error.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace troupe {
namespace {

constexpr char kParamUrl[] = "troupe/param";

// Fields of a request whose names messages of deeper layers begin with.
constexpr absl::string_view kFields[] = {"model",
                                         "temperature",
                                         "top_p",
                                         "top_k",
                                         "min_p",
                                         "repetition_penalty",
                                         "presence_penalty",
                                         "frequency_penalty",
                                         "logit_bias",
                                         "stop",
                                         "stop_token_ids",
                                         "n",
                                         "logprobs",
                                         "top_logprobs",
                                         "max_tokens",
                                         "min_tokens",
                                         "prompt",
                                         "fallback"};

std::string FieldOf(absl::string_view message) {
  const absl::string_view word =
      message.substr(0, message.find_first_of(" [:.;,"));
  if (word == "text" || word == "tokens") return "prompt";
  if (word == "request_id") return "x-request-id";
  if (word == "fallback") return "troupe.fallback";
  const bool known = std::find(std::begin(kFields), std::end(kFields), word) !=
                     std::end(kFields);
  return known ? std::string(word) : std::string();
}

const char* TypeOf(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return http_status < 500 ? "invalid_request_error" : "server_error";
  }
}

int HttpStatusOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

}  // namespace

absl::Status InvalidParam(absl::string_view param, absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kParamUrl, absl::Cord(param));
  return status;
}

ApiError ToApiError(const absl::Status& status, int retry_after_ms) {
  ApiError error;
  error.http_status = HttpStatusOf(status.code());
  error.type = TypeOf(error.http_status);
  // The name of a field of the gRPC API that is another one here.
  error.message = std::string(absl::StripPrefix(status.message(), "sampling."));
  error.retry_after_ms = retry_after_ms;
  if (error.http_status == 400) {
    const absl::optional<absl::Cord> param = status.GetPayload(kParamUrl);
    error.param = param ? std::string(*param) : FieldOf(error.message);
    if (absl::StrContains(status.message(), " the context is ")) {
      error.code = "context_length_exceeded";
    }
  } else if (error.http_status == 401) {
    error.code = "invalid_api_key";
  } else if (error.http_status == 404 &&
             absl::StartsWith(status.message(), "model is ")) {
    error.code = "model_not_found";
    error.param = "model";
  } else if (error.http_status == 429) {
    error.code = "rate_limit_exceeded";
  } else if (error.http_status == 503 && retry_after_ms < 0) {
    error.retry_after_ms = 1000;
  }
  return error;
}

nlohmann::json ErrorJson(const ApiError& error) {
  const auto text_or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::json(nullptr) : nlohmann::json(text);
  };
  return {{"error",
           {{"message", error.message},
            {"type", error.type},
            {"param", text_or_null(error.param)},
            {"code", text_or_null(error.code)}}}};
}

HttpResponse ErrorResponse(const ApiError& error) {
  HttpResponse response = JsonResponse(error.http_status, ErrorJson(error));
  if (error.retry_after_ms >= 0) {
    response.headers.push_back(
        {"retry-after",
         absl::StrCat(std::max(1, (error.retry_after_ms + 999) / 1000))});
    response.headers.push_back(
        {"retry-after-ms", absl::StrCat(error.retry_after_ms)});
  }
  // Clients repeat what ended with 5xx; here it would only end so again.
  if (error.http_status >= 500 && error.http_status != 503) {
    response.headers.push_back({"x-should-retry", "false"});
  }
  if (error.http_status == 401) {
    response.headers.push_back({"www-authenticate", "Bearer"});
  }
  return response;
}

HttpResponse HttpErrorResponse(int http_status, const std::string& message) {
  ApiError error;
  error.http_status = http_status;
  error.type = TypeOf(http_status);
  error.message = message;
  if (http_status == 503) error.retry_after_ms = 1000;
  return ErrorResponse(error);
}

std::string DumpJson(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

HttpResponse JsonResponse(int http_status, const nlohmann::json& json) {
  HttpResponse response;
  response.status = http_status;
  response.headers = {{"content-type", "application/json"}};
  response.body = DumpJson(json);
  return response;
}

}  // namespace troupe

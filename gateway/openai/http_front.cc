#include "gateway/openai/http_front.h"

#include <sys/random.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "gateway/inference_service.h"
#include "gateway/metrics_text.h"
#include "gateway/openai/api_error.h"
#include "gateway/openai/json_fields.h"
#include "gateway/openai/openai_call.h"
#include "gateway/openai/rate_limit_headers.h"
#include "gateway/refusal.h"
#include "gateway/token_calls.h"
#include "model/strict_json.h"

namespace troupe {
namespace {

using nlohmann::json;

constexpr char kVersion[] = TROUPE_VERSION;
constexpr size_t kMaxRequestIdBytes = 128;

// The client's, when it may stand in a log, else one of our own.
std::string RequestIdOf(const HttpRequest& request) {
  const absl::string_view given = request.Header("x-request-id");
  const bool usable = !given.empty() && given.size() <= kMaxRequestIdBytes &&
                      std::all_of(given.begin(), given.end(),
                                  [](char c) { return c > ' ' && c <= '~'; });
  if (usable) return std::string(given);
  uint64_t number[2] = {};
  CHECK_EQ(getrandom(number, sizeof(number), 0),
           static_cast<ssize_t>(sizeof(number)));
  return absl::StrFormat("%016x%016x", number[0], number[1]);
}

json ModelJson(const GatewayContext& context) {
  return {{"id", context.model.name},
          {"object", "model"},
          {"created", context.created_s},
          {"owned_by", "troupe"},
          {"root", context.model.name},
          {"max_model_len", DescribeServedModel(context).max_context()}};
}

absl::StatusOr<json> ParseBody(const HttpRequest& request) {
  ABSL_ASSIGN_OR_RETURN(json body, ParseStrictJson(request.body, "the body"));
  if (!body.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body is ", KindOf(body), ", not an object"));
  }
  return body;
}

absl::StatusOr<json> Tokenize(const GatewayContext& context,
                              const HttpRequest& http) {
  ABSL_ASSIGN_OR_RETURN(const json body, ParseBody(http));
  JsonFields fields(body, "");
  const auto prompt = fields.Text("prompt");
  const bool add_special = fields.Bool("add_special_tokens").value_or(true);
  const bool with_texts = fields.Bool("return_token_strs").value_or(false);
  if (!prompt) fields.Fail("prompt", "is missing");
  ABSL_RETURN_IF_ERROR(fields.status());
  v1::TokenizeRequest request;
  request.set_text(*prompt);
  request.set_add_special_tokens(add_special);
  v1::TokenizeResponse response;
  ABSL_RETURN_IF_ERROR(
      TokenizeText(context.model, context.limits, request, response));
  json result = {{"count", response.token_ids_size()},
                 {"max_model_len", DescribeServedModel(context).max_context()},
                 {"tokens", json::array()},
                 {"token_strs", nullptr}};
  for (const uint32_t token_id : response.token_ids()) {
    result["tokens"].push_back(token_id);
  }
  if (with_texts) {
    json& texts = result["token_strs"] = json::array();
    for (const std::string& text : response.tokens()) texts.push_back(text);
  }
  return result;
}

absl::StatusOr<json> Detokenize(const GatewayContext& context,
                                const HttpRequest& http) {
  ABSL_ASSIGN_OR_RETURN(const json body, ParseBody(http));
  JsonFields fields(body, "");
  v1::DetokenizeRequest request;
  const json* tokens = fields.Find("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    fields.Fail("tokens", "is not an array of token ids");
  } else {
    for (const uint32_t token_id :
         fields.TokenIds("tokens", *tokens, size_t{1} << 20)) {
      request.add_token_ids(token_id);
    }
  }
  ABSL_RETURN_IF_ERROR(fields.status());
  v1::DetokenizeResponse response;
  ABSL_RETURN_IF_ERROR(DetokenizeIds(context.model, request, response));
  return json{{"prompt", response.text()}};
}

json TokenizerInfo(const ServedModel& model) {
  const auto text = [&](std::optional<int32_t> token_id) {
    return token_id ? json(TokenText(*model.tokenizer,
                                     static_cast<uint32_t>(*token_id)))
                    : json(nullptr);
  };
  return {{"tokenizer_class", model.tokenizer->name()},
          {"bos_token", text(model.tokenizer->bos_token_id())},
          {"eos_token", text(model.tokenizer->eos_token_id())},
          {"vocab_size", model.config.vocab_size},
          {"chat_template", model.chat_template.empty()
                                ? json(nullptr)
                                : json(model.chat_template)}};
}

// 200 while requests are taken.
HttpResponse Readiness(const GatewayContext& context) {
  if (context.draining) {
    return HttpErrorResponse(503, "this gateway is draining");
  }
  if (context.routers.MaxContext() == 0) {
    return HttpErrorResponse(
        503, absl::StrCat("no router is ready: ", context.routers.Explain()));
  }
  return HttpResponse();
}

bool IsJson(const HttpRequest& request) {
  absl::string_view type = request.Header("content-type");
  type = absl::StripAsciiWhitespace(type.substr(0, type.find(';')));
  return absl::EqualsIgnoreCase(type, "application/json");
}

// A request that was let in.
struct Call {
  GatewayContext& context;
  const ChatPrompt& chat;
  std::shared_ptr<HttpExchange> exchange;
  std::string id;
  KeyLease lease;

  void Answer(HttpResponse response) const {
    response.headers.push_back({"x-request-id", id});
    exchange->Respond(std::move(response));
  }
};

// Requests of one kind and how they are answered.
struct Route {
  const char* method;
  const char* path;
  std::optional<CallKind> kind;  // none: open to everybody
  void (*handle)(Call call);
};

// By the header "authorization", which must not be there twice: two readers
// might not agree on which one counts.
absl::StatusOr<KeyLease> Admit(GatewayContext& context,
                               const HttpRequest& request, CallKind kind) {
  const auto num_keys = std::count_if(
      request.headers.begin(), request.headers.end(),
      [](const HttpHeader& header) {
        return absl::EqualsIgnoreCase(header.name, "authorization");
      });
  if (num_keys > 1 && context.authenticator.demands_keys()) {
    return absl::UnauthenticatedError("authorization: is there twice");
  }
  return context.authenticator.Admit(request.Header("authorization"), kind);
}

HttpResponse Refusal(const absl::Status& status) {
  return ErrorResponse(ToApiError(status, RetryDelayOf(status)));
}

// On the work queue: texts may be long. Counts as a request in progress.
void AnswerLater(Call call,
                 absl::StatusOr<json> (*work)(const GatewayContext& context,
                                              const HttpRequest& request)) {
  absl::StatusOr<Admission::Ticket> place =
      call.context.admission.TryEnter(call.lease.ToAdmissionRequest(0));
  if (!place.ok()) return call.Answer(Refusal(place.status()));
  auto ticket = std::make_shared<Admission::Ticket>(*std::move(place));
  auto live = std::make_shared<LiveCalls::Guard>(call.context.live_calls);
  GatewayContext& context = call.context;
  context.work_queue.Post([call = std::make_shared<Call>(std::move(call)), work,
                           ticket = std::move(ticket), live = std::move(live)] {
    const absl::StatusOr<json> result =
        work(call->context, call->exchange->request());
    *ticket = Admission::Ticket();
    HttpResponse response = result.ok()
                                ? JsonResponse(200, *result)
                                : ErrorResponse(ToApiError(result.status()));
    AddRateLimitHeaders(call->lease.rate_limits().Read(), response);
    call->Answer(std::move(response));
  });
}

void Generate(Call call, const ChatPrompt* chat) {
  StartOpenAiCall(call.context, std::move(call.exchange), chat, call.id,
                  std::move(call.lease));
}

json TensorsJson(const auto& tensors) {
  json result = json::array();
  for (const auto& tensor : tensors) {
    result.push_back({{"name", tensor.name()},
                      {"datatype", tensor.datatype()},
                      {"shape", {1}}});
  }
  return result;
}

// The HTTP face of protos/inference.proto: GET below /v2.
HttpResponse AnswerInference(const GatewayContext& context,
                             absl::string_view path) {
  if (path.empty()) {
    const inference::ServerMetadataResponse server = DescribeServer();
    return JsonResponse(200, {{"name", server.name()},
                              {"version", server.version()},
                              {"extensions", json::array()}});
  }
  if (path == "/health/live") return JsonResponse(200, {{"live", true}});
  if (path == "/health/ready") return Readiness(context);
  if (!absl::ConsumePrefix(&path, "/models/")) {
    return HttpErrorResponse(404, "there is no such thing below /v2");
  }
  const bool asks_ready = absl::ConsumeSuffix(&path, "/ready");
  const size_t slash = path.find("/versions/");
  const absl::string_view version =
      slash == absl::string_view::npos
          ? absl::string_view()
          : path.substr(slash + sizeof("/versions/") - 1);
  const absl::StatusOr<inference::ModelMetadataResponse> model =
      DescribeForInference(context, path.substr(0, slash), version);
  if (!model.ok()) {
    return HttpErrorResponse(404,
                             Printable(std::string(model.status().message())));
  }
  if (asks_ready) return Readiness(context);
  return JsonResponse(200, {{"name", model->name()},
                            {"versions", {model->versions(0)}},
                            {"platform", model->platform()},
                            {"inputs", TensorsJson(model->inputs())},
                            {"outputs", TensorsJson(model->outputs())}});
}

constexpr Route kRoutes[] = {
    {"POST", "/v1/completions", CallKind::kGenerate,
     [](Call call) { Generate(std::move(call), nullptr); }},
    {"POST", "/v1/chat/completions", CallKind::kGenerate,
     [](Call call) {
       const ChatPrompt& chat = call.chat;
       Generate(std::move(call), &chat);
     }},
    {"POST", "/v1/embeddings", CallKind::kLook,
     [](Call call) {
       ApiError error = ToApiError(absl::InvalidArgumentError(absl::StrCat(
           "the model ", call.context.model.name, " makes no embeddings")));
       error.code = "unsupported_endpoint";
       call.Answer(ErrorResponse(error));
     }},
    {"GET", "/v1/models", CallKind::kLook,
     [](Call call) {
       call.Answer(JsonResponse(
           200, {{"object", "list"},
                 {"data", json::array({ModelJson(call.context)})}}));
     }},
    {"POST", "/tokenize", CallKind::kCompute,
     [](Call call) { AnswerLater(std::move(call), Tokenize); }},
    {"POST", "/detokenize", CallKind::kCompute,
     [](Call call) { AnswerLater(std::move(call), Detokenize); }},
    {"GET", "/tokenizer_info", CallKind::kLook,
     [](Call call) {
       call.Answer(JsonResponse(200, TokenizerInfo(call.context.model)));
     }},
    {"GET", "/health", std::nullopt,
     [](Call call) { call.Answer(Readiness(call.context)); }},
    {"GET", "/ready", std::nullopt,
     [](Call call) { call.Answer(Readiness(call.context)); }},
    {"GET", "/ping", std::nullopt,
     [](Call call) { call.Answer(Readiness(call.context)); }},
    {"GET", "/metrics", CallKind::kLook,
     [](Call call) {
       HttpResponse response;
       response.headers = {{"content-type", kMetricsContentType}};
       response.body = MetricsText(call.context);
       call.Answer(std::move(response));
     }},
    {"GET", "/version", CallKind::kLook,
     [](Call call) {
       call.Answer(JsonResponse(200, {{"version", kVersion}}));
     }},
};

// Paths with a name in them: /v1/models/{id} and those below /v2, all GET.
HttpResponse AnswerNamed(GatewayContext& context, const HttpRequest& request) {
  absl::string_view rest = request.path;
  if (absl::ConsumePrefix(&rest, "/v2")) return AnswerInference(context, rest);
  const absl::Status status = Admit(context, request, CallKind::kLook).status();
  if (!status.ok()) return Refusal(status);
  absl::ConsumePrefix(&rest, "/v1/models/");
  if (rest == context.model.name) return JsonResponse(200, ModelJson(context));
  return ErrorResponse(ToApiError(absl::NotFoundError(
      absl::StrCat("model is \"", Printable(std::string(rest)),
                   "\"; served: \"", context.model.name, "\""))));
}

bool IsNamed(const std::string& path) {
  return path == "/v2" || absl::StartsWith(path, "/v2/") ||
         absl::StartsWith(path, "/v1/models/");
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpFront>> HttpFront::Start(
    HttpServerOptions options, GatewayContext& context) {
  std::unique_ptr<HttpFront> front(new HttpFront(context));
  options.make_error = HttpErrorResponse;
  ABSL_ASSIGN_OR_RETURN(
      front->server_,
      HttpServer::Start(options, [front = front.get()](
                                     std::shared_ptr<HttpExchange> exchange) {
        front->Handle(std::move(exchange));
      }));
  return front;
}

void HttpFront::Handle(std::shared_ptr<HttpExchange> exchange) {
  const HttpRequest& request = exchange->request();
  Call call{context_, chat_, exchange, RequestIdOf(request), KeyLease()};
  // HEAD is GET; the server leaves the body out.
  const std::string method = request.method == "HEAD" ? "GET" : request.method;
  std::string allowed;
  for (const Route& route : kRoutes) {
    if (request.path != route.path) continue;
    if (method != route.method) {
      allowed = route.method;
      continue;
    }
    if (route.kind) {
      absl::StatusOr<KeyLease> lease = Admit(context_, request, *route.kind);
      if (!lease.ok()) return call.Answer(Refusal(lease.status()));
      call.lease = *std::move(lease);
    }
    if (method == "POST" && !IsJson(request)) {
      return call.Answer(
          HttpErrorResponse(415, "content-type must be application/json"));
    }
    return route.handle(std::move(call));
  }
  if (IsNamed(request.path)) {
    if (method == "GET") return call.Answer(AnswerNamed(context_, request));
    allowed = "GET";
  }
  if (!allowed.empty()) {
    HttpResponse response = HttpErrorResponse(
        405,
        absl::StrCat(Printable(request.method), " ", Printable(request.path),
                     " is not possible; ", allowed, " is"));
    response.headers.push_back({"allow", allowed});
    return call.Answer(std::move(response));
  }
  call.Answer(HttpErrorResponse(
      404, absl::StrCat("there is no ", Printable(request.method), " ",
                        Printable(request.path))));
}

}  // namespace troupe

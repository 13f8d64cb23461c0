// The model that gateway tests serve.
#ifndef TROUPE_TESTS_GATEWAY_TEST_MODEL_H_
#define TROUPE_TESTS_GATEWAY_TEST_MODEL_H_

#include <memory>

#include "gateway/served_model.h"
#include "tests/fakes/fake_router/fake_tokenizer.h"

namespace troupe {

inline constexpr char kTestFingerprint[] = "fingerprint-1";

// 300 tokens, context 64, ends at </s>, greedy by default.
inline ServedModel TestModel() {
  ServedModel model;
  model.name = "fake";
  model.config.model_type = "mixtral";
  model.config.vocab_size = FakeTokenizer::kVocabSize;
  model.config.max_position_embeddings = 64;
  model.config.num_layers = 2;
  model.config.num_experts = 4;
  model.config.top_k = 2;
  model.config.hidden_size = 32;
  model.config.eos_token_ids = {FakeTokenizer::kEos};
  model.fingerprint = kTestFingerprint;
  model.tokenizer = std::make_unique<FakeTokenizer>();
  model.chat_template =
      "{% for m in messages %}{{ m.role[0] + ':' + m.content + ';' }}"
      "{% endfor %}{{ 'a:' if add_generation_prompt }}";
  model.compiled_chat_template =
      ChatTemplate::Compile(model.chat_template, {}).value();
  model.default_sampling.set_repetition_penalty(1.25f);
  return model;
}

}  // namespace troupe

#endif  // TROUPE_TESTS_GATEWAY_TEST_MODEL_H_

#include "model/config.h"

#include <cmath>
#include <functional>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/fakes/checkpoint_builder.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using nlohmann::json;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// As published, without the keys that this project does not read.
json Mixtral8x7b() {
  return json::parse(R"({
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mixtral",
    "num_attention_heads": 32, "num_experts_per_tok": 2,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "vocab_size": 32000})");
}

json Qwen15Moe() {
  return json::parse(R"({
    "architectures": ["Qwen2MoeForCausalLM"], "bos_token_id": 151643,
    "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 5632, "max_position_embeddings": 8192,
    "max_window_layers": 21, "model_type": "qwen2_moe",
    "num_attention_heads": 16, "num_hidden_layers": 24,
    "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "use_sliding_window": false,
    "vocab_size": 151936, "decoder_sparse_step": 1,
    "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4, "num_experts": 60, "norm_topk_prob": false})");
}

json Qwen3Moe() {
  return json::parse(R"({
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 6144, "max_position_embeddings": 40960,
    "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
    "moe_intermediate_size": 768, "norm_topk_prob": true,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": null,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "use_sliding_window": false, "vocab_size": 151936})");
}

json Olmoe() {
  return json::parse(R"({
    "architectures": ["OlmoeForCausalLM"], "attention_bias": false,
    "clip_qkv": null, "eos_token_id": 50279, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 1024,
    "max_position_embeddings": 4096, "model_type": "olmoe",
    "norm_topk_prob": false, "num_attention_heads": 16, "num_experts": 64,
    "num_experts_per_tok": 8, "num_hidden_layers": 16,
    "num_key_value_heads": 16, "pad_token_id": 1, "rope_scaling": null,
    "rope_theta": 10000.0, "tie_word_embeddings": false,
    "torch_dtype": "bfloat16", "vocab_size": 50304})");
}

json Llama32() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "attention_bias": false,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "max_position_embeddings": 131072,
    "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0,
      "high_freq_factor": 4.0, "low_freq_factor": 1.0,
      "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": true,
    "torch_dtype": "bfloat16", "vocab_size": 128256})");
}

absl::StatusOr<ModelConfig> Parse(const json& object,
                                  const std::string& generation = "") {
  return ParseModelConfig(object.dump(), generation);
}

ModelConfig MustParse(const json& object, const std::string& generation = "") {
  absl::StatusOr<ModelConfig> config = Parse(object, generation);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

TEST(ModelConfigTest, ReadsMixtral) {
  const ModelConfig c = MustParse(Mixtral8x7b());
  EXPECT_EQ(c.architecture, Architecture::kMixtral);
  EXPECT_EQ(c.dtype, DataType::kBF16);
  EXPECT_EQ(c.head_dim, 128u);
  EXPECT_EQ(c.num_kv_heads, 8u);
  EXPECT_EQ(c.num_experts, 8u);
  EXPECT_EQ(c.top_k, 2u);
  EXPECT_EQ(c.expert_intermediate_size, 14336u);
  EXPECT_EQ(c.dense_intermediate_size, 0u);
  EXPECT_EQ(c.shared_expert_intermediate_size, 0u);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_FALSE(c.qkv_bias);
  EXPECT_EQ(c.qk_norm, QkNorm::kNone);
  EXPECT_EQ(c.rope.theta, 1e6);
  EXPECT_EQ(c.rms_norm_eps, 1e-5f);
  EXPECT_EQ(c.attention_scale, static_cast<float>(1.0 / std::sqrt(128.0)));
  EXPECT_EQ(c.sliding_window, std::vector<size_t>(32, 0));
  EXPECT_EQ(c.is_moe_layer, std::vector<bool>(32, true));
  EXPECT_THAT(c.eos_token_ids, ElementsAre(2));
  EXPECT_EQ(c.bos_token_id, 1);
}

TEST(ModelConfigTest, ReadsQwen2Moe) {
  const ModelConfig c = MustParse(Qwen15Moe());
  EXPECT_EQ(c.architecture, Architecture::kQwen2Moe);
  EXPECT_EQ(c.num_experts, 60u);
  EXPECT_EQ(c.expert_intermediate_size, 1408u);
  EXPECT_EQ(c.shared_expert_intermediate_size, 5632u);
  EXPECT_EQ(c.dense_intermediate_size, 0u);
  EXPECT_TRUE(c.qkv_bias);  // the file leaves it out
  EXPECT_FALSE(c.o_bias);
  EXPECT_FALSE(c.norm_topk_prob);
  EXPECT_THAT(c.sliding_window, Each(0u));
}

TEST(ModelConfigTest, ReadsQwen3Moe) {
  const ModelConfig c = MustParse(Qwen3Moe());
  EXPECT_EQ(c.architecture, Architecture::kQwen3Moe);
  EXPECT_EQ(c.qk_norm, QkNorm::kPerHead);
  EXPECT_EQ(c.head_dim, 128u);
  EXPECT_EQ(c.num_experts, 128u);
  EXPECT_EQ(c.top_k, 8u);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_FALSE(c.qkv_bias);
  EXPECT_EQ(c.rope.theta, 1e6);
}

TEST(ModelConfigTest, ReadsOlmoe) {
  json object = Olmoe();
  ModelConfig c = MustParse(object);
  EXPECT_EQ(c.architecture, Architecture::kOlmoe);
  EXPECT_EQ(c.qk_norm, QkNorm::kFull);
  EXPECT_EQ(c.rms_norm_eps, 1e-5f);  // the file leaves it out
  EXPECT_EQ(c.expert_intermediate_size, 1024u);
  EXPECT_EQ(c.clip_qkv, 0.0f);
  EXPECT_FALSE(c.bos_token_id.has_value());
  object["clip_qkv"] = 8.0;
  object["attention_bias"] = true;
  c = MustParse(object);
  EXPECT_EQ(c.clip_qkv, 8.0f);
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_TRUE(c.o_bias);
}

TEST(ModelConfigTest, ReadsLlama) {
  const ModelConfig c = MustParse(Llama32());
  EXPECT_EQ(c.architecture, Architecture::kLlama);
  EXPECT_TRUE(c.tie_word_embeddings);
  EXPECT_EQ(c.num_experts, 0u);
  EXPECT_EQ(c.top_k, 0u);
  EXPECT_EQ(c.dense_intermediate_size, 8192u);
  EXPECT_EQ(c.is_moe_layer, std::vector<bool>(16, false));
  EXPECT_EQ(c.rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(c.rope.factor, 32.0);
  EXPECT_EQ(c.rope.original_max_position_embeddings, 8192u);
  EXPECT_EQ(c.rope.theta, 500000.0);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(128001, 128008, 128009));
}

TEST(ModelConfigTest, NewSpellingMeansTheSame) {
  json object = Llama32();
  object["dtype"] = object["torch_dtype"];
  object["rope_parameters"] = object["rope_scaling"];
  object["rope_parameters"]["rope_theta"] = object["rope_theta"];
  for (const char* key : {"torch_dtype", "rope_scaling", "rope_theta"}) {
    object.erase(key);
  }
  EXPECT_EQ(MustParse(object), MustParse(Llama32()));

  object = Qwen3Moe();
  object["num_local_experts"] = object["num_experts"];
  object.erase("num_experts");
  EXPECT_EQ(MustParse(object), MustParse(Qwen3Moe()));
}

TEST(ModelConfigTest, PrecedenceOfRopeKeys) {
  json object = Mixtral8x7b();
  object.erase("rope_theta");
  EXPECT_EQ(MustParse(object).rope.theta, 1e6);  // the family's default
  object["rope_theta"] = 3e4;
  EXPECT_EQ(MustParse(object).rope.theta, 3e4);
  object["rope_parameters"] = {
      {"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 5e4}};
  EXPECT_EQ(MustParse(object).rope.theta, 5e4);
  EXPECT_EQ(MustParse(object).rope.factor, 2.0);
  object["rope_scaling"] = {{"type", "linear"}, {"factor", 3.0}};
  EXPECT_EQ(MustParse(object).rope.theta, 3e4);
  EXPECT_EQ(MustParse(object).rope.factor, 3.0);

  json llama = Llama32();
  llama["rope_scaling"].erase("original_max_position_embeddings");
  EXPECT_EQ(MustParse(llama).rope.original_max_position_embeddings, 131072u);
  llama["original_max_position_embeddings"] = 4096;
  EXPECT_EQ(MustParse(llama).rope.original_max_position_embeddings, 4096u);
}

TEST(ModelConfigTest, Windows) {
  json mixtral = Mixtral8x7b();
  mixtral["sliding_window"] = 4096;
  EXPECT_THAT(MustParse(mixtral).sliding_window, Each(4096u));

  json qwen3 = Qwen3Moe();
  qwen3["sliding_window"] = 512;
  EXPECT_THAT(MustParse(qwen3).sliding_window, Each(0u));
  qwen3["use_sliding_window"] = true;
  qwen3["max_window_layers"] = 1;  // no effect
  EXPECT_THAT(MustParse(qwen3).sliding_window, Each(512u));

  json qwen2 = Qwen15Moe();
  qwen2["num_hidden_layers"] = 6;
  qwen2["sliding_window"] = 64;
  qwen2["max_window_layers"] = 3;
  qwen2["use_sliding_window"] = true;
  EXPECT_THAT(MustParse(qwen2).sliding_window, ElementsAre(64, 0, 64, 0, 0, 0));
  qwen2["layer_types"] = {"full_attention",    "sliding_attention",
                          "sliding_attention", "full_attention",
                          "full_attention",    "full_attention"};
  EXPECT_THAT(MustParse(qwen2).sliding_window, ElementsAre(0, 64, 64, 0, 0, 0));
  qwen2["use_sliding_window"] = false;
  EXPECT_EQ(Parse(qwen2).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ModelConfigTest, MoeLayersOfQwen) {
  json object = Qwen15Moe();
  object["num_hidden_layers"] = 6;
  object["decoder_sparse_step"] = 2;
  object["mlp_only_layers"] = {3};
  const ModelConfig c = MustParse(object);
  EXPECT_THAT(c.is_moe_layer,
              ElementsAre(false, true, false, false, false, true));
  EXPECT_EQ(c.dense_intermediate_size, 5632u);

  object["mlp_only_layers"] = {0, 1, 2, 3, 4, 5};
  const ModelConfig dense = MustParse(object);
  EXPECT_EQ(dense.num_experts, 0u);
  EXPECT_EQ(dense.top_k, 0u);
}

TEST(ModelConfigTest, HeadDimAndKvHeadsMayBeLeftOut) {
  json object = Llama32();
  object["head_dim"] = nullptr;
  object.erase("num_key_value_heads");
  const ModelConfig c = MustParse(object);
  EXPECT_EQ(c.head_dim, 64u);
  EXPECT_EQ(c.num_kv_heads, 32u);
  // Where the family's default is a number of its own it must be said.
  object = Mixtral8x7b();
  object.erase("num_key_value_heads");
  EXPECT_FALSE(Parse(object).ok());
}

TEST(ModelConfigTest, GenerationConfigGoesFirst) {
  const ModelConfig c = MustParse(Mixtral8x7b(), R"({
      "eos_token_id": [7, 8], "bos_token_id": 3, "do_sample": true,
      "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05,
      "repetition_penalty": 1.05, "max_new_tokens": 2048})");
  EXPECT_THAT(c.eos_token_ids, ElementsAre(7, 8));
  EXPECT_EQ(c.bos_token_id, 3);
  EXPECT_EQ(c.generation.do_sample, true);
  EXPECT_EQ(c.generation.temperature, 0.6f);
  EXPECT_EQ(c.generation.top_p, 0.95f);
  EXPECT_EQ(c.generation.top_k, 20);
  EXPECT_EQ(c.generation.min_p, 0.05f);
  EXPECT_EQ(c.generation.repetition_penalty, 1.05f);
  EXPECT_EQ(c.generation.max_new_tokens, 2048);

  const ModelConfig none = MustParse(Mixtral8x7b(), "{}");
  EXPECT_THAT(none.eos_token_ids, ElementsAre(2));
  EXPECT_EQ(none.generation, GenerationDefaults());
}

TEST(ModelConfigTest, TokensBeyondTheVocabularyAreLeftOut) {
  json object = Mixtral8x7b();
  object["eos_token_id"] = {2, 32000};
  object["bos_token_id"] = 32000;
  const ModelConfig c = MustParse(object);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(c.bos_token_id.has_value());
}

TEST(ModelConfigTest, WrittenConfigReadsBackEqual) {
  for (const Architecture architecture : kAllArchitectures) {
    for (const DataType dtype :
         {DataType::kF32, DataType::kBF16, DataType::kF16}) {
      ModelConfig config = TinyConfig(architecture, dtype);
      config.generation.temperature = 0.7f;
      config.generation.top_k = 40;
      config.generation.do_sample = true;
      config.eos_token_ids = {5, 9};
      const absl::StatusOr<ModelConfig> back =
          ParseModelConfig(ConfigJson(config), GenerationConfigJson(config));
      ASSERT_TRUE(back.ok()) << back.status() << ConfigJson(config);
      EXPECT_EQ(*back, config) << ConfigJson(config);
      EXPECT_EQ(Fingerprint(*back), Fingerprint(config));
    }
  }
  for (const json& object :
       {Mixtral8x7b(), Qwen15Moe(), Qwen3Moe(), Olmoe(), Llama32()}) {
    const ModelConfig config = MustParse(object);
    EXPECT_EQ(MustParse(json::parse(ConfigJson(config))), config);
  }
}

TEST(ModelConfigTest, LoadsFromADirectory) {
  const TempDir dir;
  EXPECT_EQ(LoadModelConfig(dir.path()).status().code(),
            absl::StatusCode::kNotFound);
  WriteFile(dir.File("config.json"), Mixtral8x7b().dump());
  ASSERT_TRUE(LoadModelConfig(dir.path()).ok());
  WriteFile(dir.File("generation_config.json"), R"({"top_k": 5})");
  EXPECT_EQ(LoadModelConfig(dir.path())->generation.top_k, 5);
  for (const std::string bad : {"", "{", "[]", R"({"top_k": -1})"}) {
    WriteFile(dir.File("generation_config.json"), bad);
    const absl::Status status = LoadModelConfig(dir.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(dir.File("generation_config.json")));
  }
}

struct BrokenConfig {
  const char* what;
  std::function<void(json&)> edit;
  absl::StatusCode code;
  const char* key;  // named in the message
};

TEST(ModelConfigTest, RefusesAndNamesTheKey) {
  using Code = absl::StatusCode;
  const auto set = [](const char* key, json value) {
    return [key, value](json& object) { object[key] = value; };
  };
  const auto rope = [](json value) {
    return [value](json& object) { object["rope_scaling"] = value; };
  };
  const auto erase = [](const char* key) {
    return [key](json& object) { object.erase(key); };
  };
  const BrokenConfig cases[] = {
      {"unknown architecture", set("model_type", "mamba"), Code::kUnimplemented,
       "mamba"},
      {"no architecture", erase("model_type"), Code::kInvalidArgument,
       "model_type"},
      {"wrong head", set("architectures", {"MixtralForTokenClassification"}),
       Code::kUnimplemented, "architectures"},
      {"architectures is a number", set("architectures", 3),
       Code::kInvalidArgument, "architectures"},
      {"quantised without a method", set("quantization_config", json::object()),
       Code::kUnimplemented, "quantization_config: quant_method"},
      {"quantised by others",
       set("quantization_config", {{"quant_method", "gptq"}, {"bits", 4}}),
       Code::kUnimplemented, "\"gptq\" is not \"troupe\""},
      {"quantised, version",
       set("quantization_config", {{"quant_method", "troupe"}, {"version", 2}}),
       Code::kUnimplemented, "quantization_config: version"},
      {"quantisation is a number", set("quantization_config", 3),
       Code::kInvalidArgument, "quantization_config"},
      {"dtype", set("torch_dtype", "float64"), Code::kUnimplemented,
       "torch_dtype"},
      {"dtype is a list", set("dtype", json::array()), Code::kInvalidArgument,
       "dtype"},
      {"activation", set("hidden_act", "gelu"), Code::kUnimplemented,
       "hidden_act"},
      {"missing", erase("hidden_size"), Code::kInvalidArgument, "hidden_size"},
      {"zero", set("hidden_size", 0), Code::kInvalidArgument, "hidden_size"},
      {"negative", set("hidden_size", -4096), Code::kInvalidArgument,
       "hidden_size"},
      {"fraction", set("hidden_size", 4096.0), Code::kInvalidArgument,
       "hidden_size"},
      {"text", set("hidden_size", "4096"), Code::kInvalidArgument,
       "hidden_size"},
      {"huge", set("hidden_size", uint64_t{1} << 40), Code::kInvalidArgument,
       "hidden_size"},
      {"64 bits", set("vocab_size", ~uint64_t{0}), Code::kInvalidArgument,
       "vocab_size"},
      {"layers", set("num_hidden_layers", 1000000), Code::kInvalidArgument,
       "num_hidden_layers"},
      {"heads do not divide", set("num_attention_heads", 24),
       Code::kInvalidArgument, "hidden_size"},
      {"kv heads do not divide", set("num_key_value_heads", 5),
       Code::kInvalidArgument, "num_key_value_heads"},
      {"kv heads zero", set("num_key_value_heads", 0), Code::kInvalidArgument,
       "num_key_value_heads"},
      {"odd head_dim", set("head_dim", 127), Code::kInvalidArgument,
       "head_dim"},
      {"wide heads",
       [](json& o) {
         o["num_attention_heads"] = 16384;
         o["head_dim"] = 8192;
       },
       Code::kInvalidArgument, "head_dim"},
      {"too many experts", set("num_local_experts", 1 << 20),
       Code::kInvalidArgument, "num_local_experts"},
      {"no experts", set("num_local_experts", 0), Code::kInvalidArgument,
       "num_local_experts"},
      {"top_k above experts", set("num_experts_per_tok", 9),
       Code::kInvalidArgument, "num_experts_per_tok"},
      {"top_k zero", set("num_experts_per_tok", 0), Code::kInvalidArgument,
       "num_experts_per_tok"},
      {"too large in all",
       [](json& o) {
         o["hidden_size"] = 1 << 20;
         o["head_dim"] = 128;
         o["intermediate_size"] = 1 << 22;
         o["num_hidden_layers"] = 4096;
         o["num_local_experts"] = 65536;
       },
       Code::kInvalidArgument, "parameters"},
      {"eps", set("rms_norm_eps", -1e-5), Code::kInvalidArgument,
       "rms_norm_eps"},
      {"eps text", set("rms_norm_eps", "1e-5"), Code::kInvalidArgument,
       "rms_norm_eps"},
      {"tie", set("tie_word_embeddings", 1), Code::kInvalidArgument,
       "tie_word_embeddings"},
      {"window", set("sliding_window", -1), Code::kInvalidArgument,
       "sliding_window"},
      {"theta", set("rope_theta", 0.0), Code::kInvalidArgument, "rope_theta"},
      {"eos negative", set("eos_token_id", -1), Code::kInvalidArgument,
       "eos_token_id"},
      {"eos text", set("eos_token_id", "</s>"), Code::kInvalidArgument,
       "eos_token_id"},
      {"eos list", set("eos_token_id", {1, -1}), Code::kInvalidArgument,
       "eos_token_id"},
      {"rope type", rope({{"type", "dynamic"}, {"factor", 2.0}}),
       Code::kUnimplemented, "dynamic"},
      {"rope list", rope(json::array({1})), Code::kInvalidArgument,
       "rope_scaling"},
      {"rope factor", rope({{"type", "linear"}}), Code::kInvalidArgument,
       "factor"},
      {"rope factor below 1", rope({{"type", "linear"}, {"factor", 0.5}}),
       Code::kInvalidArgument, "factor"},
      {"llama3 order",
       rope({{"rope_type", "llama3"},
             {"factor", 8.0},
             {"low_freq_factor", 4.0},
             {"high_freq_factor", 4.0}}),
       Code::kInvalidArgument, "high_freq_factor"},
      {"yarn order",
       rope({{"rope_type", "yarn"},
             {"factor", 8.0},
             {"beta_fast", 1.0},
             {"beta_slow", 2.0}}),
       Code::kInvalidArgument, "beta_fast"},
      {"rope by layer type",
       [](json& o) {
         o["rope_parameters"] = {
             {"full_attention", {{"rope_type", "default"}}}};
       },
       Code::kUnimplemented, "full_attention"},
      {"partial rotation", set("partial_rotary_factor", 0.5),
       Code::kUnimplemented, "partial_rotary_factor"},
  };
  for (const BrokenConfig& test : cases) {
    SCOPED_TRACE(test.what);
    json object = Mixtral8x7b();
    test.edit(object);
    const absl::Status status = Parse(object).status();
    EXPECT_EQ(status.code(), test.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json: "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.key));
  }
}

TEST(ModelConfigTest, RefusesWhatOtherFamiliesDoNotHave) {
  json llama = Llama32();
  llama["mlp_bias"] = true;
  EXPECT_EQ(Parse(llama).status().code(), absl::StatusCode::kUnimplemented);
  json olmoe = Olmoe();
  olmoe["head_dim"] = 64;
  EXPECT_EQ(Parse(olmoe).status().code(), absl::StatusCode::kUnimplemented);
  olmoe = Olmoe();
  olmoe["sliding_window"] = 64;
  EXPECT_EQ(Parse(olmoe).status().code(), absl::StatusCode::kUnimplemented);
  json qwen = Qwen15Moe();
  qwen["layer_types"] = {"full_attention"};
  EXPECT_EQ(Parse(qwen).status().code(), absl::StatusCode::kInvalidArgument);
  qwen["num_hidden_layers"] = 1;
  qwen["layer_types"] = {"linear_attention"};
  EXPECT_EQ(Parse(qwen).status().code(), absl::StatusCode::kUnimplemented);
  qwen = Qwen15Moe();
  qwen["decoder_sparse_step"] = 0;
  EXPECT_EQ(Parse(qwen).status().code(), absl::StatusCode::kInvalidArgument);
  qwen = Qwen15Moe();
  qwen["mlp_only_layers"] = {-1};
  EXPECT_EQ(Parse(qwen).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ModelConfigTest, RefusesWhatIsNotStrictJson) {
  const std::string good = Mixtral8x7b().dump();
  ASSERT_TRUE(ParseModelConfig(good, "").ok());
  const auto with = [&](const std::string& member) {
    return "{" + member + "," + good.substr(1);
  };
  const std::string cases[] = {
      "",
      "null",
      "[]",
      good.substr(0, good.size() - 1),
      good + "}",
      with("\"x\": NaN"),
      with("\"x\": Infinity"),
      with("\"x\": 1e999"),
      with("\"hidden_size\": 4096"),  // duplicate
      with("\"x\": {\"a\": 1, \"a\": 1}"),
      with("\"x\": \"\xff\""),
      with("\"x\": " + std::string(100, '[') + std::string(100, ']')),
      with("\"x\": " + std::string(1000000, '[')),
      with("\"x\": 'a'"),
      good + std::string(1, '\0'),
      good + std::string("\0 x", 3),
      with("\"x\": 1,"),
      with("/* comment */ \"x\": 1"),
  };
  for (const std::string& text : cases) {
    const absl::Status status = ParseModelConfig(text, "").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
        << text.substr(0, 80);
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json: "));
    EXPECT_LT(status.message().size(), 1000u);
  }
}

TEST(FingerprintTest, EveryFieldThatDecidesNumbersCounts) {
  const ModelConfig base = TinyConfig(Architecture::kQwen3Moe);
  const std::function<void(ModelConfig&)> changes[] = {
      [](auto& c) { c.model_type = "qwen2_moe"; },
      [](auto& c) { c.dtype = DataType::kBF16; },
      [](auto& c) { ++c.hidden_size; },
      [](auto& c) {
        ++c.num_layers;
        c.sliding_window.push_back(0);
        c.is_moe_layer.push_back(true);
      },
      [](auto& c) { ++c.num_heads; },
      [](auto& c) { ++c.num_kv_heads; },
      [](auto& c) { ++c.head_dim; },
      [](auto& c) { ++c.vocab_size; },
      [](auto& c) { ++c.max_position_embeddings; },
      [](auto& c) { c.rms_norm_eps = std::nextafter(c.rms_norm_eps, 1.0f); },
      [](auto& c) { c.tie_word_embeddings = !c.tie_word_embeddings; },
      [](auto& c) { c.qkv_bias = !c.qkv_bias; },
      [](auto& c) { c.o_bias = !c.o_bias; },
      [](auto& c) { c.qk_norm = QkNorm::kFull; },
      [](auto& c) { c.clip_qkv = 1.0f; },
      [](auto& c) { c.sliding_window[1] = 9; },
      [](auto& c) { c.rope.theta += 1.0; },
      [](auto& c) { c.rope.scaling = RopeScaling::kLinear; },
      [](auto& c) { c.rope.factor += 1.0; },
      [](auto& c) { ++c.rope.original_max_position_embeddings; },
      [](auto& c) { c.rope.low_freq_factor += 1.0; },
      [](auto& c) { c.rope.high_freq_factor += 1.0; },
      [](auto& c) { c.rope.beta_fast += 1.0; },
      [](auto& c) { c.rope.beta_slow += 1.0; },
      [](auto& c) { c.rope.truncate = !c.rope.truncate; },
      [](auto& c) { c.rope.attention_factor += 1.0; },
      [](auto& c) { c.attention_scale *= 2; },
      [](auto& c) { ++c.dense_intermediate_size; },
      [](auto& c) { c.is_moe_layer[1] = !c.is_moe_layer[1]; },
      [](auto& c) { ++c.num_experts; },
      [](auto& c) { ++c.top_k; },
      [](auto& c) { ++c.expert_intermediate_size; },
      [](auto& c) { c.norm_topk_prob = !c.norm_topk_prob; },
      [](auto& c) { ++c.shared_expert_intermediate_size; },
  };
  std::set<std::string> seen = {Fingerprint(base)};
  EXPECT_EQ(Fingerprint(base).size(), 32u);
  int i = 0;
  for (const auto& change : changes) {
    ModelConfig config = base;
    change(config);
    EXPECT_TRUE(seen.insert(Fingerprint(config)).second) << "change " << i;
    ++i;
  }
  ModelConfig tokens = base;
  tokens.eos_token_ids = {1, 2, 3};
  tokens.bos_token_id = 4;
  tokens.generation.temperature = 0.5f;
  EXPECT_EQ(Fingerprint(tokens), Fingerprint(base));
}

TEST(FingerprintTest, IsStable) {
  // A value from an earlier build: a change breaks the handshake between
  // services of two versions, and must be on purpose.
  EXPECT_EQ(Fingerprint(TinyConfig(Architecture::kMixtral)),
            "cfcfc030bfc285448bc663f0ef18ad42");
}

struct RopeCase {
  const char* name;
  RopeConfig rope;
  std::vector<float> frequencies;
  // At position 1000, the attention factor multiplied in.
  std::vector<float> cosines;
  std::vector<float> sines;
};

// Computed with transformers 5.23.0 (LlamaRotaryEmbedding, float32), head_dim
// 16.
std::vector<RopeCase> RopeCases() {
  return {
      {"default",
       {.theta = 10000.0},
       {1.0f, 0.316227764f, 0.100000001f, 0.0316227786f, 0.00999999978f,
        0.00316227786f, 0.00100000005f, 0.000316227786f},
       {0.562379062f, -0.477397919f, 0.862318873f, 0.978682399f, -0.839071512f,
        -0.999786079f, 0.540302336f, 0.950415254f},
       {0.826879561f, 0.878687203f, -0.506365657f, 0.205379441f, -0.54402113f,
        -0.0206838083f, 0.841470957f, 0.310983628f}},
      {"linear",
       {.theta = 10000.0, .scaling = RopeScaling::kLinear, .factor = 2.5},
       {0.400000006f, 0.1264911f, 0.0399999991f, 0.0126491114f, 0.00399999972f,
        0.00126491114f, 0.000400000019f, 0.000126491112f},
       {-0.52529633f, 0.676799178f, -0.666938066f, 0.996578872f, -0.653643787f,
        0.301137358f, 0.921060979f, 0.992010653f},
       {-0.850919366f, 0.736167669f, 0.745113134f, 0.0826467574f, -0.75680232f,
        0.953580797f, 0.389418364f, 0.12615408f}},
      {"llama3",
       {.theta = 500000.0,
        .scaling = RopeScaling::kLlama3,
        .factor = 8.0,
        .original_max_position_embeddings = 8192,
        .low_freq_factor = 1.0,
        .high_freq_factor = 4.0},
       {1.0f, 0.193922758f, 0.0376060307f, 0.00729266508f, 0.000524846022f,
        3.42810235e-05f, 6.64786967e-06f, 1.28917316e-06f},
       {0.562379062f, 0.655475318f, 0.995670974f, 0.532301247f, 0.865401089f,
        0.999412477f, 0.999977887f, 0.999999166f},
       {0.826879561f, -0.755216599f, -0.0929479748f, 0.846554995f, 0.501079738f,
        0.0342743099f, 0.00664782058f, 0.0012891728f}},
      {"yarn",
       {.theta = 150000.0,
        .scaling = RopeScaling::kYarn,
        .factor = 32.0,
        .original_max_position_embeddings = 4096,
        .truncate = false,
        .attention_factor = 1.3465735902799727},
       {1.0f, 0.225418001f, 0.0508132726f, 0.00679495931f, 0.000456483918f,
        1.8188337e-05f, 4.09997847e-06f, 9.24208962e-07f},
       {0.75728482f, 0.960443974f, 1.14953828f, 1.17404675f, 1.20869517f,
        1.34635091f, 1.34656227f, 1.346573f},
       {1.11345422f, -0.943826139f, 0.701300263f, 0.659450114f, 0.593562603f,
        0.0244905856f, 0.00552090723f, 0.00124451518f}},
      {"yarn_trunc",
       {.theta = 1000000.0,
        .scaling = RopeScaling::kYarn,
        .factor = 4.0,
        .original_max_position_embeddings = 32768,
        .attention_factor = 1.138629436111989},
       {1.0f, 0.177827939f, 0.0316227786f, 0.00421755994f, 0.000500000024f,
        4.44569851e-05f, 7.90569356e-06f, 1.40585337e-06f},
       {0.640341341f, -0.366763413f, 1.11435664f, -0.540713847f, 0.999241352f,
        1.13750434f, 1.13859391f, 1.13862836f},
       {0.941509426f, 1.07794321f, 0.233851075f, -1.00205064f, 0.545888066f,
        0.0506033562f, 0.00900156237f, 0.00160074548f}},
      {"yarn_mscale",
       {.theta = 10000.0,
        .scaling = RopeScaling::kYarn,
        .factor = 40.0,
        .original_max_position_embeddings = 4096,
        .attention_factor = 1.1557219901962608},
       {1.0f, 0.316227764f, 0.100000001f, 0.0239147246f, 0.00512499968f,
        0.000849862176f, 2.49999994e-05f, 7.90569447e-06f},
       {0.649953842f, -0.551739275f, 0.996600926f, 0.399310529f, 0.463447005f,
        0.762876749f, 1.15536082f, 1.1556859f},
       {0.955642939f, 1.01551819f, -0.585217953f, -1.084548f, -1.05873048f,
        0.868166149f, 0.0288900398f, 0.00913669076f}},
  };
}

TEST(RopeTest, AgreesWithTransformers) {
  for (const RopeCase& test : RopeCases()) {
    SCOPED_TRACE(test.name);
    ModelConfig config;
    config.head_dim = 16;
    config.rope = test.rope;
    const std::vector<float> frequencies = RopeFrequencies(config);
    const RopeTables tables = MakeRopeTables(config, 1001);
    ASSERT_EQ(frequencies.size(), 8u);
    ASSERT_EQ(tables.num_positions, 1001u);
    ASSERT_EQ(tables.half_dim, 8u);
    ASSERT_EQ(tables.cosines.size(), 8008u);
    for (size_t d = 0; d < 8; ++d) {
      // Powers differ by an ulp between libraries, a few remain after scaling;
      // at position 1000 that is up to 1000 * frequency * 3 ulp of an angle.
      const float error = 4e-7f * frequencies[d];
      EXPECT_NEAR(frequencies[d], test.frequencies[d], error) << d;
      EXPECT_NEAR(tables.cosines[8000 + d], test.cosines[d],
                  1000.0f * error + 2e-7f)
          << d;
      EXPECT_NEAR(tables.sines[8000 + d], test.sines[d],
                  1000.0f * error + 2e-7f)
          << d;
      EXPECT_EQ(tables.sines[d], 0.0f);
      EXPECT_EQ(tables.cosines[d],
                static_cast<float>(test.rope.attention_factor));
    }
  }
}

TEST(RopeTest, YarnAttentionFactor) {
  json object = Llama32();
  object["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 32.0}};
  EXPECT_FLOAT_EQ(MustParse(object).rope.attention_factor, 1.34657359);
  object["rope_scaling"]["mscale"] = 1.0;  // alone it has no effect
  EXPECT_FLOAT_EQ(MustParse(object).rope.attention_factor, 1.34657359);
  object["rope_scaling"] = {{"rope_type", "yarn"},
                            {"factor", 40.0},
                            {"mscale", 1.0},
                            {"mscale_all_dim", 0.5}};
  EXPECT_FLOAT_EQ(MustParse(object).rope.attention_factor, 1.15572199);
  object["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_EQ(MustParse(object).rope.attention_factor, 1.5);
  // Without a factor: the ratio of the two lengths.
  object["rope_scaling"] = {{"rope_type", "yarn"},
                            {"original_max_position_embeddings", 32768}};
  EXPECT_EQ(MustParse(object).rope.factor, 4.0);
}

}  // namespace
}  // namespace troupe

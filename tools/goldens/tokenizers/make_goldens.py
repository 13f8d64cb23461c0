#!/usr/bin/env python3
"""Makes the fixtures of tests/goldens/tokenizers.

Trains small tokenizers of each kind that Troupe reads and writes, for each,
the ids and texts that the `tokenizers` and `sentencepiece` packages give for a
list of hard texts. The text to train on is generated, so the result is always
the same.

    python3 -m venv build/goldens-venv
    build/goldens-venv/bin/pip install \
        -r tools/goldens/tokenizers/requirements.txt
    build/goldens-venv/bin/python \
        tools/goldens/tokenizers/make_goldens.py
"""

import copy
import json
import os
import pathlib
import random
import tempfile
import unicodedata

import sentencepiece
import tokenizers
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models,
                        normalizers, pre_tokenizers, processors, trainers)

ROOT = pathlib.Path(__file__).resolve().parents[3]
OUT = ROOT / "tests" / "goldens" / "tokenizers"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TEXTS = [
    "", " ", "  ", "   ", "\n", "\r\n", "\n\n\n", "\t", " \n ", "a", " a",
    "a ", "  a  ", "Once upon a time, there was a little girl named Lily.",
    "Hello, world! How's it going?", "hello   world    again     !",
    "I'm you're we've they'll he'd it's don't",
    "I'M YOU'RE WE'VE THEY'LL HE'D IT'S DON'T", "'s't're've'm'll'd'S'T",
    "it'\u017f and we'\u017fe", "''''s", "x's'x",
    "line one\nline two\r\nline three\rline four\n\n  indented\n\ttab",
    "trailing spaces   \nand newline \n", "   leading", "a\n \n b",
    "word \n\n word", "\u00a0non\u00a0breaking\u2003em\u3000ideographic\u2028ls",
    "a\u180eb \u180e c", "a\u0085b \u0085 c", "a\u000bb\u000cc",
    "zero\u200bwidth\u200djoiner\ufeffbom",
    "1 12 123 1234 12345 1234567890", "3.14159 -2,718 1e-9 0x1F",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \u00b2\u00b3\u00bd \u2167\u2468 \u4e94",
    "ab12cd345ef", "$100 @user #tag 50% a&b <b>bold</b> {x} [y] (z) ~`^|\\",
    "http://example.com/path?q=1&r=2#frag", "foo_bar __init__ CamelCaseWord",
    "!!! ??? ... --- *** ===", "a.b,c;d:e", "\"quoted\" \u201ccurly\u201d \u2014 dash\u2026",
    "Gr\u00fc\u00dfe aus K\u00f6ln", "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m",
    "nai\u0308ve cafe\u0301 A\u030angstro\u0308m", "\u212bngstr\u00f6m \u2126 \ufb01 \uff21\uff22",
    "q\u0307\u0323 q\u0323\u0307 \u1e9b\u0323", "a\u0315\u0300\u05ae\u0300b",
    "\u1100\u1161\u11a8 \uac01 \uac00\u11a8", "\u0915\u094d\u0937 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u3053\u3093\u306b\u3061\u306f \uc548\ub155\ud558\uc138\uc694",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u05e9\u05dc\u05d5\u05dd \u041f\u0440\u0438\u0432\u0435\u0442 \u0393\u03b5\u03b9\u03ac",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "\U0001d4d0\U0001d4eb \U00020000 \U0010ffff \ue000", "\u0000 \u0001\u0002 \u001b[0m \u007f",
    "e" + "\u0301" * 20 + "\u0316" * 20, "\ufffd replacement",
    "\u2581 lower one eighth \u2581block", "a\u2581b", "<0x41> <0xFF>",
    "<s> </s> <unk>", "<|endoftext|>", "a<|endoftext|>b",
    "Hi <|endoftext|> there<|endoftext|><|endoftext|>", "<|endoftext|",
    "<|begin_of_text|>x<|eot_id|>", "<|im_start|>user\nhi<|im_end|>\n",
    "say <tool> now", "say<tool>now", "<tool><tool>", "a  <strip>  b",
    " <strip> <strip> ", "lone lonely alone lone", "lone", "(lone)",
    "\u00e9lone\u00e9 \u00e9 lone_", "Caf\u00e9 Cafe\u0301 x", "[NORM] a[NORM]b",
    "a\u00a0\u00a0<strip>\n\t<strip>",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "ab" * 100, "a" * 300, " " * 100, "\n" * 50, "\u00e9" * 50, "x" + " " * 33 + "y",
    "The cat sat. The dog ran! The bird flew? \"Yes,\" said Tom.",
    "aaaa  bbbb\tcccc\n\ndddd", "\r\r\n\n\r", " \r\n \r\n", "a \r\n", "\ta\t\tb",
    "mixed \u4e2d\u6587 and English \u6df7\u5408 text 123\u5e74", "\uff11\uff12\uff13 \uff0e",
]

# A part of them, for many small changes of the settings.
VARIANT_TEXTS = [text for text in TEXTS[::4] if len(text) < 60]

WORDS = ("the a little girl boy dog cat tree house sun day went to saw and was "
         "happy sad big red very said they play played with friend mother her "
         "his she he it in on under park ball water run ran jump once upon time "
         "there wanted looked smiled together home again because but so then "
         "came could not didn't it's I'm you're found new old box garden bird").split()


FOREIGN = ("caf\u00e9 na\u00efve Gr\u00fc\u00dfe \u00fcber \u00c5ngstr\u00f6m \u4f60\u597d \u4e16\u754c "
           "\u4e2d\u6587 \u3053\u3093\u306b\u3061\u306f \uc548\ub155 \u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 "
           "\u0645\u0631\u062d\u0628\u0627 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \U0001f600 \U0001f44d\U0001f3fd \u2014 \u2026").split()


def generated_text(seed=7, num_sentences=6000):
    """Sentences of real, invented and foreign words."""
    rng = random.Random(seed)
    syllables = [c + v + e for c in ["b", "d", "gr", "k", "l", "m", "p", "s", "st", "t", "w"]
                 for v in "aeiou" for e in ["", "n", "r"]]
    invented = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 4)))
                for _ in range(500)]
    lines = []
    for _ in range(num_sentences):
        words = []
        for _ in range(rng.randint(4, 14)):
            kind = rng.random()
            words.append(rng.choice(WORDS if kind < 0.6 else invented if kind < 0.95 else FOREIGN))
        if rng.random() < 0.1:
            words.append(str(rng.randint(0, 2000)))
        sentence = " ".join(words)
        ending = rng.choice([".", "!", "?", "...", ",", ".  ", ".\n\n\t"])
        lines.append(sentence[0].upper() + sentence[1:] + ending + "\n")
    return lines


def normalization_rules():
    """A small table for SentencePiece: compatibility forms, and some marks."""
    code_points = [*range(0xA0, 0x180), *range(0x2000, 0x2070), *range(0x2160, 0x2180),
                   *range(0xFB00, 0xFB07), *range(0xFF00, 0xFF60), 0x3000, 0x212B]
    rules = {}
    for code_point in code_points:
        text = chr(code_point)
        form = unicodedata.normalize("NFKC", text)
        if form != text:
            rules[text] = form
    for letter in "aeiounAEIOU":
        for mark in "\u0300\u0301\u0302\u0308\u0303":
            form = unicodedata.normalize("NFC", letter + mark)
            if len(form) == 1:
                rules[letter + mark] = form
    for text in "\t\n\r":
        rules[text] = " "
    rules["\u200b"] = ""
    codes = lambda text: " ".join(f"{ord(c):X}" for c in text)
    return "".join(f"{codes(k)}\t{codes(v)}\n" for k, v in sorted(rules.items()))


def added(content, **options):
    return AddedToken(content, **options)


SPECIAL_CASES = [
    added("<strip>", lstrip=True, rstrip=True, normalized=False),
    added("lone", single_word=True, normalized=False),
    added("<tool>", normalized=False),
    added("Caf\u00e9 ", normalized=True),
    added("[NORM]", normalized=True),
]


def train_byte_level(lines, pattern, vocab_size, specials):
    tokenizer = Tokenizer(models.BPE(ignore_merges=False))
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(specials)
    return tokenizer


def gpt2(lines):
    tokenizer = train_byte_level(lines, None, 700, ["<|endoftext|>"])
    spec = json.loads(tokenizer.to_str())
    # The older form of merges.
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    return spec, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
                  "add_bos_token": False}


def llama3(lines):
    tokenizer = train_byte_level(
        lines, LLAMA3, 800, ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
                             "<|endoftext|>"])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single="<|begin_of_text|> $A",
            pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
            special_tokens=[("<|begin_of_text|>", bos)])])
    spec = json.loads(tokenizer.to_str())
    spec["model"]["ignore_merges"] = True
    # A word that merges do not reach, so that ignore_merges matters.
    spec["model"]["vocab"]["\u0120zqzq"] = len(spec["model"]["vocab"])
    for token in spec["added_tokens"]:
        token["id"] += 1
    processor = spec["post_processor"]["processors"][1]
    processor["special_tokens"]["<|begin_of_text|>"]["ids"] = [bos + 1]
    return spec, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


def qwen2(lines):
    tokenizer = train_byte_level(
        lines, QWEN2, 800, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(SPECIAL_CASES)
    return json.loads(tokenizer.to_str()), {
        "bos_token": None, "eos_token": {"content": "<|im_end|>"},
        "add_bos_token": False}


def llama2(lines):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=800, show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)])
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    spec = json.loads(tokenizer.to_str())
    spec["pre_tokenizer"] = None
    # As in checkpoints: the bytes are ordinary tokens.
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["id"] < 3]
    return spec, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True,
                  "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}


METASPACE = {"type": "Metaspace", "replacement": "\u2581",
             "prepend_scheme": "first", "split": False}


def split(pattern, behavior, invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def byte_level(**options):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": False, **options}


def sequence(*members):
    return {"type": "Sequence", "pretokenizers": list(members)}


# Small changes to the fixtures, as JSON merge patches (RFC 7396).
VARIANTS = [
    ("gpt2", "prefix space", {"pre_tokenizer": byte_level(use_regex=True, add_prefix_space=True)}),
    ("gpt2", "no regex", {"pre_tokenizer": byte_level()}),
    ("gpt2", "individual digits", {"pre_tokenizer": sequence(
        {"type": "Digits", "individual_digits": True}, byte_level(use_regex=True))}),
    ("gpt2", "digit groups", {"pre_tokenizer": sequence(
        {"type": "Digits", "individual_digits": False}, byte_level(use_regex=True, add_prefix_space=True))}),
    ("gpt2", "o200k", {"pre_tokenizer": sequence(split({"Regex": O200K}, "Isolated"), byte_level())}),
    ("gpt2", "deepseek", {"pre_tokenizer": sequence(
        split({"Regex": r"\p{N}{1,3}"}, "Isolated"),
        split({"Regex": "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"}, "Isolated"),
        split({"Regex": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"}, "Isolated"),
        byte_level())}),
    ("gpt2", "word class", {"pre_tokenizer": sequence(split({"Regex": r"\w+|[^\w\s]+|\d"}, "Isolated"), byte_level())}),
    ("gpt2", "white space class", {"pre_tokenizer": sequence(split({"Regex": r"[\s]+|[^\S]"}, "Removed"), byte_level())}),
    ("gpt2", "inverted", {"pre_tokenizer": sequence(split({"Regex": r"\p{L}+"}, "Removed", True), byte_level())}),
    ("gpt2", "empty matches", {"pre_tokenizer": sequence(split({"Regex": r"x*|(?=l)"}, "Isolated"), byte_level())}),
    ("gpt2", "lines", {"pre_tokenizer": sequence(split({"Regex": r"^.+$"}, "Isolated"), byte_level())}),
    ("gpt2", "literal", {"pre_tokenizer": sequence(split({"String": ". "}, "MergedWithPrevious"), byte_level())}),
] + [
    ("gpt2", f"split {behavior}{' inverted' if invert else ''}",
     {"pre_tokenizer": sequence(split({"Regex": r"[ e\n]"}, behavior, invert), byte_level())})
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    for invert in [False, True]
] + [
    ("qwen2", "nfd", {"normalizer": {"type": "NFD"}}),
    ("qwen2", "nfkc", {"normalizer": {"type": "NFKC"}}),
    ("qwen2", "nfkd", {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}]}}),
    ("qwen2", "replace", {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Replace", "pattern": {"String": "e"}, "content": "\u00e8e"}, {"type": "NFC"}]}}),
    ("qwen2", "bos and eos", {"post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "E", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"B": {"id": "B", "ids": [3, 4], "tokens": ["#", "$"]},
                           "E": {"id": "E", "ids": [5], "tokens": ["%"]}}}}),
    ("qwen2", "no decoder", {"decoder": None}),
    ("llama2", "metaspace first", {"normalizer": None, "pre_tokenizer": METASPACE}),
    ("llama2", "metaspace always", {"normalizer": None, "pre_tokenizer": {
        **METASPACE, "prepend_scheme": "always", "split": True},
        "decoder": {**METASPACE, "prepend_scheme": "always"}}),
    ("llama2", "metaspace never", {"normalizer": None, "pre_tokenizer": {
        **METASPACE, "prepend_scheme": "never"}, "decoder": {**METASPACE, "prepend_scheme": "never"}}),
    ("llama2", "unknown", {"model": {"byte_fallback": False}}),
    ("llama2", "unknown, one by one", {"model": {"byte_fallback": False, "fuse_unk": False}}),
    ("llama2", "no unknown", {"model": {"byte_fallback": False, "unk_token": None}}),
    ("llama2", "strip ends", {"decoder": {"decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 2, "stop": 2}]}}),
    ("llama2", "strip tokens", {"decoder": {"decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}}),
    ("llama2", "replace after fuse", {"decoder": {"decoders": [
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}}),
]


def merge_patch(target, patch):
    if not isinstance(patch, dict):
        return patch
    target = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = merge_patch(target.get(key), value)
    return target


def decode_cases(num_ids, encoded, seed, decode):
    """Sequences of ids that no text has, and the starts of some that one has."""
    rng = random.Random(seed)
    lists = [[rng.randrange(num_ids) for _ in range(rng.randint(1, 12))] for _ in range(24)]
    # Runs of the bytes 0x80 and up, mostly not UTF-8.
    lists += [[rng.randrange(94, min(num_ids, 259)) for _ in range(8)] for _ in range(16)]
    lists += [ids[:rng.randrange(len(ids))] for ids in encoded if len(ids) > 8][:12]
    cases = [{"ids": ids, "text": decode(ids, True), "text_with_special": decode(ids, False)}
             for ids in lists]
    return [case for case in cases if None not in case.values()]


def safe_decode(tokenizer, ids, skip):
    """None where the package panics: Strip with a stop on an empty text."""
    try:
        return tokenizer.decode(ids, skip_special_tokens=skip)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return None


def json_cases(spec, texts, num_decode_seed):
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    cases = []
    for text in texts:
        case = {"text": text}
        for name, special, parse in [("ids", True, False), ("ids_plain", False, False),
                                     ("ids_parsed", False, True)]:
            tokenizer.encode_special_tokens = not parse
            case[name] = tokenizer.encode(text, add_special_tokens=special).ids
        case["decoded"] = safe_decode(tokenizer, case["ids_parsed"], True)
        case["decoded_with_special"] = safe_decode(tokenizer, case["ids_parsed"], False)
        # Only what differs is written.
        for name in ["ids_plain", "ids_parsed"]:
            if case[name] == case["ids"]:
                del case[name]
        if case["decoded_with_special"] in [case["decoded"], None]:
            del case["decoded_with_special"]
        if case["decoded"] is None:
            del case["decoded"]
        cases.append(case)
    decode = lambda ids, skip: safe_decode(tokenizer, ids, skip)
    return cases, decode_cases(tokenizer.get_vocab_size(), [c["ids"] for c in cases],
                               num_decode_seed, decode)


def sentencepiece_model(lines, model_type, **options):
    # The model keeps the names of its files, so they are relative.
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            pathlib.Path("text.txt").write_text("".join(lines), encoding="utf-8")
            pathlib.Path("rules.tsv").write_text(normalization_rules())
            sentencepiece.SentencePieceTrainer.train(
                input="text.txt", model_prefix="m", model_type=model_type,
                num_threads=1, minloglevel=2, **options)
            return pathlib.Path("m.model").read_bytes()
        finally:
            os.chdir(before)


def sentencepiece_cases(model, texts):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    cases = []
    for text in texts:
        ids = processor.encode(text)
        case = {"text": text, "ids": [processor.bos_id()] + ids, "ids_plain": ids}
        case["decoded"] = processor.decode(ids)
        cases.append(case)
    decode = lambda ids, skip: processor.decode(ids)
    return cases, [{"ids": c["ids"], "text": c["text"]} for c in decode_cases(
        processor.vocab_size(), [c["ids"] for c in cases], 5, decode)]


def write_json(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=True, **options) + "\n")


def write_cases(folder, cases, decodes):
    lines = lambda items: "[\n" + ",\n".join(
        json.dumps(i, ensure_ascii=True, separators=(",", ":")) for i in items) + "\n]"
    (OUT / folder / "cases.json").write_text(
        '{"cases": %s,\n"decode_cases": %s}\n' % (lines(cases), lines(decodes)))


def main():
    lines = generated_text()
    OUT.mkdir(parents=True, exist_ok=True)

    specs = {}
    for name, make in [("gpt2", gpt2), ("llama3", llama3), ("qwen2", qwen2), ("llama2", llama2)]:
        spec, config = make(lines)
        specs[name] = spec
        write_json(OUT / name / "tokenizer.json", spec, separators=(",", ":"))
        write_json(OUT / name / "tokenizer_config.json", config, indent=2)
        texts = TEXTS + (["x zqzq zqzq"] if name == "llama3" else [])
        write_cases(name, *json_cases(spec, texts, 3))

    variants = {}
    for base, name, patch in VARIANTS:
        spec = merge_patch(copy.deepcopy(specs[base]), patch)
        cases, decodes = json_cases(spec, VARIANT_TEXTS, 11)
        variants.setdefault(base, []).append({
            "name": name, "patch": patch, "cases": cases,
            "decode_cases": decodes[::3] if "decoder" in patch else []})
    for base, values in variants.items():
        (OUT / base / "variants.json").write_text(
            "[\n" + ",\n".join(json.dumps(v, separators=(",", ":")) for v in values) + "\n]\n")

    common = {"vocab_size": 600, "hard_vocab_limit": False}
    for name, model_type, extra in [
        ("sentencepiece_bpe", "bpe", {
            "vocab_size": 800, "byte_fallback": True, "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False, "split_digits": True,
            "allow_whitespace_only_pieces": True}),
        ("sentencepiece_unigram", "unigram", {
            "normalization_rule_tsv": "rules.tsv", "user_defined_symbols": ["<tool>", "lone"]}),
        ("sentencepiece_plain", "unigram", {
            "vocab_size": 700, "byte_fallback": True, "add_dummy_prefix": False,
            "normalization_rule_name": "identity", "remove_extra_whitespaces": False}),
    ]:
        model = sentencepiece_model(lines, model_type, **{**common, **extra})
        (OUT / name).mkdir(exist_ok=True)
        (OUT / name / "tokenizer.model").write_bytes(model)
        write_cases(name, *sentencepiece_cases(model, TEXTS))

    write_json(OUT / "versions.json", {"tokenizers": tokenizers.__version__,
                                       "sentencepiece": sentencepiece.__version__}, indent=2)
    for path in sorted(OUT.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:8d} {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

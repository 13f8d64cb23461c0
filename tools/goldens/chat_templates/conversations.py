"""Conversations, further variables, and which template gets which of them."""


def m(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, call_id="abcdefgh1"):
    return {"id": call_id, "type": "function",
            "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says what the weather <is> & \"will be\" in Zürich.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town."},
                "days": {"type": "integer", "default": 3, "minimum": 1},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"],
                         "default": "celsius"},
            },
            "required": ["place"],
        },
    },
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "  Looks things up. ",
        "parameters": {
            "type": "object",
            "properties": {
                "terms": {"type": "array", "items": {"type": "string"},
                          "description": "What to look for."},
                "filter": {
                    "type": "object",
                    "description": "Narrows it down.",
                    "properties": {
                        "since": {"type": ["string", "null"]},
                        "tags": {"type": "array",
                                 "items": {"type": "object", "properties": {
                                     "key": {"type": "string"},
                                     "weight": {"type": "number"}},
                                     "required": ["key"]}},
                    },
                },
                "deep": {"type": "boolean", "default": False},
                "mode": {"oneOf": [{"type": "string", "description": "a name"},
                                   {"type": "integer"}], "default": "x"},
            },
        },
        "return": {"type": "string"},
    },
}
NOTHING = {"type": "function",
           "function": {"name": "now", "description": "The time.",
                        "parameters": {"type": "object", "properties": {}}}}

CONVERSATIONS = {
    "question": [m("user", "Hi there")],
    "turns": [m("user", " Who are you?\n"), m("assistant", " A model. "),
              m("user", "Grüße, 世界 🙂!")],
    "answered": [m("user", "One"), m("assistant", "Two")],
    "system": [m("system", " Be brief.\n"), m("user", "Hi"),
               m("assistant", "Hello"), m("user", "Bye")],
    "late system": [m("user", "Hi"), m("system", "Now in verse."),
                    m("user", "Go")],
    "two systems": [m("system", "One."), m("system", "Two."),
                    m("user", "Three")],
    "wrong order": [m("user", "a"), m("user", "b")],
    "unknown role": [m("user", "a"), m("assistant", "b"), m("critic", "c")],
    "empty": [],
    "quotes": [m("user", "It's \"quoted\" \\ <b>&amp;</b> {{ x }} {% y %}\t\u2028"),
               m("assistant", ""), m("user", "")],
    "null content": [m("user", "a"), m("assistant", None), m("user", "b")],
    "no content": [{"role": "user"}],
    "parts": [m("user", [{"type": "text", "text": " Look: "},
                         {"type": "image"},
                         {"type": "text", "text": "what is it?"}])],
    "system parts": [m("system", [{"type": "text", "text": "Be brief."}]),
                     m("user", "Hi")],
    "bad parts": [m("user", 7)],
    "default prompt": [m("user", "has <<SYS>> in it")],
    "tool use": [
        m("system", "Use tools."), m("user", "Weather in Zürich?"),
        m("assistant", "", tool_calls=[
            call("get_weather", {"place": "Zürich", "days": 2})]),
        m("tool", "{\"sky\": \"blue\"}", tool_call_id="abcdefgh1"),
        m("assistant", "Blue."), m("user", "Thanks")],
    "tool result last": [
        m("user", "Weather?"),
        m("assistant", None, tool_calls=[
            call("get_weather", {"place": "Paris", "nested": {"a": [1, 2.5]}})],
          thinking="Which tool?"),
        m("tool", "rain", tool_call_id="abcdefgh1")],
    "two tools": [
        m("user", "Both"),
        m("assistant", "I will.", tool_calls=[
            call("get_weather", {"place": "Oslo"}),
            call("search", {"terms": ["x"], "deep": True}, "abcdefgh2")]),
        m("tool", "snow", tool_call_id="abcdefgh1"),
        m("tool", "found", tool_call_id="abcdefgh2"),
        m("assistant", "Done."), m("user", "More?")],
    "text arguments": [
        m("user", "Weather?"),
        m("assistant", None, tool_calls=[
            call("get_weather", "{\"place\": \"Rome\"}"),
            call("now", "{}", "abcdefgh2")]),
        m("tool", "sun", tool_call_id="abcdefgh1"),
        m("tool", "noon", tool_call_id="abcdefgh2"),
        m("assistant", "Sun at noon.")],
    "builtin tool": [
        m("user", "Search"),
        m("assistant", None, tool_calls=[
            call("brave_search", {"query": "moe", "lang": "en"})]),
        m("ipython", {"found": ["a", 1]}), m("user", "and?")],
    "bad tool id": [
        m("user", "Weather?"),
        m("assistant", "", tool_calls=[call("now", {}, "short")])],
    "orphan tool": [m("user", "a"), m("tool", "b")],
    "thoughts": [
        m("user", "1+1?"),
        m("assistant", "<think>\nOne and one.\n</think>\n\n2"),
        m("user", "2+2?"),
        m("assistant", "\n4", reasoning_content="\nTwice.\n"),
        m("user", "3+3?")],
    "last thoughts": [
        m("system", "Think."), m("user", "1+1?"),
        m("assistant", "<think>Hm</think>2"),
        m("user", "<tool_response>x</tool_response>"),
        m("assistant", "3", reasoning_content="")],
    "stop early": [m("system", "s"), m("user", "first\n\nthird line"),
                   m("assistant", ""), m("assistant", "last"),
                   m("stop", "x"), m("user", "never")],
    "only system": [m("system", "s")],
}

EXTRAS = {
    "plain": {},
    "weather": {"tools": [WEATHER]},
    "tools": {"tools": [WEATHER, SEARCH, NOTHING]},
    "no tools": {"tools": []},
    "documents": {"documents": [{"title": "A", "text": "First."},
                                {"title": "B", "text": "Second."}]},
    "tools and documents": {"tools": [NOTHING],
                            "documents": [{"text": "First."}],
                            "controls": {"citations": True, "length": "short"}},
    "controls": {"controls": {"length": "long"}},
    "thinking off": {"enable_thinking": False},
    "thinking on": {"enable_thinking": True},
    "thinking": {"thinking": True, "controls": []},
    "high effort": {"reasoning_effort": "high"},
    "default prompt": {"USE_DEFAULT_PROMPT": True},
    "date": {"date_string": "1 Jan 2000"},
    "tools apart": {"tools": [WEATHER], "tools_in_question": False},
    "builtin": {"builtin_tools": ["brave_search", "code_interpreter"]},
    "own tokens": {"bos_token": "[BOS]", "eos_token": "[EOS]"},
}


def plan(*cases):
    """Each conversation with its extras, open and closed in turn."""
    return [(conversation, extra, generate)
            for conversation, *extras in cases
            for extra in (extras or ["plain"])
            for generate in (True, False)]


ALL_PLAIN = ["question", "turns", "answered", "system", "late system",
             "two systems", "wrong order", "unknown role", "empty", "quotes",
             "null content", "no content", "parts"]

PLAN = {
    "mistral_alternating": plan(*[[c] for c in ALL_PLAIN],
                                ["turns", "own tokens"]),
    "mistral_tools": plan(
        *[[c] for c in ALL_PLAIN], ["tool use", "tools", "weather"],
        ["turns", "tools", "no tools"], ["tool result last", "weather"],
        ["two tools", "tools"], ["bad tool id", "weather"],
        ["quotes", "tools"]),
    "chatml_default_system": plan(*[[c] for c in ALL_PLAIN]),
    "qwen_moe_tools": plan(
        *[[c] for c in ALL_PLAIN], ["tool use", "tools", "plain"],
        ["two tools", "tools"], ["turns", "no tools"],
        ["text arguments", "weather"], ["tool result last", "weather"]),
    "qwen3_moe_thinking": plan(
        *[[c] for c in ALL_PLAIN],
        ["question", "thinking off", "thinking on"],
        ["thoughts", "plain", "thinking off"], ["last thoughts"],
        ["tool use"], ["two tools"], ["text arguments"]),
    "olmoe": plan(*[[c] for c in ALL_PLAIN]),
    "deepseek_thinking": plan(
        *[[c] for c in ALL_PLAIN], ["text arguments"], ["two tools"],
        ["thoughts"], ["tool result last"]),
    "llama2": plan(*[[c] for c in ALL_PLAIN], ["turns", "default prompt"],
                   ["default prompt", "default prompt"]),
    "llama3_tools": plan(
        *[[c] for c in ALL_PLAIN], ["turns", "date"],
        ["tool use", "weather", "tools apart"], ["two tools", "tools"],
        ["builtin tool", "builtin"], ["empty", "weather"],
        ["only system", "weather"], ["quotes", "tools"]),
    "phi_moe": plan(*[[c] for c in ALL_PLAIN]),
    "gemma": plan(*[[c] for c in ALL_PLAIN], ["system parts"], ["bad parts"]),
    "granite_moe": plan(
        *[[c] for c in ALL_PLAIN], ["turns", "tools", "documents", "thinking",
                                    "tools and documents", "controls"]),
    "coder_xml_tools": plan(
        *[[c] for c in ALL_PLAIN], ["tool use", "tools"],
        ["two tools", "tools", "weather"], ["tool result last", "weather"],
        ["turns", "no tools"]),
    "typescript_tools": plan(
        *[[c] for c in ALL_PLAIN], ["tool use", "tools"],
        ["tool result last", "weather", "high effort"],
        ["orphan tool"], ["question", "tools", "no tools"]),
    "blocks": plan(["stop early"], ["turns"], ["only system"], ["empty"],
                   ["quotes"]),
}

#!/usr/bin/env python3
"""Makes tests/goldens/chat_templates.

Renders templates of our own, which use what the templates of published
checkpoints use, and a table of small expressions, in the environment that
transformers gives chat templates, and writes down what came out.

    python3 -m venv build/venv-chat-goldens
    build/venv-chat-goldens/bin/pip install \
        -r tools/goldens/chat_templates/requirements.txt
    build/venv-chat-goldens/bin/python \
        tools/goldens/chat_templates/make_goldens.py [--verify]
"""

import argparse
import datetime
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils

from conversations import CONVERSATIONS, EXTRAS, PLAN
from expressions import CONTEXT, EXPRESSIONS

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parents[2] / "tests" / "goldens" / "chat_templates"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
NOW = datetime.datetime(2026, 1, 5, 9, 7, 3)  # 1767604023 in UTC


class FixedTime(datetime.datetime):

    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template, variables):
    """What comes of a template: its text, or how it fails."""
    try:
        compiled = chat_template_utils._compile_jinja_template(template)
        return {"text": compiled.render(**variables)}
    except Exception as error:  # Python's own errors pass through templates
        if type(error) is jinja2.exceptions.TemplateError:
            return {"raised": str(error)}
        return {"fails": f"{type(error).__name__}: {error}"}


def golden_of(name):
    template = (HERE / "templates" / f"{name}.jinja").read_text()
    cases = []
    for conversation, extra, add_generation_prompt in PLAN[name]:
        variables = {
            **TOKENS, "tools": None, "documents": None, **EXTRAS[extra],
            "messages": CONVERSATIONS[conversation],
            "add_generation_prompt": add_generation_prompt,
        }
        cases.append({
            "conversation": conversation, "extra": extra,
            "add_generation_prompt": add_generation_prompt,
            **render(template, variables),
        })
    return {"template": template, "cases": cases}


def expressions():
    variables = {"tools": None, "documents": None, "messages": [],
                 "add_generation_prompt": False, **CONTEXT}
    cases = [{"template": template, **render(template, variables)}
             for template in EXPRESSIONS]
    return {"context": CONTEXT, "cases": cases}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verify", action="store_true",
                        help="compare with the files, write nothing")
    verify = parser.parse_args().verify
    chat_template_utils.datetime = FixedTime
    files = {name: golden_of(name) for name in PLAN}
    files["inputs"] = {"tokens": TOKENS, "conversations": CONVERSATIONS,
                       "extras": EXTRAS}
    files["expressions"] = expressions()
    files["versions"] = {"jinja2": jinja2.__version__,
                         "transformers": transformers.__version__}
    OUT.mkdir(parents=True, exist_ok=True)
    different = 0
    for name, golden in files.items():
        text = json.dumps(golden, indent=1, ensure_ascii=False) + "\n"
        path = OUT / f"{name}.json"
        if not verify:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path.name} differs")
            different += 1
    print(f"{len(files)} files, {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())

"""Chat templates: the official ones render as documented, hostile ones end in an error."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from qtool_runtime import chat
from qtool_runtime.chat import ChatTemplate
from qtool_runtime.errors import ArtifactError, GenerationError

USER = {"role": "user", "content": "Wie heißt du? 你好"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather <now> in a city & é",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}],
}
TOOL_DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Köln and Bonn?"},
    CALL,
    {"role": "tool", "content": "12 °C"},
    {"role": "tool", "content": "13 °C"},
]


@pytest.fixture(scope="module")
def qwen3(real_models: Path) -> ChatTemplate:
    return ChatTemplate((real_models / "templates" / "qwen3.jinja").read_text("utf-8"))


@pytest.fixture(scope="module")
def qwen2(real_models: Path) -> ChatTemplate:
    return ChatTemplate((real_models / "templates" / "qwen2.5.jinja").read_text("utf-8"))


def test_qwen2_adds_its_system_prompt(qwen2: ChatTemplate) -> None:
    assert qwen2.render([USER]) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWie heißt du? 你好<|im_end|>\n<|im_start|>assistant\n"
    )


def test_qwen3_thinks_unless_told_not_to(qwen3: ChatTemplate) -> None:
    plain = "<|im_start|>user\nWie heißt du? 你好<|im_end|>\n<|im_start|>assistant\n"
    assert qwen3.render([USER]) == plain
    assert qwen3.render([USER], enable_thinking=True) == plain
    assert qwen3.render([USER], enable_thinking=False) == plain + "<think>\n\n</think>\n\n"
    assert qwen3.render([USER], add_generation_prompt=False) == plain.removesuffix("<|im_start|>assistant\n")


def test_qwen3_keeps_reasoning_of_the_last_turn_only(qwen3: ChatTemplate) -> None:
    answer = {"role": "assistant", "content": "Qwen.", "reasoning_content": "A name."}
    inline = {"role": "assistant", "content": "<think>\nA name.\n</think>\n\nQwen."}
    for message in (answer, inline):
        last = qwen3.render([USER, message], add_generation_prompt=False)
        assert last.endswith("<|im_start|>assistant\n<think>\nA name.\n</think>\n\nQwen.<|im_end|>\n")
        earlier = qwen3.render([USER, message, USER])
        assert "<|im_start|>assistant\nQwen.<|im_end|>\n" in earlier
        assert "A name." not in earlier


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_tools_calls_and_responses(name: str, request: pytest.FixtureRequest) -> None:
    template: ChatTemplate = request.getfixturevalue(name)
    text = template.render(TOOL_DIALOGUE, tools=[WEATHER])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n")
    # As JSON that a model was trained on: no HTML escapes, no \\u escapes, the given order of keys.
    assert f"\n<tools>\n{json.dumps(WEATHER, ensure_ascii=False)}\n</tools>" in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>\n' in text
    responses = (
        "\n<tool_response>\n12 °C\n</tool_response>\n<tool_response>\n13 °C\n</tool_response><|im_end|>\n"
    )
    assert text.endswith(f"<|im_start|>user{responses}<|im_start|>assistant\n")


def test_all_official_templates_parse(real_models: Path) -> None:
    paths = list((real_models / "templates").glob("*.jinja"))
    assert paths
    for path in paths:
        assert "Hello" in ChatTemplate(path.read_text("utf-8")).render([{"role": "user", "content": "Hello"}])


def test_features_that_templates_expect() -> None:
    def render(source: str, **variables: Any) -> str:
        return ChatTemplate(source, variables).render([USER])

    assert render("{% for x in 'abc' %}{% if x == 'b' %}{% break %}{% endif %}{{ x }}{% endfor %}") == "a"
    assert render("{{ {'b': 'é<', 'a': 1} | tojson }}") == '{"b": "é<", "a": 1}'
    assert render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert render("{{ bos_token }}", bos_token="<s>") == "<s>"
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("  {% if true %}\nx\n  {% endif %}\n") == "x\n"  # trim_blocks, lstrip_blocks
    with pytest.raises(GenerationError, match="cannot render these messages: no such role"):
        render("{{ raise_exception('no such role') }}")


HOSTILE = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "item": "{{ messages['__class__'].__mro__ }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "environment": "{{ self._TemplateReference__context.environment.loader.load }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "mutation": "{{ messages.append(1) }}",
    "item mutation": "{{ messages[0].update({'role': 'system'}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "range": "{% for x in range(10**9) %}{% endfor %}",
    "silent nested ranges": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "output": "{% set ns = namespace(x='x' * 9999) %}{% for a in range(9999) %}{{ ns.x }}{% endfor %}",
    "repetition": "{{ 'x' * 10**9 }}",
    "repetition reversed": "{{ 10**9 * 'x' }}",
    "list repetition": "{% for x in [1] * 1000000000 %}{% endfor %}",
    "power": "{{ 10 ** 100000000 }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "undefined": "{{ missing.attribute }}",
    "type error": "{{ 'x' + 1 }}",
    "division": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_an_error(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(GenerationError, match="cannot render these messages"):
        ChatTemplate(HOSTILE[name]).render([USER])
    assert time.monotonic() - started < 20


def test_templates_that_do_not_parse_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"does not parse: .*endfor"):
        ChatTemplate("{% for x in y %}")
    with pytest.raises(ArtifactError, match="the limit is"):
        ChatTemplate(" " * (chat.MAXIMUM_TEMPLATE_BYTES + 1))
    with pytest.raises(ArtifactError, match="does not parse"):
        ChatTemplate("{{ " + "(" * 5000 + ")" * 5000 + " }}")


@pytest.mark.parametrize(
    "messages", [[], "hello", {"role": "user"}, None, ["hello"], [{"content": "x"}], [{"role": 1}]]
)
def test_malformed_messages_are_refused(messages: Any) -> None:
    with pytest.raises(GenerationError, match="valid: a"):
        ChatTemplate("x").render(messages)


def test_messages_are_left_as_they_are(qwen3: ChatTemplate) -> None:
    before = json.dumps(TOOL_DIALOGUE)
    qwen3.render(TOOL_DIALOGUE, tools=[WEATHER])
    assert json.dumps(TOOL_DIALOGUE) == before


def test_special_tokens_come_from_the_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}", "utf-8")
    config = {"bos_token": {"content": "<s>", "special": True}, "eos_token": "</s>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "<s>|</s>|"
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json cannot be read"):
        ChatTemplate.from_folder(tmp_path)


def test_base_models_have_no_template(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="base model") as caught:
        ChatTemplate.from_folder(tmp_path)
    assert "generate()" in caught.value.hint
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match="cannot be read"):
        ChatTemplate.from_folder(tmp_path)

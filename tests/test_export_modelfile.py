"""Modelfiles: the Go template says what the model's own chat template says, or the export is refused."""

import re

import pytest
from still.backends.export.chat_family import FAMILIES, chat_family
from still.backends.export.modelfile import BARE, modelfile
from still.backends.models import Tokenizer
from still.backends.models.checkpoint import TokenizerFiles
from still.errors import ArtifactError
from tokenizers import Tokenizer as Backend
from tokenizers import models

SYSTEM_FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else 'user' }}\n{{ first if loop.first }}{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "zephyr": (
        SYSTEM_FIRST + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "phi3": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}"
        "{% endfor %}"
    ),
    "mistral-v3": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}"
        "{% endfor %}"
    ),
}
TALKS = [
    [("user", "one\ntwo")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    [("system", "Say {{ no }}.\n\nMore."), ("user", "a"), ("assistant", "b"), ("user", "c")],
]


def tokenizer(template):
    backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1, "x": 2}, unk_token="x"))
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(TokenizerFiles(backend.to_str(), 0, True, (1,), template))


def go(template, messages):
    """Go's text/template, as far as range, if and else if over roles, and fields go."""
    system = "\n\n".join(content for role, content in messages if role == "system")
    head, body, tail = re.fullmatch(
        r"(.*?)\{\{ range \$i, \$_ := \.Messages \}\}(.*)\{\{ end \}\}(.*?)", template, re.S
    ).groups()
    text = head
    for index, (role, content) in enumerate(messages):
        rest = body.removesuffix("{{ end }}")
        for branch in re.split(r"\{\{ (?:else )?if eq \.Role ", rest)[1:]:
            name, inside = re.match(r'"(\w+)" \}\}(.*)', branch, re.S).groups()
            if name == role:
                first = re.compile(r"\{\{ if and \$\.System \(eq \$i 1\) \}\}(.*?)\{\{ end \}\}", re.S)
                inside = first.sub(lambda found, i=index: found[1] if system and i == 1 else "", inside)
                values = {"{{ .Content }}": content, "{{ $.System }}": system}
                text += re.sub(r"\{\{ [.$]+\w+ \}\}", lambda found, values=values: values[found[0]], inside)
                break
    return text + tail


def test_every_family_is_tested():
    assert list(TEMPLATES) == [family.name for family in FAMILIES]


@pytest.mark.parametrize("name", TEMPLATES)
def test_go_templates_render_as_the_models_own(name):
    ours = tokenizer(TEMPLATES[name])
    family, default = chat_family(ours)
    assert (family.name, default) == (name, None)
    for talk in TALKS[: None if family.takes_system else 2]:
        rendered = ours.render([{"role": role, "content": content} for role, content in talk], True)
        assert go(family.go_template(), talk) == rendered.removeprefix("<s>")  # llama.cpp puts it first itself
    assert all(any(stop in part for part in (*family.user, *family.assistant)) for stop in family.stops)


def test_the_default_system_message_becomes_system():
    default = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Still.<|im_end|>\n{% endif %}"
    text = modelfile(tokenizer(default + CHATML), "./model.gguf")
    assert '\nSYSTEM """You are Still."""\n' in text
    assert '\nSYSTEM """Sort."""\n' in modelfile(tokenizer(default + CHATML), "./model.gguf", system="Sort.")
    assert "SYSTEM" not in modelfile(tokenizer(CHATML), "./model.gguf")


@pytest.mark.model
def test_the_real_models_file(model_fp32):
    text = modelfile(
        model_fp32.tokenizer, "./model.gguf", messages=[("user", "a\nb"), ("assistant", "c")], comments=["x\ny"]
    )
    assert text.startswith('# x y\nFROM ./model.gguf\nTEMPLATE """{{ range')
    assert 'SYSTEM """You are a helpful AI assistant named SmolLM, trained by Hugging Face"""' in text
    assert 'MESSAGE user """a\nb"""\nMESSAGE assistant """c"""\n' in text
    assert text.endswith('PARAMETER temperature 0\nPARAMETER stop "<|im_end|>"\nPARAMETER stop "<|im_start|>"\n')
    family, default = chat_family(model_fp32.tokenizer)
    talk = [{"role": "user", "content": "Hi"}]
    assert go(family.go_template(), [("system", default), ("user", "Hi")]) == model_fp32.tokenizer.render(talk, True)


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("<|im_end|>", "<|end|>"),  # unknown marks
        CHATML.replace("{{ m.content }}", "{{ loop.index }}: {{ m.content }}"),  # it counts
        CHATML.replace("add_generation_prompt", "false"),
        CHATML + "{{ strftime_now('%Y') }}",
        "{{ raise_exception('never') }}",
    ],
)
def test_unknown_templates_are_refused(template):
    with pytest.raises(ArtifactError, match="of no family that can be written as a Go template"):
        modelfile(tokenizer(template), "./model.gguf")


def test_what_cannot_be_said_is_refused():
    with pytest.raises(ArtifactError, match=r"\(mistral\) takes no system message"):
        modelfile(tokenizer(TEMPLATES["mistral"]), "./model.gguf", system="Be brief.")
    with pytest.raises(ArtifactError, match="cannot hold a text"):
        modelfile(tokenizer(CHATML), "./model.gguf", system='Say """.')
    with pytest.raises(ArtifactError, match="cannot hold a text"):
        modelfile(tokenizer(CHATML), "./model.gguf", messages=[("user", 'say\n"yes"')])
    assert '\nMESSAGE user say "yes"\n' in modelfile(tokenizer(CHATML), "./model.gguf", messages=[("user", 'say "yes"')])
    bare = modelfile(tokenizer(None), "./model.gguf")
    assert f'TEMPLATE """{BARE}"""' in bare and "stop" not in bare

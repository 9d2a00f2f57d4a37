"""Chat templates in the manner of well-known models, with SmolLM2's tokens, and models that have them."""

import shutil
from pathlib import Path

from psyco_ray.run.remote import MANIFEST

_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_THOUGHTS = (
    "{% set said = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in m.content "
    "else '' %}"
)

_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

PLAIN = f"{{% for m in messages %}}{_TURN}{{% endfor %}}{_ASK}"

R1 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|im_start|>assistant\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n"
    f"{{% else %}}{_TURN}{{% endif %}}{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""DeepSeek-R1, QwQ: the prompt opens the reasoning, past turns have none."""

_QWEN = (
    f"{{% for m in messages %}}{{% if m.role == 'assistant' %}}{_THOUGHTS}<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}<|im_end|>\n"
    f"{{% else %}}{_TURN}{{% endif %}}{{% endfor %}}"
)
_NO_THINKING = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"

QWEN3 = f"{_QWEN}{{% if add_generation_prompt %}}<|im_start|>assistant\n{_NO_THINKING}{{% endif %}}{{% endif %}}"
"""The last turn has reasoning, perhaps an empty one; the prompt has an empty one with `enable_thinking: false`."""

QWEN35 = (
    f"{_QWEN}{{% if add_generation_prompt %}}<|im_start|>assistant\n"
    f"{_NO_THINKING}{{% else %}}<think>\n{{% endif %}}{{% endif %}}"
)
"""As QWEN3, but the prompt opens the reasoning: its last newline and the next one are one token of a conversation."""

GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
"""Refuses a system message and roles that do not alternate."""

SILENT = f"{{% for m in messages %}}{{% if m.role != 'system' %}}{_TURN}{{% endif %}}{{% endfor %}}{_ASK}"
"""Leaves a system message out."""


def with_template(model: Path, template: str, target: Path) -> Path:
    """Copy a model and give it another chat template."""
    shutil.copytree(model, target)
    (target / "chat_template.jinja").write_text(template)
    (target / MANIFEST).unlink(missing_ok=True)
    return target

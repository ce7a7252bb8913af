// The tokenizer of the tests and ChatML templates around it.
#pragma once

#include <string>

#include "lib/dataset/encode.h"
#include "lib/text/chat_template.h"
#include "lib/text/tokenizer.h"

namespace luthier {

inline Tokenizer FixtureTokenizer() { return Tokenizer::Load("tests/fixtures/tokenizer").value(); }

constexpr char kChatMl[] =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

constexpr char kTaggedChatMl[] =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration "
    "%}{{ '\\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

// As Qwen3: the reasoning of all turns but the last is cut away.
constexpr char kForgetfulChatMl[] =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}{% else "
    "%}{{ m.content }}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

inline ChatTemplate Compiled(const std::string& source) { return ChatTemplate::Compile(source, nullptr).value(); }

}  // namespace luthier

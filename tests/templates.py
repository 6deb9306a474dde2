"Chat templates that several tests try."
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
NO_SYSTEM = """{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}\
{% endif %}{% for m in messages %}<turn>{{ m.role }}
{{ m.content }}</turn>
{% endfor %}{% if add_generation_prompt %}<turn>assistant
{% endif %}"""

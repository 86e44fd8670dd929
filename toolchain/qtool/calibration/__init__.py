"""What has to be measured before it can be quantized: a compiled graph is run over a text.

`text` reads the text, `kv_cache` measures the scales of an int8 KV cache. `text.txt` is the text where the
user gives none: chats, prose, code, mathematics, and a dozen languages beside English and Chinese.
"""

"""What has to be measured on a text before it can be quantized.

`text` reads the text. `layers` quantizes weights layer by layer (`layer_runner` runs one layer), `kv_cache`
measures the scales of an int8 KV cache. `text.txt` is the text where the user gives none: chats, prose,
code, mathematics, and a dozen languages beside English and Chinese; all of it written for this project.
"""
